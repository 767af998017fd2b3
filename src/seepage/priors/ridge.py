"""A linear decoder from features to pictures, fitted in closed form on synthetic pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..types import Progress, Shape
from .dead_leaves import dead_leaves

_PATCHES = (5, 3, 1)
_WIDEST = 1024
_ROWS_PER_UNKNOWN = 60
_BLOCK = 8
_EXTRA_TOKENS = 9
_THUMBNAIL = 16
_RIDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
CHUNK = 12
"""How many pictures are drawn, and run, together."""


@dataclass(frozen=True)
class Layout:
    """How one sample's features lie over the picture: a grid "c h w", or a vector where there is none.

    `order` says which it is; of tokens, `extra` leading ones (class, registers) lie nowhere and are left out.
    """

    order: str
    grid: tuple[int, int, int]
    extra: int = 0

    @staticmethod
    def of(shape: Shape, image_shape: tuple[int, int, int]) -> Layout:
        """Read the layout off the shapes: "c h w", "h w c" or "tokens c" whose grid has the picture's proportions."""
        _, height, width = image_shape
        if len(shape) == 3:
            first, second, third = shape
            if _covers(second, third, height, width):
                return Layout("channels-first", (first, second, third))
            if _covers(first, second, height, width):
                return Layout("channels-last", (third, first, second))
        if len(shape) == 2:
            for extra in range(min(_EXTRA_TOKENS, shape[0])):
                down = math.sqrt((shape[0] - extra) * height / width)
                rows = max(round(down), 1)
                columns = (shape[0] - extra) // rows
                if rows * columns == shape[0] - extra and _covers(rows, columns, height, width):
                    return Layout("tokens", (shape[1], rows, columns), extra)
        return Layout("vector", (math.prod(shape), 1, 1))

    def arrange(self, features: Tensor) -> Float[Tensor, "b c h w"]:
        """Return features as a grid."""
        if self.order == "channels-last":
            return features.permute(0, 3, 1, 2)
        if self.order == "tokens":
            return features[:, self.extra :].mT.reshape(-1, *self.grid)
        return features.reshape(-1, *self.grid)


