"""Derivatives of networks whose weights stay as they are, without the work that training would want."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


class Frozen(TorchFunctionMode):
    """While it is on, convolutions and evaluated batch norms whose weights need no gradient cost what they must.

    PyTorch's second derivative of a convolution computes a gradient of its weight that nobody asked for, and that of an
    evaluated batch norm treats its statistics as variables. Here the one is a convolution, the other a product. Values
    agree with the original functions to rounding.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call `func`, or what stands for it here."""
        named = kwargs or {}
        if func in _CONVOLUTIONS:
            return _convolution(func, *args, **named)
        if func is functional.batch_norm:
            return _batch_norm(func, *args, **named)
        return func(*args, **named)


def _convolution(
    func: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    learns = weight.requires_grad or (bias is not None and bias.requires_grad)
    if learns or isinstance(padding, str) or input.dim() != weight.dim():
        return func(input, weight, bias, stride, padding, dilation, groups)
    size = _CONVOLUTIONS[func]
    places = [[one] * size if isinstance(one, int) else list(one) for one in (stride, padding, dilation)]
    found: Tensor = _Convolved.apply(input, weight, bias, places, groups)
    return found


def _batch_norm(
    func: Callable[..., Tensor],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    learns = any(one is not None and one.requires_grad for one in (weight, bias))
    if training or running_mean is None or running_var is None or learns:
        return func(input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = (running_var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale
    if bias is not None:
        shift = shift + bias
    shape = (1, -1) + (1,) * (input.dim() - 2)
    return input * scale.view(shape) + shift.view(shape)


class _Convolved(torch.autograd.Function):
    """A convolution of which only the input is a variable."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, places: list[list[int]], groups: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.places, ctx.groups = places, groups
        stride, padding, dilation = places
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, weight = ctx.saved_tensors
        return _Pulled.apply(slope, x, weight, ctx.places, ctx.groups), None, None, None, None


class _Pulled(torch.autograd.Function):
    """The transpose of that convolution: linear in `slope`, and its derivative is the convolution itself."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, x: Tensor, weight: Tensor, places: list[list[int]], groups: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.places, ctx.groups = places, groups
        none = [0] * len(places[0])
        mask = [True, False, False]
        pulled: Tensor = torch.ops.aten.convolution_backward(
            slope, x, weight, None, *places, False, none, groups, mask
        )[0]
        return pulled

    @staticmethod
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation = ctx.places
        none = [0] * len(stride)
        pushed = torch.convolution(along, weight, None, stride, padding, dilation, False, none, ctx.groups)
        return pushed, None, None, None, None
