"""Scores that compare pictures by the features of a trained network."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..registry import register
from ..types import Shape
from .base import ImageMetric, Judge
from .structural import too_small


@dataclass(frozen=True)
class _Backbone:
    """torchvision's file; its name ends in the start of its SHA-256. `least` is the smallest side it takes."""

    filename: str
    sha256_prefix: str
    least: int


_BACKBONES = {
    "alex": _Backbone("alexnet-owt-7be5be79.pth", "7be5be79", 31),
    "vgg": _Backbone("vgg16-397923af.pth", "397923af", 16),
}


@register("metric", "lpips")
@dataclass(frozen=True)
class Lpips(ImageMetric):
    """Learned perceptual image patch similarity: a distance, 0 for equal pictures.

    Available only where torchvision's ImageNet weights of the network lie in torch's hub folder and are the true ones;
    nothing is downloaded, and random weights are never used instead. torchmetrics computes it and brings the linear
    weights (version 0.1).

    Source: Zhang, Isola, Efros, Shechtman & Wang 2018.
    """

    net: Literal["alex", "vgg"] = "alex"

    unit: ClassVar[str] = ""
    higher_means_more_leakage: ClassVar[bool] = False
    perfect: ClassVar[float | None] = 0.0

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return why not, where weights are missing or damaged or the pictures too small for the network."""
        backbone = _BACKBONES[self.net]
        file = Path(torch.hub.get_dir()) / "checkpoints" / backbone.filename
        if not file.is_file():
            return f"LPIPS needs torchvision's {backbone.filename} in {file.parent}, which holds none"
        stat = file.stat()
        if not _sha256(file, stat.st_size, stat.st_mtime_ns).startswith(backbone.sha256_prefix):
            return f"LPIPS needs torchvision's {backbone.filename}, and {file} is damaged or another file"
        return too_small(f"LPIPS ({self.net})", image_shape, backbone.least)

    def score(self, original: Float[Tensor, "3 h w"], recovered: Float[Tensor, "3 h w"], judge: Judge | None) -> float:
        """Return the distance of this pair, which is symmetric."""
        return distance(_network(self.net).to(original.device), original, recovered)


def distance(network: nn.Module, original: Float[Tensor, "3 h w"], recovered: Float[Tensor, "3 h w"]) -> float:
    """Return what an LPIPS network that reads [-1, 1] says of two pictures in [0, 1]."""
    first, second = (2 * picture[None].float() - 1 for picture in (original, recovered))
    return float(network(first, second))


@functools.lru_cache(maxsize=2)
def _network(net: Literal["alex", "vgg"]) -> nn.Module:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    network: nn.Module = LearnedPerceptualImagePatchSimilarity(net_type=net).net
    return network


@functools.lru_cache(maxsize=8)
def _sha256(file: Path, size: int, modified: int) -> str:
    """Hash a file; size and time of change are there so that a changed one is hashed again."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
