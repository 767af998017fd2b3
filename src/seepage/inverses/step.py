"""What is known of each segment of a prefix before any leak is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..types import Prefix, Segment
from .rule import Inverse, serving

Range = tuple[float | None, float | None]

_RANGES: dict[type[nn.Module], Range] = {
    nn.ReLU: (0.0, None),
    nn.ReLU6: (0.0, 6.0),
    nn.Sigmoid: (0.0, 1.0),
    nn.Hardsigmoid: (0.0, 1.0),
    nn.Softplus: (0.0, None),
    nn.Tanh: (-1.0, 1.0),
}


_BEHIND = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.MaxPool2d)
"""What is joined to the stem before it."""


@dataclass(frozen=True)
class Step:
    """A segment, what a grey picture feeds it, "1 ...", and the range that its input cannot leave.

    `first`: its input is the picture. `known`: the numbers of its input that no picture changes, such as those of a
    class token; None where there are none. `served`: the rule that inverts it, by name.
    """

    segment: Segment
    first: bool
    grey: Float[Tensor, "1 ..."]
    lower: float | None
    upper: float | None
    known: Bool[Tensor, "..."] | None
    served: tuple[str, Inverse]

    @property
    def reshapes(self) -> bool:
        """Whether the segment gives another shape than it takes."""
        return self.segment.in_shape != self.segment.out_shape

    @property
    def loses(self) -> bool:
        """Whether the segment gives fewer numbers than it takes: many inputs then give the same."""
        return math.prod(self.segment.out_shape) < math.prod(self.segment.in_shape)

    def start_at(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return where to look from, what is known put in its place."""
        return x if self.known is None else torch.where(self.known, self.grey, x)


@torch.no_grad()
def steps(prefix: Prefix, grey: Float[Tensor, "1 c h w"], window: int = 1) -> tuple[Step, ...]:
    """Return the steps of a prefix, in its order; `grey` is a grey picture, and pictures lie in [0, 1].

    Each is a segment, or as many in a row as `window` says.
    """
    found: list[Step] = []
    given: Tensor = grey
    other: Tensor = torch.rand(grey.shape, generator=torch.Generator().manual_seed(0)).to(grey)
    bounds: Range = (0.0, 1.0)
    for segment in windows(joined(prefix.segments), window):
        lower, upper = bounds
        found.append(Step(segment, not found, given, lower, upper, _known(given, other), serving(segment)))
        given, bounds = _run(segment.module, given)
        other = segment.module(other)
    return tuple(found)


def _known(one: Tensor, other: Tensor) -> Bool[Tensor, "t d"] | None:
    """Return which tokens are the same for two pictures; elsewhere it is an activation that is off for both."""
    if one.ndim != 3:
        return None
    same = (one == other).all(2)[0]
    return same[:, None].expand(one.shape[1:]) if bool(same.any()) else None


def joined(segments: Sequence[Segment]) -> list[Segment]:
    """Return the segments, a norm, an activation and a max-pooling made one with the stem before them.

    Alone the latter two leave open much of what they were given; with the stem they are inequalities on a picture.
    """
    found: list[Segment] = []
    for segment in segments:
        before = found[-1] if found else None
        if before is not None and before.kind == "stem" and isinstance(segment.module, _BEHIND):
            whole = nn.Sequential(before.module, segment.module)
            found[-1] = Segment(segment.name, "stem", whole, before.in_shape, segment.out_shape)
        else:
            found.append(segment)
    return found


def windows(segments: Sequence[Segment], size: int) -> list[Segment]:
    """Return the segments, `size` in a row made one; the last is whole, the first may be of fewer.

    A window is inverted as its last segment is, where that rule fits it: what it ends in is what its output shows.
    """
    found: list[Segment] = []
    for stop in range(len(segments), 0, -size):
        group = segments[max(stop - size, 0) : stop]
        whole = nn.Sequential(*(segment.module for segment in group))
        last = group[-1]
        one = len(group) == 1
        found.append(last if one else Segment(last.name, last.kind, whole, group[0].in_shape, last.out_shape))
    return found[::-1]


def _run(module: nn.Module, x: Tensor) -> tuple[Tensor, Range]:
    """Return what a module gives, and the range of the activation that it ends in, if it ends in one."""
    last: list[tuple[Range, Tensor]] = []

    def note(part: nn.Module, args: Any, out: Any) -> None:
        last.clear()
        if type(part) in _RANGES and isinstance(out, Tensor):
            # A copy, because what comes after the activation may happen in place.
            last.append((_RANGES[type(part)], out.clone()))

    leaves = [part for part in module.modules() if next(part.children(), None) is None]
    handles = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        out: Tensor = module(x)
    finally:
        for handle in handles:
            handle.remove()
    # An activation was the end only if nothing was done to what it gave.
    if last and last[0][1].shape == out.shape and torch.equal(last[0][1], out):
        return out, last[0][0]
    return out, (None, None)
