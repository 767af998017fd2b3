"""Victims of the benchmarks that no library has by name."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dinov2_small(root: Path) -> str:
    """Return the name of DINOv2-small with the weights that lie with the research data at `root`."""
    weights = root / "weights" / "dinov2_small_fp16.safetensors"
    return f"hf/dinov2:hidden_size=384,num_attention_heads=6,image_size=518@{weights}"


class Normalised(nn.Module):
    """A network behind its normalisation: "b 3 h w" in [0, 1] to what it gives."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1))
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output."""
        out: Tensor = self.network((x - self.mean) / self.std)
        return out


def resnet18_without_pool() -> nn.Module:
    """Return a random ResNet-18 whose stem does not pool, as PEEL's authors' networks."""
    network = resnet18()
    network.maxpool = nn.Identity()
    return Normalised(network)
