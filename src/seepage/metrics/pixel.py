"""Scores that compare pictures pixel by pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..registry import register
from .base import ImageMetric, Judge

PSNR_CAP = 160.0
"""What PSNR says of equal pictures, in dB; an error of one part in 10^8 reaches it."""


@register("metric", "mse")
@dataclass(frozen=True)
class Mse(ImageMetric):
    """Mean squared error over pixels and channels of pictures clipped to [0, 1], not rounded. In [0, 1]."""

    unit: ClassVar[str] = ""
    higher_means_more_leakage: ClassVar[bool] = False
    perfect: ClassVar[float | None] = 0.0

    def score(self, original: Float[Tensor, "3 h w"], recovered: Float[Tensor, "3 h w"], judge: Judge | None) -> float:
        """Return the mean of the squared differences."""
        return (original - recovered).square().mean().item()


@register("metric", "psnr")
@dataclass(frozen=True)
class Psnr(ImageMetric):
    """Peak signal-to-noise ratio, -10 log10(MSE), of pictures clipped to [0, 1], not rounded, in dB.

    The peak is 1. Capped at 160 dB, so that an exact recovery has a finite value. In [0, 160].
    """

    unit: ClassVar[str] = "dB"
    higher_means_more_leakage: ClassVar[bool] = True
    perfect: ClassVar[float | None] = PSNR_CAP

    def score(self, original: Float[Tensor, "3 h w"], recovered: Float[Tensor, "3 h w"], judge: Judge | None) -> float:
        """Return the ratio of this pair."""
        mse = (original - recovered).square().mean().item()
        # Black against white is -0.0 otherwise.
        return abs(10 * math.log10(max(mse, 10 ** (-PSNR_CAP / 10))))
