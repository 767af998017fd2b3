"""Changed copies of pictures of faces: what the face judge learns from, and what it is asked about."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def changed(images: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Return the pictures turned, moved, mirrored, scaled and lit differently, some of them blurred or noisy."""
    count = len(images)

    def within(most: float, *shape: int) -> Tensor:
        return (2 * torch.rand(count, *shape, generator=generator) - 1) * most

    angle, scale = within(math.radians(12)), within(0.13).exp()
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    across = torch.stack([mirror * angle.cos() * scale, -angle.sin() * scale, within(0.12)], 1)
    down = torch.stack([mirror * angle.sin() * scale, angle.cos() * scale, within(0.12)], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    lit = (moved - 0.5) * (1 + within(0.3, 1, 1, 1)) + 0.5 + within(0.12, 1, 1, 1)
    deviations = 0.3 + 2.2 * torch.rand(count, generator=generator)
    softened = torch.rand(count, generator=generator) < 0.35
    lit = torch.stack([blurred(one[None], d)[0] if s else one for one, d, s in zip(lit, deviations.tolist(), softened)])
    noisy = torch.rand(count, 1, 1, 1, generator=generator) < 0.4
    noise = 0.12 * torch.rand(count, 1, 1, 1, generator=generator) * torch.randn(lit.shape, generator=generator)
    return (lit + noisy * noise).clamp(0, 1)


def degraded(images: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Return the pictures blurred by 1.5 pixels under noise of 0.1, as a judge of recoveries sees them."""
    return (blurred(images, 1.5) + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def blurred(images: Float[Tensor, "b 3 h w"], deviation: float) -> Float[Tensor, "b 3 h w"]:
    """Blur with a Gaussian of so many pixels, up to 2.5."""
    line = (-(torch.arange(-6, 7) / deviation).square() / 2).exp()
    across = (line / line.sum()).view(1, 1, 1, -1).repeat(3, 1, 1, 1)
    wide = F.conv2d(F.pad(images, (6,) * 4, mode="replicate"), across, groups=3)
    return F.conv2d(wide, across.transpose(2, 3), groups=3)
