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
"""With fewer vectors than so many times their length the covariance is taken for diagonal."""


@dataclass(frozen=True)
class Channels:
    """Mean and covariance of the channel vectors of leaks like some that are known, in double precision."""

    mean: Float[Tensor, "c"]
    covariance: Float[Tensor, "c c"]

    @staticmethod
    def of(leaks: Iterator[Leak]) -> Channels:
        """Measure them on known leaks, and take those of others to vary more.

        Raises:
            DefenseError: there is no finite leak.
        """
        rows = rows_of(leaks)
        vectors = channels(rows).double()
        mean = vectors.mean(0)
        off = vectors - mean
        covariance = _WIDER * off.T @ off / len(vectors)
        enough = len(vectors) >= _ENOUGH * len(mean)
        return Channels(mean, covariance if enough else covariance.diagonal().diag())

    def denoised(self, features: Float[Tensor, "b ..."], variance: float) -> Float[Tensor, "b ..."]:
        """Return the best linear guess at features under noise of this variance, place by place (Wiener)."""
        axis = 1 + channel_axis(tuple(features.shape[1:]))
        noisy = self.covariance + variance * torch.eye(len(self.mean), dtype=torch.double)
        gain = torch.linalg.solve(noisy, self.covariance).to(features)
        mean = self.mean.to(features)
        found: Tensor = (features.movedim(axis, -1) - mean) @ gain + mean
        return found.movedim(-1, axis)


def channel_moments(leaks: Iterator[Leak]) -> tuple[Float[Tensor, "c"], Float[Tensor, "c c"]]:
    """Return mean and covariance of channel vectors, in double precision.

    Raises:
        DefenseError: there is no finite leak.
    """
    vectors = channels(rows_of(leaks)).double()
    mean = vectors.mean(0)
    off = vectors - mean
    return mean, off.T @ off / len(vectors)
