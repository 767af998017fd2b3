"""Mean, spread and covariance of the leaks that a defense is fitted on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import Leak
from .base import DefenseError, channel_axis


def rows_of(leaks: Iterator[Leak]) -> Float[Tensor, "n ..."]:
    """Return the finite rows of some leaks.

    Raises:
        DefenseError: there is none.
    """
    rows = [row for leak in leaks for row in leak.features.detach().float() if torch.isfinite(row).all()]
    if not rows:
        raise DefenseError("there is no finite leak to fit the defense on")
    return torch.stack(rows)


def spread_of(leaks: Iterator[Leak]) -> float:
    """Return the standard deviation of all numbers of some leaks.

    Raises:
        DefenseError: there is no finite leak, or all their numbers are equal.
    """
    spread = float(rows_of(leaks).double().std(correction=0))
    if spread == 0:
        raise DefenseError("the leaks that the defense is fitted on have no spread to be relative to: all are equal")
    return spread


def channels(features: Float[Tensor, "n ..."]) -> Float[Tensor, "k c"]:
    """Return the channel vectors of all places of some leaks."""
    axis = 1 + channel_axis(tuple(features.shape[1:]))
    return features.movedim(axis, -1).reshape(-1, features.shape[axis])


_WIDER = 3.0
"""Others vary so many times as much: of 1, 3 and 9 what denoised best for attacks on CIFAR-10's training files."""
_ENOUGH = 8
"""With fewer vectors than so many times their length channels are denoised one by one."""


@dataclass(frozen=True)
class Channels:
    """Mean and covariance of the channel vectors of some leaks, of which there were `count`, in double precision."""

    mean: Float[Tensor, "c"]
    covariance: Float[Tensor, "c c"]
    count: int

    @staticmethod
    def of(leaks: Iterator[Leak]) -> Channels:
        """Measure them.

        Raises:
            DefenseError: there is no finite leak.
        """
        vectors = channels(rows_of(leaks)).double()
        mean = vectors.mean(0)
        off = vectors - mean
        return Channels(mean, off.T @ off / len(vectors), len(vectors))

    def denoised(self, features: Float[Tensor, "b ..."], variance: float) -> Float[Tensor, "b ..."]:
        """Return the best linear guess at other leaks under noise of this variance, place by place (Wiener)."""
        axis = 1 + channel_axis(tuple(features.shape[1:]))
        known = _WIDER * self.covariance
        mean = self.mean.to(features)
        off = features.movedim(axis, -1) - mean
        if self.count < _ENOUGH * len(mean):
            own = known.diagonal()
            guess = off * (own / (own + variance)).to(features)
        else:
            noisy = known + variance * torch.eye(len(mean), dtype=torch.double)
            guess = off @ torch.linalg.solve(noisy, known).to(features)
        found: Tensor = (guess + mean).movedim(-1, axis)
        return found
