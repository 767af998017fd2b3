"""Pooling: an average gives each window's mean, a maximum bounds every number of its window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..registry import register
from ..solvers import Adam, Solution
from ..types import Segment, Status
from .affine import Affine
from .ending import pooled, roofs
from .generic import Generic
from .rule import Target, misfit, unknowns

_OVERHEAD = 2


@register("inverse", "pool")
@dataclass(frozen=True)
class Pool:
    """Return what a pooling leaves of its input, and let the prior decide what it does not.

    An average (over windows, or of all places): each window's mean comes back exactly, the shape within it from the
    start and the prior, by the rule for affine maps. A maximum: no number of a window exceeds it, so that the smallest
    maximum among the windows that a place lies in bounds it, and the map of those bounds is itself an input, the
    largest of all, that explains every output. With a prior the answer is looked for below it, by Adam; without one, it
    is the answer. Poolings of other kinds (attention) are left to the generic rule.
    """

    recovers: ClassVar[str] = "each window's mean, or a bound on its numbers"

    lr: float = 0.2
    tolerance: float = 1e-6

    def fits(self, segment: Segment) -> bool:
        """Return whether this is a max-pooling by windows, or an average."""
        return _plain(segment.module) or Affine().fits(segment)

    def invert(self, segment: Segment, target: Target, passes: int) -> Solution:
        """Return the pooling's input. Shapes as in `Target`."""
        module = segment.module
        if not _plain(module):
            inverse = Affine() if Affine().fits(segment) else Generic()
            return inverse.invert(segment, target, passes - 1)
        assert isinstance(module, nn.MaxPool2d)
        highest = roofs(module, target.start, target.features)
        highest = torch.where(torch.isfinite(highest), highest, target.start)
        found = self._below(module, highest, target, passes - _OVERHEAD)
        with torch.no_grad():
            residual = misfit(segment)(unknowns(found), (target.features, target.size)).norm(dim=1)
        status = tuple(
            one
            if one.kind == "failed"
            else Status("converged" if missed <= 1e-6 else "stopped", f"residual {missed:.3g}")
            for one, missed in zip(found.status, residual.tolist(), strict=True)
        )
        return replace(found, residual=residual, status=status, passes=found.passes + _OVERHEAD)

    def _below(self, module: nn.MaxPool2d, highest: Tensor, target: Target, passes: int) -> Solution:
        prior, scale = target.prior, target.scale
        adam = Adam(max(passes - 1, 0) if prior is not None else 0, self.lr)

        def residual(x: Tensor, z: tuple[Tensor, Tensor]) -> Tensor:
            return (pooled(module, scale * x) - z[0]).flatten(1) / z[1]

        found = adam.solve(
            residual,
            (highest if prior is None else target.start) / scale,
            (target.features, target.size),
            penalty=None if prior is None else lambda x: prior(scale * x),
            lower=None if target.lower is None else target.lower / scale,
            upper=highest / scale,
        )
        return replace(found, x=scale * unknowns(found))


def _plain(module: nn.Module) -> bool:
    return type(module) is nn.MaxPool2d and not module.return_indices
