"""The paper's own problem with its constraints as constraints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..registry import register
from ..solvers import Solution
from ..solvers.augmented_lagrangian import ROUND, STEP, AugmentedLagrangian
from ..types import Segment
from .activations import PIECEWISE, Activations, activations, grouped
from .rule import Target, misfit

# What a solve costs beside the solver: finding the activations, judging the last iterate.
_OVERHEAD = 2
# A round of fewer passes does not move.
_LEAST = 50


@register("inverse", "constrained")
@dataclass(frozen=True)
class Constrained:
    """Minimise |y - block(x; p, n)|^2 over x and p, n >= 0 subject to a = p - n and <p, n> = 0, by multipliers.

    a is what an activation of the block is given (Arif et al. 2025, the problem of each block). As p and n are never
    negative, <p, n> = 0 says that one of the two is zero in every place, and so it is put: p + n = sqrt(p^2 + n^2), the
    function of Fischer (1992) and Burmeister, whose slope does not vanish where the product's does. Every call of a
    ReLU, a ReLU6, a PReLU or a leaky ReLU has its own p and n; a PReLU of slope w gives p - w n; a ReLU6 has q >= 0
    too, with a = p - n + q, p <= 6 and <6 - p, q> = 0. All start where x's start puts them, which meets the
    constraints. A ReLU at the block's end makes p the target itself, and n what the leak does not say. Everything else
    in the block is run as it is: norms, shortcuts, other activations. Constraints are relative to what the activations
    are given at the start.
    """

    rounds: int = 6
    inner: int = 40
    weight: float = 0.1
    tolerance: float = 1e-6

    def invert(self, segment: Segment, target: Target, passes: int) -> Solution:
        """Return the block's input; the target's prior is not used. Shapes as in `Target`."""
        seen = activations(segment.module, target.start, PIECEWISE)
        parts, low, high = [target.start], [target.lower], [target.upper]
        scales = []
        for split in seen.calls:
            a = seen.given[split.call].detach()
            parts += split.start(a)
            low += [0.0] * split.parts
            high += split.upper
            scales.append(_scale(a, target.features))

        def parted(x: tuple[Tensor, ...], z: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            y, size, *scales = z
            groups = grouped(x[1:], seen.calls)
            run = Activations(PIECEWISE, {split.call: split.gives(group) for split, group in groups})
            f = (run.through(segment.module, x[0]) - y).flatten(1) / size
            missed = [f[:, :0]]
            for (split, group), scale in zip(groups, scales, strict=True):
                missed += [split.missed(run.given[split.call], group) / scale]
                missed += [_either(one, other) / scale for one, other in split.pairs(group)]
            return f, torch.cat(missed, 1)

        z = (target.features, target.size, *scales)
        found = self._solver(passes - _OVERHEAD).solve(parted, tuple(parts), z, lower=tuple(low), upper=tuple(high))
        x = found.x[0]
        with torch.no_grad():
            norm = misfit(segment)(x, (target.features, target.size)).norm(dim=1)
        return Solution(x, norm, found.status, found.steps, found.passes + _OVERHEAD)

    def _solver(self, passes: int) -> AugmentedLagrangian:
        """Return the solver with as many rounds, steps and products as the passes allow, in this order."""
        rounds = min(self.rounds, max(1, passes // _LEAST))
        each = (passes - 1) // rounds - ROUND
        inner = min(self.inner, max(1, each // 2 - STEP))
        return AugmentedLagrangian(rounds, max(0, each // (inner + STEP)), inner, self.weight, tolerance=self.tolerance)


def _either(one: Tensor, other: Tensor) -> Tensor:
    """Return one + other - sqrt(one^2 + other^2), written so that nothing cancels."""
    both = one + other + (one.square() + other.square()).clamp_min(torch.finfo(one.dtype).tiny).sqrt()
    return 2 * one * other / both


def _scale(a: Tensor, y: Tensor) -> Tensor:
    """Return the norm of what an activation is given, "b 1", at least that of numbers of the size of y's."""
    expected = y.flatten(1).norm(dim=1, keepdim=True) * (a[0].numel() / y[0].numel()) ** 0.5
    found: Tensor = torch.maximum(a.flatten(1).norm(dim=1, keepdim=True), expected)
    return found.clamp_min(torch.finfo(torch.float32).tiny)
