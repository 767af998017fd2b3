"""Scores of recoveries against the truth: one value a sample, in the truth's order."""

from .base import ImageMetric
from .identity import IdentityMetric, KnnDistance, Rank1
from .label import Agreement
from .perceptual import Lpips
from .pixel import Mse, Psnr
from .structural import MsSsim, Ssim

__all__ = [
    "Agreement",
    "IdentityMetric",
    "ImageMetric",
    "KnnDistance",
    "Lpips",
    "MsSsim",
    "Mse",
    "Psnr",
    "Rank1",
    "Ssim",
]
