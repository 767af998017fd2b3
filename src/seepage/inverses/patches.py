"""Patch embeddings: a convolution whose windows tile the picture, then tokens, positions and orders of axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..types import Segment

_EXACT = 1e-4


def patchwise(segment: Segment, like: Tensor, cutoff: float) -> Callable[[Tensor], Tensor] | None:
    """Return the map from a change of the tokens to the least change of the picture that makes it, float64 inside.

    None where the segment is no patch embedding. A patch of 3 p^2 numbers gives `width` of them: all come back where
    that is no less, else their part in the row space of the convolution. Class tokens and positions do not change.
    """
    if len(segment.in_shape) != 3:
        return None
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(2, *segment.in_shape, generator=generator).to(like)
    seen = _embedding(segment.module, points)
    if seen is None:
        return None
    conv, given, made, out, x = seen
    step = (out[1] - out[0]).detach()[None]
    (back,) = torch.autograd.grad(out, made, torch.cat([torch.zeros_like(step), step]), retain_graph=True)
    change = (made[1] - made[0]).detach()
    if float((back[1] - change).norm()) > _EXACT * float(change.norm()):
        return None
    with torch.enable_grad():
        # What the convolution is given is the picture, channel by channel on another scale.
        (scale,) = torch.autograd.grad(given.sum(), x)
    rows, columns = conv.kernel_size
    patch = conv.weight.detach().double() * scale[0, :, :rows, :columns].double()
    inverse = torch.linalg.pinv(patch.flatten(1), rtol=cutoff)  # 3 p p, width
    down, right = made.shape[2:]

    def undo(tokens: Float[Tensor, "b ..."]) -> Float[Tensor, "b 3 h w"]:
        changed = _pulled(segment.module, conv, like, segment.in_shape, tokens).double()
        flat = torch.einsum("pw,bwrc->bprc", inverse, changed)
        tiles = flat.view(len(tokens), -1, rows, columns, down, right).permute(0, 1, 4, 2, 5, 3)
        picture = torch.zeros(len(tokens), *segment.in_shape, dtype=tokens.dtype, device=tokens.device)
        whole = tiles.reshape(len(tokens), -1, down * rows, right * columns)
        picture[:, :, : down * rows, : right * columns] = whole.to(tokens.dtype)
        return picture

    return undo


def _pulled(module: nn.Module, conv: nn.Conv2d, like: Tensor, shape: tuple[int, ...], tokens: Tensor) -> Tensor:
    """Return the change of the convolution's output behind a change of the tokens: whose columns are orthonormal."""
    seen = _embedding(module, torch.zeros(len(tokens), *shape).to(like))
    assert seen is not None
    made, out = seen[2], seen[3]
    (back,) = torch.autograd.grad(out, made, tokens)
    return back


def _embedding(module: nn.Module, x: Tensor) -> tuple[nn.Conv2d, Tensor, Tensor, Tensor, Tensor] | None:
    """Return the one convolution that ran, if it tiles, what it was given and gave, the output, and the input."""
    calls: list[tuple[nn.Conv2d, Tensor, Tensor]] = []

    def note(part: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        assert isinstance(part, nn.Conv2d)
        # A segment in the midst of a network is run behind others that its input does not reach.
        if args[0].requires_grad:
            calls.append((part, args[0], out))

    handles = [part.register_forward_hook(note) for part in module.modules() if isinstance(part, nn.Conv2d)]
    x = x.detach().requires_grad_()
    try:
        with torch.enable_grad():
            # A copy, and no bare leaf: the module may change its input in place.
            out = module(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) != 1 or not isinstance(out, Tensor):
        return None
    conv, given, made = calls[0]
    tiles = conv.kernel_size == conv.stride and not any(conv.padding) and conv.groups == 1
    return (conv, given, made, out, x) if tiles and set(conv.dilation) == {1} and conv.kernel_size != (1, 1) else None
