"""The rule for every block that has none of its own: least squares on the block's input."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
    Levenberg-Marquardt ends without it, from where Adam came or from the start, whichever fits better. Elsewhere the
    prior stays and Adam has all the passes: second-order steps fit the errors of an inexact target sooner than what is
    right in it. `lr` is relative to the scale of the start. A residual of `tolerance` is the end.
    """

    lr: float = 0.2
    fade: float = 0.01
    tolerance: float = 1e-6

    def invert(self, segment: Segment, target: Target, passes: int) -> Solution:
        """Return the input of least squares. Shapes as in `Target`."""
        early = passes // 2 if target.identified else passes
        first = self._descend(segment, target, early)
        if not target.identified:
            return first
        sound = torch.tensor([row for row, status in enumerate(first.status) if status.kind == "stopped"])
        if not len(sound):
            return first
        nearer = replace(target, start=self._nearer(segment, target, first), prior=None).rows(sound)
        first = replace(first, passes=first.passes + 1)
        return followed(first, polish(segment, nearer, passes - early - 1, self.tolerance), sound)

    def _descend(self, segment: Segment, target: Target, passes: int) -> Solution:
        scale, prior = target.scale, target.prior
        residual = misfit(segment)
        adam = Adam(
            max(passes - 1, 0),
            self.lr,
            penalty_end=self.fade if target.identified else 1.0,
            tolerance=self.tolerance,
        )
        found = adam.solve(
            lambda x, z: residual(scale * x, z),
            target.start / scale,
            (target.features, target.size),
            penalty=None if prior is None else lambda x: prior(scale * x),
            lower=None if target.lower is None else target.lower / scale,
            upper=None if target.upper is None else target.upper / scale,
        )
        return replace(found, x=scale * unknowns(found))

    @torch.no_grad()
    def _nearer(self, segment: Segment, target: Target, found: Solution) -> Tensor:
        """Return the start where it fits better than what was found."""
        fit = misfit(segment)(target.start, (target.features, target.size)).norm(dim=1)
        return torch.where((fit < found.residual).view_as(target.scale), target.start, unknowns(found))


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
