"""Coordinates in which natural pictures are white: cosines of falling weight, brightness before colour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

OPPONENT = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
"""Orthogonal axes of colour: brightness, blue against red, green against both."""
# How much natural pictures vary along each.
_SPREAD = (1.0, 0.35, 0.2)
_EDGE = 0.005


@dataclass(frozen=True)
class Spectrum:
    """Maps coordinates "b 3 h w" to pictures "b 3 h w" in (0, 1) and back.

    A picture is the sigmoid of a sum of cosines (DCT-II) along opponent colours (Ruderman, Cronin & Chiao 1998), each
    weighted by one over its frequency, as the amplitudes of natural pictures fall (Field 1987). Equal steps in the
    coordinates then are likely changes of a picture, coarse before fine, where equal steps in pixels are noise: descent
    in them stays with what pictures look like for longer (Olah, Mordvintsev & Schubert 2017).
    """

    def decode(self, u: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Return the pictures that coordinates stand for."""
        rows, columns, weight, colours, _ = _basis(u.shape[2], u.shape[3], u.device, u.dtype)
        waves = rows.mT @ (weight * u) @ columns
        return torch.einsum("ok,bkhw->bohw", colours, waves).sigmoid()

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Return the coordinates of pictures, black and white taken in by a two-hundredth."""
        rows, columns, weight, _, inverse = _basis(images.shape[2], images.shape[3], images.device, images.dtype)
        waves = torch.einsum("ko,bohw->bkhw", inverse, images.clamp(_EDGE, 1 - _EDGE).logit())
        return rows @ waves @ columns.mT / weight

    def covariance(self, pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Return the pictures times the covariance of pictures whose waves are white, the sigmoid left out.

        Symmetric and positive: as a preconditioner it makes steps that pictures make, coarse before fine.
        """
        rows, columns, weight, colours, _ = _basis(*pictures.shape[2:], pictures.device, pictures.dtype)
        waves = rows @ torch.einsum("ok,bohw->bkhw", colours, pictures) @ columns.mT
        return torch.einsum("ok,bkhw->bohw", colours, rows.mT @ (weight.square() * waves) @ columns)


@lru_cache(maxsize=8)
def _basis(
    height: int, width: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return both cosine transforms, a weight a frequency, and the colours with their inverse."""
    down, across = (torch.arange(size, dtype=torch.float64) / (2 * size) for size in (height, width))
    frequency = (down[:, None].square() + across.square()).sqrt()
    weight = 0.5 / frequency.clamp_min(0.5 / max(height, width))
    opponent = torch.tensor(OPPONENT, dtype=torch.float64).T
    colours = opponent / opponent.norm(dim=0) * torch.tensor(_SPREAD, dtype=torch.float64)
    found = (cosines(height), cosines(width), weight, colours, torch.linalg.inv(colours))
    return tuple(part.to(device=device, dtype=dtype) for part in found)  # type: ignore[return-value]


def cosines(size: int) -> Float[Tensor, "n n"]:
    """Return the orthonormal DCT-II matrix: a row a frequency."""
    place = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (place + 0.5) * place[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
