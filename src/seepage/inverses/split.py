"""The paper's own problem with its constraints as penalties, as the authors' scripts solve it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..registry import register
from ..solvers import Adam, Solution
from ..types import Segment
from .activations import RELUS, Activations, activations, grouped
from .rule import Target, misfit

# What a solve costs beside its steps: finding the activations, judging the last iterate twice.
_OVERHEAD = 3
# The relative residual that is rounding: Adam, whose steps have one size, would walk away from there.
_SOLVED = 1e-5


@register("inverse", "split")
@dataclass(frozen=True)
class Split:
    """Minimise |y - block(x; p)|^2 + weight (sum |a - p + n|^2 + sum <p, n>^2) over x and p, n >= 0 by Adam.

    a is what a ReLU of the block is given, p what it is taken to give. With one ReLU between W1 and W2 this is
    |y - S(x) - W2 p|^2 under W1 x = p - n and <p, n> = 0, both as penalties (Arif et al. 2025; weight and rate are
    those of the authors' scripts). Every ReLU has its own p and n; a ReLU6 has q >= 0 too, with a = p - n + q,
    p <= 6 and <6 - p, q> = 0. All start where x's start puts them. A block without ReLU modules is plain least squares.
    Both sides are divided by |y|; a row ends where all of it is zero to rounding.
    """

    recovers: ClassVar[str] = "what the split problem and its penalties find"

    weight: float = 100.0
    lr: float = 0.01

    def invert(self, segment: Segment, target: Target, passes: int) -> Solution:
        """Return the block's input; the target's prior is not used. Shapes as in `Target`."""
        seen = activations(segment.module, target.start, RELUS)
        parts, low, high = [target.start], [target.lower], [target.upper]
        for split in seen.calls:
            parts += split.start(seen.given[split.call].detach())
            low += [0.0] * split.parts
            high += split.upper

        def residual(x: tuple[Tensor, ...], z: tuple[Tensor, Tensor]) -> Tensor:
            y, size = z
            groups = grouped(x[1:], seen.calls)
            run = Activations(RELUS, {split.call: split.gives(group) for split, group in groups})
            rows = [(run.through(segment.module, x[0]) - y).flatten(1)]
            for split, group in groups:
                inner = [(one * other).sum(1, keepdim=True) for one, other in split.pairs(group)]
                rows += [self.weight**0.5 * row for row in (split.missed(run.given[split.call], group), *inner)]
            return torch.cat(rows, 1) / size

        adam = Adam(max(passes - _OVERHEAD, 0), self.lr, "constant", tolerance=_SOLVED)
        z = (target.features, target.size)
        found = adam.solve(residual, tuple(parts), z, lower=tuple(low), upper=tuple(high))
        x = found.x[0]
        with torch.no_grad():
            norm = misfit(segment)(x, z).norm(dim=1)
        return Solution(x, norm, found.status, found.steps, found.passes + _OVERHEAD - 1)
