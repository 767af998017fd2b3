"""Blocks that end in a ReLU: their outputs at zero are inequalities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..registry import register
from ..solvers import Solution
from ..types import Segment
from .ending import Ending, ending
from .generic import Generic
from .rule import Fit, Target, misfit, unknowns

# Finding the ending, and judging the result by what the block gives.
_OVERHEAD = 3


@register("inverse", "stem")
@register("inverse", "conv")
@register("inverse", "post-activation")
@dataclass(frozen=True)
class Rectified:
    """Solve clamp(z(x), 0, ceiling) = y by what y says of z: equations between the kinks, inequalities at them.

    For post-activation blocks (He et al. 2015), z = S(x) + F(x), and convolutions with a ReLU or ReLU6 after them; a
    max-pooling behind the activation adds that no z exceeds its window's maximum. A dead output still pulls where z is
    on the wrong side, and costs nothing on the right one, where |relu(z) - y|^2 is flat on both. Minimised as by the
    generic rule, between the target's bounds. With about half of the outputs dead the equations are often fewer than
    the unknowns, also where the shape stays, and where it shrinks they always are: an exact target is followed to the
    end all the same, the fading prior choosing among what the equations leave open.
    """

    recovers: ClassVar[str] = "all of it, where the outputs above zero are no fewer than the unknowns above theirs"

    def fits(self, segment: Segment) -> bool:
        """Return whether the block ends in a ReLU or ReLU6 module."""
        like = next(iter(segment.module.parameters()), torch.zeros(()))
        generator = torch.Generator().manual_seed(0)
        return ending(segment.module, torch.rand(1, *segment.in_shape, generator=generator).to(like)) is not None

    def invert(self, segment: Segment, target: Target, passes: int) -> Solution:
        """Return the block's input. Shapes as in `Target`."""
        end = ending(segment.module, target.start)
        guessed = not (target.exact or target.identified)
        # Between two kinks a guessed target is on one too often: MobileNetV2's stem comes back 6 dB better without.
        if end is None or (guessed and end.ceiling is not None):
            return Generic().invert(segment, target, passes - 1)
        followed = replace(target, identified=target.identified or target.exact)
        found = Generic().minimise(_fit(end), followed, passes - _OVERHEAD)
        with torch.no_grad():
            given = misfit(segment)(unknowns(found), (target.features, target.size))
        return replace(found, residual=given.norm(dim=1), passes=found.passes + _OVERHEAD)


def _fit(end: Ending) -> Callable[[Target], Fit]:
    def fit(target: Target) -> Fit:
        y, size = target.features, target.size
        if end.pool is None:
            return lambda x, z: end.missed(end.before(x), z[0], None) / z[1], (y, size)
        with torch.no_grad():
            roofs = end.roofs(end.before(target.start), y)
        assert roofs is not None
        return lambda x, z: end.missed(end.before(x), z[0], z[2]) / z[1], (y, size, roofs)

    return fit
