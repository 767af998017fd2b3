"""The rule for every block that has none of its own: least squares on the block's input."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..registry import register
from ..solvers import Adam, LevenbergMarquardt
from ..types import Segment, Solution
from .rule import FALLBACK, Target, followed, misfit, unknowns

_FEWEST_INNER, _MOST_INNER = 8, 100
# What a Levenberg-Marquardt step costs beside its CG products: the gradient, two curvatures, at most four trial points.
_OVERHEAD = 7


@register("inverse", FALLBACK)
@dataclass(frozen=True)
class Generic:
    """Minimise |segment(x) - y|^2 / |y|^2 + prior(x) between the bounds, by Adam, then by Levenberg-Marquardt.

    Where the target is identified the prior fades to `fade` of itself over Adam's half of the passes, and
    Levenberg-Marquardt ends without it, at a residual of `tolerance`. Elsewhere the prior stays and Adam has all the
    passes: second-order steps fit the errors of an inexact target sooner than what is right in it. `lr` is in the
    unknowns' unit.
    """

    lr: float = 0.1
    fade: float = 0.01
    tolerance: float = 1e-7

    def invert(self, segment: Segment, target: Target, passes: int) -> Solution:
        """Return the input of least squares. Shapes as in `Target`."""
        early = passes // 2 if target.identified else passes
        adam = Adam(max(early - 1, 0), self.lr, penalty_end=self.fade if target.identified else 1.0)
        first = adam.solve(
            misfit(segment),
            target.start,
            (target.features, target.size),
            penalty=target.prior,
            lower=target.lower,
            upper=target.upper,
        )
        if not target.identified:
            return first
        sound = torch.tensor([row for row, status in enumerate(first.status) if status.kind != "failed"])
        if not len(sound):
            return first
        onward = replace(target, start=unknowns(first), prior=None).rows(sound)
        return followed(first, polish(segment, onward, passes - early, self.tolerance), sound)


def polish(segment: Segment, target: Target, passes: int, tolerance: float) -> Solution:
    """Minimise the same from the target's start by Levenberg-Marquardt alone, to a relative residual of `tolerance`."""
    inner = min(max(passes // 8, _FEWEST_INNER), _MOST_INNER)
    solver = LevenbergMarquardt(passes // (inner + _OVERHEAD), inner, tolerance=tolerance)
    return solver.solve(
        misfit(segment),
        target.start,
        (target.features, target.size),
        penalty=target.prior,
        lower=target.lower,
        upper=target.upper,
    )
