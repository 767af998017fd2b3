"""From features of any shape to a few tokens that a Q-Former attends to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...types import Leak, SeepageError, Shape
from ..learning import TrainingError

_EXTRA = 9
_FEW = 32
_LONGEST = 16
"""A vector of more than so many times the width is narrowed before it becomes tokens, and becomes at most so many."""


@dataclass(frozen=True)
class Grid:
    """One sample's features as channels over rows and columns, and `extra` leading tokens that lie nowhere.

    Maps are "c h w"; where the first two sides alone are equal, "h w c". Of tokens "t d", those left over by the
    largest square that leaves at most eight out (class and register tokens) are extra; where none does, they lie in one
    row. A vector "d" is one place of d channels.
    """

    channels: int
    rows: int
    columns: int
    extra: int = 0
    last: bool = False

    @staticmethod
    def of(shape: Shape) -> Grid:
        """Read it off one sample's shape.

        Raises:
            SeepageError: it is no map, no token sequence and no vector, or it is empty.
        """
        if math.prod(shape) == 0 or not 1 <= len(shape) <= 3:
            raise SeepageError(
                f"features are a map (c, h, w), tokens (t, d) or a vector (d,), none of them empty; got {tuple(shape)}"
            )
        if len(shape) == 3:
            first, second, third = shape
            return Grid(third, first, second, last=True) if first == second != third else Grid(first, second, third)
        if len(shape) == 1:
            return Grid(shape[0], 1, 1)
        count, channels = shape
        side = math.isqrt(count)
        square = side > 2 and count - side * side < _EXTRA
        return Grid(channels, side, side, count - side * side) if square else Grid(channels, 1, count)

    def split(self, features: Float[Tensor, "b ..."]) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b e c"]]:
        """Return features as a grid, and the extra tokens."""
        if features.ndim == 3:
            grid = features[:, self.extra :].mT.reshape(-1, self.channels, self.rows, self.columns)
            return grid, features[:, : self.extra]
        moved = features.movedim(-1, 1) if self.last else features
        grid = moved.reshape(-1, self.channels, self.rows, self.columns)
        return grid, features.new_zeros(len(features), 0, self.channels)

    def filled(self, values: Float[Tensor, "c"], shape: Shape) -> Float[Tensor, "..."]:
        """Return one sample of that shape whose every place has these channels."""
        if len(shape) == 3 and not self.last:
            return values[:, None, None].expand(shape)
        return values.expand(shape)


class Mapper(nn.Module):
    """Features "b ..." of one shape to at most `most` tokens of `width`: one class for every layer of every victim.

    Features are standardised by channel with `mean` and `spread`, which are fitted from leaks and kept. A grid of at
    most `most` places goes through one 1x1 convolution; a larger one through convolutions of stride 2 until it fits,
    each giving two to four times the channels, up to `width`, and followed by a residual block. Extra tokens come first
    where there is room for them, else their mean is added to every token. A vector becomes as many tokens as its length
    is widths. Rows and columns have learned positions; a row of tokens has one kind alone. What leaves is layer-normed.

    `pooled` gives the one token that the authors' code does: the mean over all places. In training a share `hide` of
    the channels that come in, and of several tokens that leave, is zero, drawn anew every time, the others scaled up.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, shape: Shape, width: int, most: int = 64, *, pooled: bool = False, hide: float = 0.0) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.grid = grid = Grid.of(shape)
        self.register_buffer("mean", torch.zeros(grid.channels))
        self.register_buffer("spread", torch.ones(grid.channels))
        self.pooled, self.hide = pooled, hide
        steps = [] if pooled else _halvings(grid.rows, grid.columns, most)
        self.body, channels = _body(grid.channels, width, steps)
        rows, columns = steps[-1] if steps else (1, 1) if pooled else (grid.rows, grid.columns)
        count = _tokens_of_vector(grid.channels, width) if len(shape) == 1 and not pooled else 1
        self.out: nn.Module = nn.Conv2d(channels, width, 1) if count == 1 else _Spread(channels, width, count)
        columns *= count
        self.extras = nn.Linear(grid.channels, width) if grid.extra and not pooled else None
        self.prepend = rows * columns + grid.extra <= most
        self.down = nn.Parameter(0.02 * torch.randn(rows, 1, width) if rows > 1 else torch.zeros(0, 1, width))
        self.across = nn.Parameter(0.02 * torch.randn(1, columns, width))
        self.norm = nn.LayerNorm(width)
        self.count = rows * columns + (grid.extra if self.extras is not None and self.prepend else 0)

    def forward(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b t width"]:
        """Return tokens.

        Raises:
            SeepageError: the features are of another shape.
        """
        if tuple(features.shape[1:]) != self.shape:
            raise SeepageError(f"a row of the leak has shape {tuple(features.shape[1:])}, expected is {self.shape}")
        grid, extra = self.grid.split(features.to(self.mean))
        grid = (grid - self.mean[:, None, None]) / self.spread[:, None, None]
        if self.pooled:
            grid = grid.mean((2, 3), keepdim=True)
        extra = (extra - self.mean) / self.spread
        if self.hide and self.training:
            seen = nn.functional.dropout(torch.ones_like(grid[:, :, 0, 0]), self.hide)
            grid, extra = grid * seen[:, :, None, None], extra * seen[:, None]
        places = self.out(self.body(grid)).permute(0, 2, 3, 1) + self.across  # b h w width
        if len(self.down):
            places = places + self.down
        tokens = places.flatten(1, 2)
        if self.extras is not None:
            told = self.extras(extra)
            tokens = torch.cat([told, tokens], 1) if self.prepend else tokens + told.mean(1, keepdim=True)
        normed: Tensor = self.norm(tokens)
        return nn.functional.dropout1d(normed, self.hide, self.training) if self.hide and self.count > 1 else normed

    @torch.no_grad()
    def standardise(self, moments: Standard) -> None:
        """Take over the moments of the leaks that are learned from."""
        mean, spread = moments.result()
        self.mean.copy_(mean)
        self.spread.copy_(spread)


class Standard:
    """Each channel's mean and deviation over leaks, rows that are not finite left out."""

    def __init__(self, shape: Shape) -> None:
        self.grid = Grid.of(shape)
        self.count = 0
        self.total = torch.zeros(self.grid.channels, dtype=torch.float64)
        self.squares = torch.zeros_like(self.total)

    def add(self, leak: Leak | Float[Tensor, "b ..."]) -> None:
        """Count in a batch of leaks; row by row, so that the order of batches changes the last digits alone."""
        features = leak.features if isinstance(leak, Leak) else leak
        for row in features.detach():
            if torch.isfinite(row).all():
                grid, extra = self.grid.split(row[None].cpu().double())
                flat = torch.cat([grid[0].flatten(1), extra[0].mT], 1)
                self.total += flat.sum(1)
                self.squares += flat.square().sum(1)
                self.count += flat.shape[1]

    def result(self) -> tuple[Float[Tensor, "c"], Float[Tensor, "c"]]:
        """Return mean and standard deviation, the latter 1 where nothing varies.

        Raises:
            TrainingError: nothing was counted.
        """
        if not self.count:
            raise TrainingError("there is nothing to learn from: no picture with finite features")
        mean = self.total / self.count
        spread = (self.squares / self.count - mean.square()).clamp_min(0).sqrt()
        still = spread <= 1e-6 * mean.abs().clamp_min(1e-6)
        return mean.float(), torch.where(still, 1.0, spread).float()


class _Residual(nn.Module):
    """Mixes neighbours channel by channel, then channels place by place, and adds what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.GroupNorm(1, channels)
        self.mix = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1), nn.GELU(), nn.Conv2d(2 * channels, channels, 1))

    def forward(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        mixed: Tensor = self.mix(self.norm(self.near(grid)))
        return grid + mixed


class _Spread(nn.Module):
    """A vector's channels to a row of tokens, through a narrow middle where the vector is long."""

    def __init__(self, channels: int, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        long = channels > _LONGEST * width
        self.narrow = nn.Linear(channels, width) if long else nn.Identity()
        self.wide = nn.Linear(width if long else channels, count * width)

    def forward(self, grid: Float[Tensor, "b c 1 1"]) -> Float[Tensor, "b width 1 t"]:
        tokens: Tensor = self.wide(self.narrow(grid.flatten(1)))
        return tokens.view(len(grid), self.count, -1).mT[:, :, None]


def _tokens_of_vector(channels: int, width: int) -> int:
    return min(max(math.ceil(channels / width), 1), _LONGEST)


def _halvings(rows: int, columns: int, most: int) -> list[tuple[int, int]]:
    """Return the sizes that a grid goes through until it has at most `most` places, the longer side halved first."""
    sizes = []
    while rows * columns > most:
        longer = max(rows, columns)
        rows, columns = (math.ceil(side / 2) if 2 * side > longer else side for side in (rows, columns))
        sizes.append((rows, columns))
    return sizes


def _body(channels: int, width: int, sizes: list[tuple[int, int]]) -> tuple[nn.Module, int]:
    """Return the convolutions to those sizes, and how many channels leave them."""
    stages: list[nn.Module] = []
    for size in sizes:
        # A place then stands for four: few channels become four times as many, so that nothing need be lost.
        made = min((4 if channels < _FEW else 2) * channels, width)
        stages += [_Halve(channels, made, size), nn.GroupNorm(1, made), nn.GELU(), _Residual(made)]
        channels = made
    return nn.Sequential(*stages), channels


class _Halve(nn.Module):
    """A convolution of stride 2 along the sides that are to shrink."""

    def __init__(self, given: int, made: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.convolution = nn.Conv2d(given, made, 3, padding=1)

    def forward(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d r s"]:
        stride = [1 if before == after else 2 for before, after in zip(grid.shape[2:], self.size)]
        halved: Tensor = nn.functional.conv2d(
            grid, self.convolution.weight, self.convolution.bias, stride, self.convolution.padding
        )
        return halved