@dataclass(frozen=True)
class RidgeDecoder:
    """Maps each patch of `patch` x `patch` standardised features to `block` x `block` pixels by one matrix."""

    layout: Layout
    image_shape: tuple[int, int, int]
    patch: int
    block: tuple[int, int]
    tensors: Mapping[str, Tensor]

    @torch.no_grad()
    def __call__(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b 3 h w"]:
        """Return pictures in [0, 1]."""
        channels, height, width = self.image_shape
        grid = self._standardise(self.layout.arrange(features))
        _, rows, columns = self.layout.grid
        pictures = []
        for one in torch.split(grid, 1):
            flat = patches_of(one, self.patch)[0] @ self.tensors["weight"] + self.tensors["bias"]
            picture = untiled(flat[None], self.block, (channels, rows, columns))
            pictures.append(resized(picture, (height, width)))
        return torch.cat(pictures).clamp(0, 1)

    def _standardise(self, grid: Tensor) -> Tensor:
        standard = (grid - self.tensors["mean"]) / self.tensors["scale"]
        if "projection" not in self.tensors:
            return standard
        return torch.einsum("bchw,cd->bdhw", standard, self.tensors["projection"])


@dataclass(frozen=True)
class Ridge:
    """Fit a `RidgeDecoder` on `pictures` dead-leaves pictures, a quarter of them held out to choose the ridge."""

    pictures: int = 24

    def fit(
        self,
        prefix: Callable[[Tensor], Tensor],
        image_shape: tuple[int, int, int],
        generator: torch.Generator,
        *,
        device: torch.device,
        progress: Progress | None = None,
    ) -> tuple[RidgeDecoder, Tensor]:
        """Return the decoder and the synthetic pictures' mean features, "1 ...".

        `prefix` maps "b c h w" in [0, 1] to "b ..."; the pictures come from `generator`, whatever the device.
        """
        told = progress or (lambda done, what: None)
        image, feature = self.examples(
            prefix, image_shape, generator, device=device, progress=lambda done, what: told(0.8 * done, what)
        )
        told(0.8, "ridge decoder")
        return self.regress(image, feature, image_shape, generator), feature.mean(0, keepdim=True)

    @torch.no_grad()
    def examples(
        self,
        prefix: Callable[[Tensor], Tensor],
        image_shape: tuple[int, int, int],
        generator: torch.Generator,
        *,
        device: torch.device,
        progress: Progress,
    ) -> tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n ..."]]:
        """Return the synthetic pictures and their features, on the device."""
        images, features = [], []
        for first in range(0, self.pictures, CHUNK):
            progress(first / self.pictures, "synthetic pictures")
            drawn = dead_leaves(min(CHUNK, self.pictures - first), image_shape, generator).to(device)
            images.append(drawn)
            features.append(prefix(drawn).float())
        return torch.cat(images), torch.cat(features)

    def regress(
        self, image: Tensor, feature: Tensor, image_shape: tuple[int, int, int], generator: torch.Generator
    ) -> RidgeDecoder:
        """Return the decoder that serves these pictures and their features best, the ridge chosen on a quarter."""
        layout = Layout.of(tuple(feature.shape[1:]), image_shape)
        grid = layout.arrange(feature)
        channels, rows, columns = layout.grid
        block = _block(layout, image_shape)
        spread = grid.std((0, 2, 3), keepdim=True)
        tensors = {"mean": grid.mean((0, 2, 3), keepdim=True), "scale": torch.where(spread > 0, spread, 1.0)}
        if channels > _WIDEST:
            mixing = torch.randn(channels, _WIDEST, generator=generator) / math.sqrt(channels)
            tensors["projection"] = mixing.to(grid)
        patch = next(k for k in _PATCHES if min(channels, _WIDEST) * k * k <= _WIDEST and k <= 2 * min(rows, columns))
        bare = RidgeDecoder(layout, image_shape, patch, block, tensors)
        standard = bare._standardise(grid)
        target = resized(image, (rows * block[0], columns * block[1]))

        def rows_of(one: slice) -> tuple[Tensor, Tensor]:
            return patches_of(standard[one], patch)[0], tiles_of(target[one], block)[0]

        fitted, kept = moments(rows_of, len(image), standard.shape[1] * patch * patch, generator)
        weight, bias = (fitted + kept).solve(best_ridge(fitted, kept))
        tensors |= {"weight": weight.float(), "bias": bias.float()}
        return RidgeDecoder(layout, image_shape, patch, block, tensors)


class Moments:
    """Sums from which a regression and its error follow, in float64."""

    def __init__(self) -> None:
        self.n = 0
        self.sums: tuple[Tensor, ...] = ()

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows of inputs "n d" and outputs "n k"."""
        x, y = x.double(), y.double()  # products in float32 leave a covariance that is not definite
        parts = (x.T @ x, x.T @ y, x.sum(0), y.sum(0), y.square().sum())
        self.sums = tuple(a + b for a, b in zip(self.sums, parts, strict=True)) if self.sums else parts
        self.n += len(x)

    def __add__(self, other: Moments) -> Moments:
        total = Moments()
        total.n = self.n + other.n
        total.sums = tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)) if other.sums else self.sums
        return total

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return weight "d k" and bias "k"; `ridge` is relative to the inputs' mean power."""
        gram, cross, x, y, _ = self.sums
        covariance = gram / self.n - torch.outer(x, x) / self.n**2
        power = covariance.diagonal().mean().clamp_min(1e-12)
        covariance.diagonal().add_(ridge * power)
        factor = torch.linalg.cholesky(covariance)
        weight = torch.cholesky_solve(cross / self.n - torch.outer(x, y) / self.n**2, factor)
        return weight, (y - x @ weight) / self.n

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Return the mean squared error of a solution on these rows."""
        gram, cross, x, y, energy = self.sums
        fit = (weight * (gram @ weight)).sum() - 2 * (weight * cross).sum() + energy
        return float(fit + 2 * bias @ (x @ weight - y) + self.n * bias @ bias)


def held_out(count: int) -> int:
    """Return how many of `count` pictures, the first ones, choose instead of being fitted."""
    return max(count // 4, 1)


def moments(
    rows_of: Callable[[slice], tuple[Tensor, Tensor]], count: int, unknowns: int, generator: torch.Generator
) -> tuple[Moments, Moments]:
    """Return the moments of the pictures to fit, and of those held out.

    `rows_of` maps a slice of one picture to inputs "r d" and outputs "r k"; of each picture as many rows are drawn as
    make some sixty an unknown.
    """
    wanted = math.ceil(_ROWS_PER_UNKNOWN * unknowns / count)
    fitted, kept = Moments(), Moments()
    for index in range(count):
        x, y = rows_of(slice(index, index + 1))
        chosen = torch.randperm(len(x), generator=generator)[:wanted].to(x.device)
        (kept if index < held_out(count) else fitted).add(x[chosen], y[chosen])
    return fitted, kept


def best_ridge(fitted: Moments, kept: Moments) -> float:
    """Return the ridge whose fit serves the rows held out best."""
    return min(_RIDGES, key=lambda ridge: kept.error(*fitted.solve(ridge)))


def _block(layout: Layout, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    _, height, width = image_shape
    _, rows, columns = layout.grid
    largest = _THUMBNAIL if layout.order == "vector" else _BLOCK
    return min(math.ceil(height / rows), largest), min(math.ceil(width / columns), largest)


def patches_of(grid: Tensor, patch: int) -> Tensor:
    """Return the surroundings of every position, "b c h w" -> "b hw ckk"."""
    around = nn.functional.pad(grid, [patch // 2] * 4, mode="replicate") if patch > 1 else grid
    return nn.functional.unfold(around, patch).mT


def tiles_of(image: Tensor, block: tuple[int, int]) -> Tensor:
    """Cut pictures into what each position is to predict, "b c hs ws" -> "b hw css"."""
    return nn.functional.unfold(image, block, stride=block).mT


def untiled(
    tiles: Float[Tensor, "b n k"], block: tuple[int, int], grid: tuple[int, int, int]
) -> Float[Tensor, "b c h w"]:
    """Lay tiles of "c * block" numbers out on a grid of `(c, rows, columns)`: what `tiles_of` cut."""
    channels, rows, columns = grid
    laid = tiles.reshape(-1, rows, columns, channels, *block).permute(0, 3, 1, 4, 2, 5)
    return laid.reshape(-1, channels, rows * block[0], columns * block[1])


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return pictures at another size, smoothly."""
    if tuple(image.shape[2:]) == size:
        return image
    return nn.functional.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)


def _covers(rows: int, columns: int, height: int, width: int) -> bool:
    if min(rows, columns) < 2 or rows > height or columns > width:
        return False
    return abs(rows / columns - height / width) <= 0.5 * height / width / min(rows, columns) + 1e-9
