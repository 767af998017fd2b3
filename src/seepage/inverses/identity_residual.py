"""Residual blocks with nothing after the addition: pre-activation, linear bottlenecks, ConvNeXt, faces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..registry import register
from ..solvers import Solution
from ..solvers.anderson import Anderson
from ..types import Segment
from .generic import Generic, polish
from .rule import Target, followed, in_double, misfit, plain, unknowns

# Closer than this the answer that was stalled at is worth more than another start.
_NEAR = 1e-2
# Float64 goes on to this share of the tolerance, in at most so many runs.
_FINER, _MOST, _FEWEST = 1e-3, 30, 4


@register("inverse", "residual")
@register("inverse", "face-residual")
@register("inverse", "convnext")
@register("inverse", "linear-bottleneck")
@register("inverse", "pre-activation")
@dataclass(frozen=True)
class IdentityResidual:
    """Solve x + F(x) = y as the fixed point x <- y - F(x), accelerated; where that stalls, follow a fading prior.

    He et al. 2016 (pre-activation), Sandler et al. 2018 (linear bottlenecks), Deng et al. 2019 (faces) and ConvNeXt
    blocks. With nothing after the addition y is x, displaced by F: the paper's hypothesis in its purest
    form, so the walk starts from y, and a third of the passes go to Anderson(`history`), forward runs alone. Trained
    blocks may defeat it. Where it stalled near an answer, Levenberg-Marquardt goes on from there; elsewhere least
    squares from y has minima that are none, and the row starts again from y, by the generic rule where there is a
    prior, whose fading leads past some of them, else by Levenberg-Marquardt. An answer is taken further in float64,
    where the residual's rounding times the block's condition would show. The block must be called with an exact y: one
    that no input gives is fitted by the generic rule, as are blocks without a skip, which give other shapes than they
    take. `tolerance` is relative to y.
    """

    recovers: ClassVar[str] = "all of it, where the residual has one fixed point"

    history: int = 8
    tolerance: float = 1e-6

    def fits(self, segment: Segment) -> bool:
        """Return whether the block keeps its shape, hence has a skip to follow."""
        return segment.in_shape == segment.out_shape

    def invert(self, segment: Segment, target: Target, passes: int) -> Solution:
        """Return the block's input. Shapes as in `Target`."""
        if not self.fits(segment) or not target.identified:
            return Generic().invert(segment, target, passes)
        early = passes // 3
        anderson = Anderson(max(early - 1, 0), self.history, self.tolerance)
        found = anderson.solve(
            lambda x, y: segment.module(x) - y, target.start, target.features, lower=target.lower, upper=target.upper
        )
        found, runs = self._finer(segment, target, found, passes // 6)
        ended = torch.tensor([status.kind == "converged" for status in found.status], device=found.residual.device)
        near = found.residual <= _NEAR
        onward = replace(target, start=unknowns(found))
        groups = [(~ended & near).nonzero().flatten(), (~ended & ~near).nonzero().flatten()]
        # Rows that go different ways are run one after the other, and share what is left.
        left = (passes - early - runs) // max(sum(len(rows) > 0 for rows in groups), 1)
        for rows in groups:
            if not len(rows):
                continue
            if near[rows[0]] or target.prior is None:
                closer = replace(onward if near[rows[0]] else target, prior=None).rows(rows)
                second = polish(plain(segment), closer, left, self.tolerance, finer=True)
            else:
                second = Generic(tolerance=self.tolerance).invert(segment, target.rows(rows), left)
            found = followed(found, second, rows)
        return found

    def _finer(self, segment: Segment, target: Target, found: Solution, passes: int) -> tuple[Solution, int]:
        """Return the answers that converged as float64 goes on from them, residuals relative to y, and the runs."""
        found = replace(found, residual=found.residual / target.size[:, 0])
        rows = torch.tensor([row for row, status in enumerate(found.status) if status.kind == "converged"])
        if not len(rows) or passes < _FEWEST:
            return found, 0
        wide, given = in_double(segment), target.features[rows].double()
        anderson = Anderson(min(passes - 2, _MOST), self.history, self.tolerance * _FINER)
        closer = anderson.solve(
            lambda x, y: wide.module(x) - y,
            unknowns(found)[rows].double(),
            given,
            lower=target.lower,
            upper=target.upper,
        )
        x = unknowns(found).clone()
        x[rows] = unknowns(closer).to(x)
        passes_spent = found.passes.clone()
        passes_spent[rows] += closer.passes + 1
        with torch.no_grad():
            residual = misfit(segment)(x, (target.features, target.size)).norm(dim=1)
        finer = replace(found, x=x, residual=torch.minimum(found.residual, residual), passes=passes_spent)
        return finer, int(closer.passes.max()) + 1
