"""Residual blocks with nothing after the addition: pre-activation, linear bottlenecks, ConvNeXt, transformers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..registry import register
from ..solvers.anderson import Anderson
from ..types import Segment, Solution
from .generic import Generic, polish
from .rule import Target, followed


@register("inverse", "transformer")
@register("inverse", "convnext")
@register("inverse", "linear-bottleneck")
@register("inverse", "pre-activation")
@dataclass(frozen=True)
class IdentityResidual:
    """Solve x + F(x) = y as the fixed point x <- y - F(x), accelerated; by Levenberg-Marquardt where that stalls.

    He et al. 2016 (pre-activation), Sandler et al. 2018 (linear bottlenecks), ConvNeXt and transformer blocks. With
    nothing after the addition y is x, displaced by F: the paper's hypothesis in its purest form, so the walk starts
    from y, and a third of the passes go to Anderson(`history`), forward runs alone. Trained blocks may defeat it; those
    rows start again from y. The block must be called with an exact y: one that no input gives is fitted by the generic
    rule, as are blocks without a skip, which give other shapes than they take.
    `tolerance` is relative to y.
    """

    history: int = 8
    tolerance: float = 1e-6

    def invert(self, segment: Segment, target: Target, passes: int) -> Solution:
        """Return the block's input. Shapes as in `Target`."""
        if segment.in_shape != segment.out_shape or not target.identified:
            return Generic().invert(segment, target, passes)
        early = passes // 3
        anderson = Anderson(max(early - 1, 0), self.history, self.tolerance)
        found = anderson.solve(
            lambda x, y: segment.module(x) - y, target.start, target.features, lower=target.lower, upper=target.upper
        )
        found = replace(found, residual=found.residual / target.size[:, 0])
        rest = torch.tensor([row for row, status in enumerate(found.status) if status.kind != "converged"])
        if not len(rest):
            return found
        onward = replace(target, prior=None).rows(rest)
        return followed(found, polish(segment, onward, passes - early, self.tolerance), rest)
