"""Scores that compare the structure of pictures under a sliding Gaussian window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..registry import register
from ..types import Shape
from .base import ImageMetric, Judge

WINDOW = 11
SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Wang, Simoncelli & Bovik 2003, section 3.2, finest scale first."""


@register("metric", "ssim")
@dataclass(frozen=True)
class Ssim(ImageMetric):
    """Structural similarity: mean over the places where an 11x11 Gaussian window (sigma 1.5) fits, and over RGB.

    In [-1, 1]. Pictures of at least 11 pixels a side.

    Source: Wang, Bovik, Sheikh & Simoncelli 2004; K1 = 0.01, K2 = 0.03, L = 1. scikit-image computes it.
    """

    unit: ClassVar[str] = ""
    higher_means_more_leakage: ClassVar[bool] = True
    perfect: ClassVar[float | None] = 1.0

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return why not, where the window does not fit."""
        return too_small("SSIM", image_shape, WINDOW)

    def score(self, original: Float[Tensor, "3 h w"], recovered: Float[Tensor, "3 h w"], judge: Judge | None) -> float:
        """Return the similarity of this pair."""
        from skimage.metrics import structural_similarity

        # truncate = 3.5, scikit-image's own, makes the window of this sigma 11 wide.
        return float(
            structural_similarity(
                original.cpu().numpy(),
                recovered.cpu().numpy(),
                channel_axis=0,
                data_range=1.0,
                gaussian_weights=True,
                sigma=SIGMA,
                use_sample_covariance=False,
            )
        )


@register("metric", "ms_ssim")
@dataclass(frozen=True)
class MsSsim(ImageMetric):
    """Multi-scale structural similarity: contrast and structure at five scales, luminance at the coarsest.

    The mean over RGB of the product over scales; a negative factor counts as 0, as its power is no real number. In
    [0, 1]. Pictures of at least 161 pixels a side, so that the window fits at the coarsest scale.

    Source: Wang, Simoncelli & Bovik 2003, equation 7. torchmetrics has it, but averages the coarsest scale over
    reflected borders too (180 of its 196 places at 224 px) and refuses pictures of 161 to 175 px.
    """

    unit: ClassVar[str] = ""
    higher_means_more_leakage: ClassVar[bool] = True
    perfect: ClassVar[float | None] = 1.0

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return why not, where the window does not fit at the coarsest scale."""
        return too_small("MS-SSIM at five scales", image_shape, (WINDOW - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1)

    def score(self, original: Float[Tensor, "3 h w"], recovered: Float[Tensor, "3 h w"], judge: Judge | None) -> float:
        """Return the similarity of this pair."""
        pair = torch.stack([original, recovered])
        product = torch.ones(3, dtype=pair.dtype, device=pair.device)
        for scale, weight in enumerate(SCALE_WEIGHTS):
            if scale:
                pair = _halve(pair)
            luminance, structure = _similarity(pair[0], pair[1])
            last = scale == len(SCALE_WEIGHTS) - 1
            factor = (luminance * structure if last else structure).mean(dim=(1, 2))
            product = product * factor.clamp_min(0) ** weight
        return product.mean().item()


def too_small(name: str, image_shape: Shape, least: int) -> str | None:
    height, width = image_shape[-2:]
    if min(height, width) >= least:
        return None
    return f"{name} needs pictures of at least {least} pixels a side, these are {height}x{width}"


def _similarity(a: Float[Tensor, "3 h w"], b: Float[Tensor, "3 h w"]) -> tuple[Tensor, Tensor]:
    """Return the luminance and the contrast-structure term at every place where the window fits, "3 h-10 w-10" each."""
    mean_a, mean_b, aa, bb, ab = (_blur(channels) for channels in (a, b, a * a, b * b, a * b))
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * (ab - mean_a * mean_b) + _C2) / (aa - mean_a**2 + bb - mean_b**2 + _C2)
    return luminance, structure


def _blur(channels: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h-10 w-10"]:
    place = torch.arange(WINDOW, dtype=channels.dtype, device=channels.device) - WINDOW // 2
    window = torch.exp(-0.5 * (place / SIGMA) ** 2)
    window = window / window.sum()
    rows = functional.conv2d(channels[:, None], window.view(1, 1, -1, 1))
    return functional.conv2d(rows, window.view(1, 1, 1, -1))[:, 0]


def _halve(pair: Float[Tensor, "2 3 h w"]) -> Tensor:
    """Average 2x2 pixels; an odd last row or column is repeated, as in the authors' own code."""
    height, width = pair.shape[-2:]
    return functional.avg_pool2d(functional.pad(pair, (0, width % 2, 0, height % 2), mode="replicate"), 2)
