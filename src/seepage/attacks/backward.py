"""The inverse of a prefix as a network: one small part a segment, from what the segment gives to what it was given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..priors.ridge import Layout
from ..types import Shape
from .blocks import Residual, Spread, coarse
from .learning import Moments


class Standard(nn.Module):
    """One place of the prefix: its features "b ..." as a grid of zero mean and unit deviation, channel by channel."""

    mean: Tensor
    spread: Tensor

    def __init__(self, shape: Shape, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layout = Layout.of(shape, image_shape)
        channels = self.layout.grid[0]
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("spread", torch.ones(1, channels, 1, 1))

    def forward(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        """Return the grid."""
        return (self.layout.arrange(features) - self.mean) / self.spread

    def undo(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the grid in the features' own units."""
        return grid * self.spread + self.mean


class Step(nn.Module):
    """The inverse of one segment between standardised grids: a linear map of patches plus a residual network."""

    def __init__(self, given: tuple[int, int, int], made: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, rows, columns = given
        self.size = made[1:]
        self.spread: nn.Module = nn.Identity()
        if rows * columns == 1 < made[1] * made[2]:
            rows, columns = coarse(*self.size)
            self.spread = Spread(channels, width, rows, columns)
            channels = width
        factor = max(math.ceil(made[1] / rows), math.ceil(made[2] / columns))
        self.straight = nn.Conv2d(channels, made[0] * factor**2, 3, padding=1)
        self.bent = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            Residual(width),
            Residual(width),
            nn.Conv2d(width, made[0] * factor**2, 3, padding=1),
        )
        self.shuffle = nn.PixelShuffle(factor)

    def forward(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k r s"]:
        """Return what the segment was given."""
        grid = self.spread(grid)
        found: Tensor = self.shuffle(self.straight(grid) + self.bent(grid))
        if tuple(found.shape[2:]) == tuple(self.size):
            return found
        return nn.functional.interpolate(found, self.size, mode="bilinear", align_corners=False, antialias=True)


class Backward(nn.Module):
    """From a leak to pictures by the steps of all segments. `places` are the picture, the cuts between, the leak."""

    def __init__(self, shapes: Sequence[Shape], image_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        places = [Standard(shape, image_shape) for shape in shapes]
        grids = [place.layout.grid for place in places]
        self.places = nn.ModuleList(places)
        self.steps = nn.ModuleList(Step(given, made, width) for given, made in zip(grids[1:], grids[:-1], strict=True))

    def forward(self, leak: Float[Tensor, "b ..."]) -> Float[Tensor, "b 3 h w"]:
        """Return pictures, not yet held in [0, 1]."""
        return self.walk(self.places[-1](leak))

    def walk(self, grid: Float[Tensor, "b c r s"]) -> Float[Tensor, "b 3 h w"]:
        """Return the pictures of standardised leaks."""
        for step in reversed(self.steps):
            grid = step(grid)
        return self.place(0).undo(grid)

    def place(self, index: int) -> Standard:
        """Return one of the places, counted from the picture."""
        found = self.places[index]
        assert isinstance(found, Standard)
        return found

    def measure(self, passages: Iterable[Sequence[Tensor]]) -> None:
        """Take every place's means and deviations from pictures' features at all of them.

        Raises:
            TrainingError: none is finite.
        """
        moments = [Moments() for _ in self.places]
        for passed in passages:
            for index, features in enumerate(passed):
                moments[index].add(self.place(index).layout.arrange(features))
        for index, counted in enumerate(moments):
            mean, spread = counted.result()
            self.place(index).mean.copy_(mean)
            self.place(index).spread.copy_(spread)

    def apart(self, passed: Sequence[Tensor]) -> Float[Tensor, ""]:
        """Return the sum over steps of their mean squared errors, given the true features at every place."""
        standard = [place(features) for place, features in zip(self.places, passed, strict=True)]
        pairs = zip(self.steps, standard[1:], standard[:-1], strict=True)
        return torch.stack([(step(given) - wanted).square().mean() for step, given, wanted in pairs]).sum()
