"""Parts of the networks that attacks train. None has a norm: contrast and level are what is to be recovered."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn

from .networks import SLOPE

_SQUEEZED = 256
_FEWEST_ROWS = 4
_BRANCH = 0.3


class Residual(nn.Module):
    """x + 0.3 f(x), f two convolutions: near the identity at first, so that depth needs no norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return as many maps of the same size."""
        branch: Tensor = self.second(nn.functional.leaky_relu(self.first(x), SLOPE))
        return x + _BRANCH * branch


class Spread(nn.Module):
    """A vector as a grid: every place has a linear map of its own, a long vector is narrowed first."""

    def __init__(self, given: int, made: int, rows: int, columns: int) -> None:
        super().__init__()
        self.shape = made, rows, columns
        kept = min(given, _SQUEEZED)
        self.squeeze = nn.Linear(given, kept) if kept < given else nn.Identity()
        self.place = nn.Linear(kept, made * rows * columns)

    def forward(self, x: Float[Tensor, "b k 1 1"]) -> Float[Tensor, "b c r s"]:
        """Return a grid."""
        placed: Tensor = self.place(self.squeeze(x.flatten(1)))
        return placed.view(-1, *self.shape)


def coarse(height: int, width: int) -> tuple[int, int]:
    """Return the picture's size halved as often as leaves its smaller side at least 4."""
    while min(height, width) >= 2 * _FEWEST_ROWS:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return height, width
