"""Null controls: what an attacker who never saw the features would hand in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..priors.dead_leaves import dead_leaves

_PICTURES = 64


def mean_picture(image_shape: tuple[int, int, int], generator: torch.Generator) -> Float[Tensor, "3 h w"]:
    """Return the mean of synthetic pictures, RGB in [0, 1]: the best constant guess where no picture is at hand."""
    return dead_leaves(_PICTURES, image_shape, generator).mean(0)
