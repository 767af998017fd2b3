"""Mean, spread and covariance of the leaks that a defense is fitted on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

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


_TINY = torch.finfo(torch.float32).tiny
_WIDER = 3.0
"""Others vary so many times as much: of 1, 3 and 9 what denoised best for attacks on CIFAR-10's training files."""
_LEAST = 0.05
"""No direction is taken to vary less than this share of what channels vary on the mean: others' may."""
_ENOUGH = 8
"""With fewer vectors than so many times their length channels are denoised one by one."""


@dataclass(frozen=True)
class Channels:
    """Mean, variances and, where it was asked for, covariance of the channel vectors of some leaks, on the CPU."""

    mean: Float[Tensor, "c"]
    variances: Float[Tensor, "c"]
    covariance: Float[Tensor, "c c"] | None

    @staticmethod
    def of(leaks: Iterator[Leak], *, whole: bool | None = None) -> Channels:
        """Measure them in double precision; the covariance too if `whole`, unless told where vectors are enough for it.

        Raises:
            DefenseError: there is no finite leak.
        """
        vectors = channels(rows_of(leaks)).cpu().double()
        mean = vectors.mean(0)
        off = vectors - mean
        if whole is None:
            whole = len(vectors) >= _ENOUGH * len(mean)
        return Channels(mean, off.square().mean(0), off.T @ off / len(vectors) if whole else None)

    def denoised(self, features: Float[Tensor, "b ..."], variance: Float[Tensor, "b"]) -> Float[Tensor, "b ..."]:
        """Return the best linear guess at other leaks under noise of each row's variance, place by place (Wiener).

        Where a row varies more than leaks were seen to, it is trusted as much more.
        """
        axis = 1 + channel_axis(tuple(features.shape[1:]))
        mean, ways = self.mean.to(features), self._spectrum[1]
        off = features.movedim(axis, -1) - mean
        off = off if ways is None else off @ ways.to(off)
        noise, flat = variance.to(off)[:, None], off.reshape(len(off), -1, off.shape[-1])
        # What the noise alone would hardly show, twice the deviation of its sample variance, is the leak's own.
        seen = flat.square().mean(1) - noise * (1 + 2 * math.sqrt(2 / flat.shape[1]))
        known = seen.maximum(self._spectrum[0].to(off))
        gain = (known / (known + noise).clamp_min(_TINY)).where(noise > 0, 1.0)
        guess = off * gain.view(len(off), *[1] * (off.ndim - 2), -1)
        guess = guess if ways is None else guess @ ways.T.to(off)
        found: Tensor = (guess + mean).movedim(-1, axis)
        return found

    @cached_property
    def _spectrum(self) -> tuple[Float[Tensor, "c"], Float[Tensor, "c c"] | None]:
        """Return how much others vary, along each channel or the covariance's own directions, and these."""
        values, ways = (self.variances, None) if self.covariance is None else torch.linalg.eigh(self.covariance)
        return _WIDER * values.clamp_min(_LEAST * float(self.variances.mean())), ways
