"""What is left of a victim after a cut, as one affine map of the features; and what a deeper tail would cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import SeepageError, Shape, SplitModel
from ..victims.cut import CutError, cut
from ..victims.layers import layers
from ..victims.victim import Victim

_TOLERANCE = 1e-4
_SCALES = (0.1, 1.0, 30.0, 1000.0)
"""Of the spread of a noise picture's features: a clamp that nothing reaches at one is reached at another."""
_LEVELS = 19
"""Products one after another that the longest chain at degree 32,768 has room for at 40 bits each."""
_ROTATION = 0.25
"""Processor seconds of one rotation there (TenSEAL 0.3.18, one core, x86_64)."""
_COMPARISON = 14
"""Levels of x * sign(x) to 13 bits, sign by polynomials of degree 15, 15 and 27 (Lee et al. 2022, ICML)."""
_DEPTHS: Mapping[str, int] = {
    **dict.fromkeys(
        ("Relu", "Hardtanh", "LeakyRelu", "Clamp", "Hardswish", "Hardsigmoid", "Prelu", "Elu"), _COMPARISON
    ),
    **dict.fromkeys(("Gelu", "Silu", "Sigmoid", "Tanh", "Exp", "Softplus", "Erf"), 5),  # a polynomial of degree 27
    **dict.fromkeys(("Softmax", "LogSoftmax", "NativeLayerNorm", "NativeGroupNorm", "Rsqrt", "Div", "Pow"), 10),
    **dict.fromkeys(("Convolution", "Addmm", "Mm", "Mul", "Bmm", "Mean", "AvgPool2D", "AdaptiveAvgPool2D"), 1),
}
"""Levels by what autograd calls a step. A batch norm is folded into its neighbours, and a sum costs none."""
_SMOOTH = 5


class TailError(SeepageError):
    """A tail that is not run on encrypted features: the message says what it would cost."""


@dataclass(frozen=True)
class AffineTail:
    """outputs = matrix @ (features summed over the pooled axes) + bias.

    `shape` is a leak's, without the batch; `pooled` are its axes over which every output weighs alike, so that a server
    adds before it multiplies. `matrix` has a column for each of the `channels` that the other axes leave.
    """

    matrix: Float[Tensor, "outputs channels"]
    bias: Float[Tensor, "outputs"]
    shape: Shape
    pooled: tuple[int, ...]

    @property
    def channels(self) -> int:
        """How many numbers are left of the features after the sum."""
        return self.matrix.shape[1]

    @property
    def kind(self) -> str:
        """What it is in a word or two."""
        return "pool and linear" if self.pooled else "linear"


@dataclass(frozen=True)
class Toll:
    """What a tail costs on ciphertexts, roughly: products one after another, rotations, and seconds of these alone."""

    depth: int
    rotations: int

    @property
    def seconds(self) -> float:
        """Of one core, a picture; products, and the bootstrapping that depth beyond a chain needs, not counted."""
        return self.rotations * _ROTATION

    def __str__(self) -> str:
        room = f"{_LEVELS} levels without bootstrapping, which TenSEAL lacks"
        return (
            f"multiplicative depth about {self.depth} (its longest chain has {room}), some {self.rotations:,} "
            f"rotations, and these alone about {_duration(self.seconds)} a picture on one core"
        )


def spread_out(features: Float[Tensor, "b ..."], pooled: tuple[int, ...]) -> Float[Tensor, "b positions channels"]:
    """Bring the pooled axes of a leak together, and the others."""
    kept = [axis for axis in range(features.ndim - 1) if axis not in pooled]
    positions = math.prod(features.shape[axis + 1] for axis in pooled)
    order = [0, *(axis + 1 for axis in (*pooled, *kept))]
    return features.permute(order).reshape(len(features), positions, -1)


@torch.no_grad()
def affine_tail(victim: Victim, split: SplitModel) -> AffineTail:
    """Return the tail as an affine map, found from its outputs and gradients and checked at other features.

    Raises:
        TailError: it is not affine in the features; the message estimates its cost and names the earliest cut of the
            victim's block boundaries whose tail is.
    """
    shape, spread = _leaks(split)
    draws = torch.Generator().manual_seed(0)
    if not _additive(split, shape, spread, draws):
        raise TailError(
            f"{split.name} from {split.layer!r} on is not affine in the features: {toll(split, shape)}"
            f"{_nearest(victim)}"
        )
    weight, bias = _extract(split, shape)
    for scale in _SCALES:
        features = scale * spread * torch.randn(2, *shape, generator=draws)
        found = _outputs(split, features)
        error = (features.flatten(1) @ weight.T + bias - found).abs().max()
        if not error <= _TOLERANCE * found.abs().max():
            raise TailError(f"{split.name} from {split.layer!r} on is no affine map: it is off by {float(error):.2g}")
    by_axis = weight.view(-1, *shape)
    pooled = tuple(axis for axis, size in enumerate(shape) if size > 1 and _alike(by_axis, axis + 1))
    matrix = spread_out(by_axis, pooled).mean(1)
    if not matrix.any():
        raise TailError(f"{split.name} from {split.layer!r} on gives the same for all features")
    return AffineTail(matrix, bias, shape, pooled)


