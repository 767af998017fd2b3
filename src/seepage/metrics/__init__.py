"""Scores of recoveries against the truth: one value a sample, in the truth's order."""

from .base import ImageMetric
from .label import Agreement
from .perceptual import Lpips
from .pixel import Mse, Psnr
from .structural import MsSsim, Ssim

__all__ = ["Agreement", "ImageMetric", "Lpips", "MsSsim", "Mse", "Psnr", "Ssim"]
