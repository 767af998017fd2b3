"""The rule for every block that has none of its own: least squares on the block's input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..registry import register
from ..solvers import Adam, LevenbergMarquardt, Polish, Solution, Solver
from ..types import Segment
from .rule import FALLBACK, Fit, Target, followed, plain, unknowns

_FEWEST_INNER, _MOST_INNER = 8, 100
# What a Levenberg-Marquardt step costs beside its CG products: the gradient, two curvatures, at most four trial points.
_OVERHEAD = 7
# Near the answer steps are short and well damped already.
_FINE, _LIGHT = 20, 1e-6


@register("inverse", FALLBACK)
@dataclass(frozen=True)
class Generic:
    """Minimise |segment(x) - y|^2 / |y|^2 + prior(x) between the bounds, by Adam, then by Levenberg-Marquardt.

    Where the target is identified the prior fades to `fade` of itself over Adam's half of the passes, and
    Levenberg-Marquardt ends without it, from where Adam came or from the start, whichever fits better. Elsewhere the
    prior stays and Adam has all the passes: second-order steps fit the errors of an inexact target sooner than what is
    right in it. `lr` is relative to the scale of the start. A residual of `tolerance` is the end.
    """

    recovers: ClassVar[str] = "what least squares and the prior find"

    lr: float = 0.2
    fade: float = 0.01
    tolerance: float = 1e-6

    def invert(self, segment: Segment, target: Target, passes: int) -> Solution:
        """Return the input of least squares. Shapes as in `Target`."""
        return self.minimise(plain(segment), target, passes, finer=True)

    def minimise(self, fit: Callable[[Target], Fit], target: Target, passes: int, *, finer: bool = False) -> Solution:
        """Return where the norm of another residual is least; `fit` makes it, relative to the features' norm.

        `finer`: the residual computes in float64 where it is given that.
        """
        early = passes // 2 if target.identified else passes
        first = self._descend(fit, target, early)
        if not target.identified:
            return first
        sound = torch.tensor([row for row, status in enumerate(first.status) if status.kind == "stopped"])
        if not len(sound):
            return first
        nearer = replace(target, start=self._nearer(fit, target, first), prior=None).rows(sound)
        first = replace(first, passes=first.passes + 1)
        return followed(first, polish(fit, nearer, passes - early - 1, self.tolerance, finer=finer), sound)

    def _descend(self, fit: Callable[[Target], Fit], target: Target, passes: int) -> Solution:
        scale, prior = target.scale, target.prior
        residual, given = fit(target)
        adam = Adam(
            max(passes - 1, 0),
            self.lr,
            penalty_end=self.fade if target.identified else 1.0,
            tolerance=self.tolerance,
        )
        found = adam.solve(
            lambda x, z: residual(scale * x, z),
            target.start / scale,
            given,
            penalty=None if prior is None else lambda x: prior(scale * x),
            lower=None if target.lower is None else target.lower / scale,
            upper=None if target.upper is None else target.upper / scale,
        )
        return replace(found, x=scale * unknowns(found))

    @torch.no_grad()
    def _nearer(self, fit: Callable[[Target], Fit], target: Target, found: Solution) -> Tensor:
        """Return the start where it fits better than what was found."""
        residual, given = fit(target)
        missed = residual(target.start, given).norm(dim=1)
        return torch.where((missed < found.residual).view_as(target.scale), target.start, unknowns(found))


def polish(
    fit: Callable[[Target], Fit], target: Target, passes: int, tolerance: float, *, finer: bool = False
) -> Solution:
    """Minimise the same from the target's start by Levenberg-Marquardt alone, to a relative residual of `tolerance`.

    `finer`: the fit computes in float64 where it is given that, and a sixth of the passes are kept for what float32
    rounds.
    """
    late = passes // 6 if finer else 0
    inner = min(max(passes // 8, _FEWEST_INNER), _MOST_INNER)
    solver: Solver = LevenbergMarquardt((passes - late) // (inner + _OVERHEAD), inner, tolerance=tolerance)
    if finer:
        second = LevenbergMarquardt(late // (_FINE + _OVERHEAD), _FINE, damping=_LIGHT, tolerance=tolerance)
        solver = Polish(solver, second)
    residual, given = fit(target)
    return solver.solve(
        residual,
        target.start,
        given,
        penalty=target.prior,
        lower=target.lower,
        upper=target.upper,
    )