def toll(split: SplitModel, shape: Shape) -> Toll:
    """Return what the tail would cost, from the steps that autograd sees between the leak and the outputs."""
    leaf = torch.zeros(1, *shape, requires_grad=True)
    with torch.enable_grad():
        outputs = split.suffix(leaf)
    depths: dict[Any, int] = {}
    rotations = 0
    for node in _steps(outputs.grad_fn):
        name = node.name().partition("Backward")[0]
        before = [depths[source] for source, _ in node.next_functions if source is not None]
        depths[node] = max(before, default=0) + _depth(name, node)
        rotations += _rotations(name, node)
    return Toll(depths.get(outputs.grad_fn, 0), rotations)


def _steps(last: Any) -> Iterator[Any]:
    """Yield the steps that lead to the last one, each after those before it."""
    stack, seen = [(last, False)], set()
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node is not None and node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(source, False) for source, _ in node.next_functions]


def _depth(name: str, node: Any) -> int:
    if name.startswith("MaxPool"):
        return _COMPARISON * math.ceil(math.log2(max(2, math.prod(_kernel(node)))))
    if name.startswith("ScaledDotProduct"):
        return _DEPTHS["Softmax"] + 2
    return _DEPTHS.get(name, 0)


def _rotations(name: str, node: Any) -> int:
    """Count those of a matrix by its outputs, of a convolution by its taps and, in and out, by its channels."""
    if name == "Convolution":
        outputs, inputs, *kernel = node._saved_weight.shape
        return int(math.prod(kernel) - 1 + outputs * math.ceil(math.log2(inputs)))
    if name in ("Addmm", "Mm"):
        matrix = node._saved_mat2
        return 0 if matrix is None else 2 * math.ceil(math.sqrt(matrix.shape[1]))
    if name.startswith("MaxPool"):
        return math.prod(_kernel(node)) - 1
    return 1 if _DEPTHS.get(name, 0) > _SMOOTH and not name.startswith(("Relu", "Hardtanh")) else 0


def _kernel(node: Any) -> tuple[int, ...]:
    return tuple(node._saved_kernel_size)


def _leaks(split: SplitModel) -> tuple[Shape, float]:
    """Return a leak's shape without the batch, and its spread on noise."""
    noise = torch.rand(1, *split.image_shape, generator=torch.Generator().manual_seed(1))
    features = split.leak(noise).features
    return tuple(features.shape[1:]), float(features.square().mean().sqrt()) or 1.0


def _outputs(split: SplitModel, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b outputs"]:
    found: Tensor = split.suffix(features)
    return found.flatten(1)


def _additive(split: SplitModel, shape: Shape, spread: float, draws: torch.Generator) -> bool:
    """Say whether f(a + b) + f(0) = f(a) + f(b), features of every size and sign considered."""
    (origin,) = _outputs(split, torch.zeros(1, *shape))
    for scale in _SCALES:
        first, second = scale * spread * torch.randn(2, *shape, generator=draws)
        parts = _outputs(split, torch.stack([first, second, first + second]))
        error = (parts[2] + origin - parts[0] - parts[1]).abs().max()
        if not error <= _TOLERANCE * parts.abs().max().clamp(min=1e-30):
            return False
    return True


def _extract(split: SplitModel, shape: Shape) -> tuple[Float[Tensor, "outputs features"], Float[Tensor, "outputs"]]:
    leaf = torch.zeros(1, *shape, requires_grad=True)
    with torch.enable_grad():
        (outputs,) = _outputs(split, leaf)
        rows = [torch.autograd.grad(output, leaf, retain_graph=True)[0].flatten() for output in outputs]
    return torch.stack(rows), outputs.detach()


def _alike(weight: Tensor, axis: int) -> bool:
    return bool((weight - weight.mean(axis, keepdim=True)).abs().max() <= _TOLERANCE * weight.abs().max())


def _nearest(victim: Victim) -> str:
    """Name the earliest of the block boundaries whose tail is affine, in a few words."""
    found = None
    for layer in reversed(layers(victim)):
        try:
            split = cut(victim, layer.name)
        except CutError:
            break
        if not _additive(split, *_leaks(split), torch.Generator().manual_seed(0)):
            break
        found = layer.name
    return "" if found is None else f"; the tail from {found!r} on is affine"


def _duration(seconds: float) -> str:
    for size, word in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} seconds"
