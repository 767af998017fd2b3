"""A picture corrected by what it would have leaked: linear steps learned on synthetic pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..types import Progress
from .ridge import (
    CHUNK,
    Layout,
    Ridge,
    RidgeDecoder,
    best_ridge,
    held_out,
    moments,
    patches_of,
    resized,
    tiles_of,
    untiled,
)

_PATCHES = (5, 3, 1)
_WIDEST = 1200
_PIXELS, _FEWEST, _MOST = 2**20, 24, 256
# A correction that lowers the mean log error by less is not worth its pass.
_LEAST_GAIN = 0.01
# What a preconditioner makes of directions that it learned nothing about, of what it makes of all on average.
_FLOOR = 0.1

PrefixFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Correction:
    """The step x <- x + A (leak - prefix(x)) + B J^T (leak - prefix(x)) + C x + d, J the prefix's Jacobian at x.

    A, B and C are convolutions on the grid of the features; a position speaks for `block` x `block` pixels.
    """

    layout: Layout
    block: tuple[int, int]
    tensors: Mapping[str, Tensor]

    def __call__(
        self, images: Float[Tensor, "b c h w"], off: Float[Tensor, "b ..."], pull: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Return corrected pictures in [0, 1]; `off` is leak - prefix(images), `pull` is J^T of it."""
        parts = self.inputs(images, off, pull)
        tiles = sum(_convolved(part, self.tensors[name]) for name, part in parts.items()) + self.tensors["bias"]
        return (images + self._picture(tiles, images)).clamp(0, 1)

    def inputs(self, images: Tensor, off: Tensor, pull: Tensor) -> dict[str, Tensor]:
        """Return what the step looks at, each "b k rows columns"."""
        return {
            "features": self.layout.arrange(off) / self.tensors["scale"],
            "pull": self._tiles(pull / self.tensors["strength"]),
            "pixels": self._tiles(images - 0.5),
        }

    def wanted(self, images: Tensor, truth: Tensor) -> Float[Tensor, "b n k"]:
        """Return what the step should add, position by position."""
        return self._tiles(truth - images).flatten(2).mT

    def _tiles(self, images: Tensor) -> Tensor:
        _, rows, columns = self.layout.grid
        size = (rows * self.block[0], columns * self.block[1])
        return _gridded(tiles_of(resized(images, size), self.block), self.layout.grid)

    def _picture(self, tiles: Tensor, like: Tensor) -> Tensor:
        _, rows, columns = self.layout.grid
        picture = untiled(tiles.flatten(2).mT, self.block, (like.shape[1], rows, columns))
        return resized(picture, (like.shape[2], like.shape[3]))


@dataclass(frozen=True)
class Preconditioner:
    """v -> R R^T v + a v on flat pictures: R is the convolution that leads best from an error of features to pixels.

    Where R inverts the Jacobian J, R R^T inverts J^T J; where R knows nothing it moves little, so that the first steps
    of conjugate gradients stay with errors that pictures have. a is a tenth of R R^T's mean diagonal: the last digits
    are of errors that no picture has. For grids that tile the picture exactly.
    """

    block: tuple[int, int]
    grid: tuple[int, int, int]
    kernel: Float[Tensor, "k c p p"]

    def __call__(self, v: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return the product; v is "b (c h w)"."""
        channels, rows, columns = self.grid
        half = self.kernel.shape[-1] // 2
        pictures = v.view(-1, channels, rows * self.block[0], columns * self.block[1])
        tiles = _gridded(tiles_of(pictures, self.block), self.grid)
        back = nn.functional.conv_transpose2d(tiles, self.kernel, padding=half)
        there = nn.functional.conv2d(back, self.kernel, padding=half)
        floor = _FLOOR * self.kernel.square().sum() / len(self.kernel)
        return untiled(there.flatten(2).mT, self.block, self.grid).flatten(1) + floor * v


@dataclass(frozen=True)
class CorrectedDecoder:
    """A ridge decoder, then corrections in turn: each costs one run of the prefix with its backward.

    `psnr` is the mean over the synthetic pictures that were held out, in dB; minus infinity where none was.
    """

    prefix: PrefixFunction
    decoder: RidgeDecoder
    corrections: tuple[Correction, ...] = ()
    preconditioner: Preconditioner | None = None
    psnr: float = -math.inf

    def __call__(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        """Return pictures in [0, 1]."""
        images = self.decoder(features)
        for correction in self.corrections:
            images = correction(images, *_pulled(self.prefix, images, features))
        return images


@dataclass(frozen=True)
class Corrections:
    """Fit a `CorrectedDecoder` on `pictures` dead-leaves pictures: at most `stages` corrections.

    Each is a ridge regression from where the one before it left the same pictures, as in supervised descent (Xiong &
    De la Torre, CVPR 2013): to begin with it undoes what the ridge decoder cannot see, then what is left. A quarter of
    the pictures is held out; it chooses the ridge, and where nothing more is gained. `pictures=0` takes as many as hold
    a million pixels, between 24 and 256. `preconditioned=False` spares the pass that a preconditioner is learned from.
    """

    stages: int = 8
    pictures: int = 0
    preconditioned: bool = True

    def count(self, image_shape: tuple[int, int, int]) -> int:
        """Return how many pictures of this shape are drawn."""
        return self.pictures or min(max(_PIXELS // math.prod(image_shape[1:]), _FEWEST), _MOST)

    def fit(
        self,
        prefix: PrefixFunction,
        image_shape: tuple[int, int, int],
        generator: torch.Generator,
        *,
        device: torch.device,
        progress: Progress | None = None,
    ) -> tuple[CorrectedDecoder, Tensor]:
        """Return the decoder and the synthetic pictures' mean features, "1 ..."; arguments as in `Ridge.fit`."""
        told = progress or (lambda done, what: None)
        count = self.count(image_shape)
        ridge = Ridge(count)
        truth, features = ridge.examples(
            prefix, image_shape, generator, device=device, progress=lambda done, what: told(0.2 * done, what)
        )
        told(0.2, "ridge decoder")
        decoder = ridge.regress(truth, features, image_shape, generator)
        mean = features.mean(0, keepdim=True)
        bare = CorrectedDecoder(prefix, decoder)
        widths = _widths(decoder)
        if widths is None:
            return bare, mean
        study = _Study(prefix, decoder, truth, features, generator)
        images, found = decoder(features), list[Correction]()
        error = study.error(images)
        for stage in range(self.stages):
            told(0.3 + 0.6 * stage / self.stages, "corrections")
            correction, onward = study.correction(images, widths)
            after = study.error(onward)
            if not after < error - _LEAST_GAIN:
                break
            found.append(correction)
            images, error = onward, after
        psnr = -10 * error / math.log(10)
        preconditioner = study.preconditioner(images, widths) if self.preconditioned else None
        return CorrectedDecoder(prefix, decoder, tuple(found), preconditioner, psnr), mean


@dataclass(frozen=True)
class _Study:
    """Synthetic pictures and their leaks, a quarter held out, to learn corrections from."""

    prefix: PrefixFunction
    decoder: RidgeDecoder
    truth: Tensor
    features: Tensor
    generator: torch.Generator

    def error(self, images: Tensor) -> float:
        """Return the mean log error of the pictures held out."""
        held = held_out(len(images))
        return log_error(images[:held], self.truth[:held])

    def correction(self, images: Tensor, widths: Mapping[str, tuple[int, int]]) -> tuple[Correction, Tensor]:
        """Return the step that serves best from here, and the pictures after it."""
        off, pull = _pulled(self.prefix, images, self.features)
        correction = self._regressed(images, off, pull, widths)
        steps = zip(torch.split(images, CHUNK), torch.split(off, CHUNK), torch.split(pull, CHUNK), strict=True)
        return correction, torch.cat([correction(*some) for some in steps])

    def preconditioner(self, images: Tensor, widths: Mapping[str, tuple[int, int]]) -> Preconditioner | None:
        """Return what a step from here by the features alone makes, where they tile the picture exactly."""
        _, rows, columns = self.decoder.layout.grid
        channels, height, width = self.decoder.image_shape
        block = self.decoder.block
        if (rows * block[0], columns * block[1]) != (height, width):
            return None
        off, pull = _pulled(self.prefix, images, self.features)
        tensors = self._regressed(images, off, pull, {"features": widths["features"]}).tensors
        return Preconditioner(block, (channels, rows, columns), tensors["features"] / tensors["scale"])

    def _regressed(
        self, images: Tensor, off: Tensor, pull: Tensor, widths: Mapping[str, tuple[int, int]]
    ) -> Correction:
        scale = self.decoder.layout.arrange(off).std((0, 2, 3), keepdim=True)
        tensors = {"scale": torch.where(scale > 0, scale, 1.0), "strength": pull.std().clamp_min(1e-30)}
        bare = Correction(self.decoder.layout, self.decoder.block, tensors)
        unknowns = [width * size**2 for width, size in widths.values()]

        def rows_of(one: slice) -> tuple[Tensor, Tensor]:
            parts = bare.inputs(images[one], off[one], pull[one])
            x = torch.cat([patches_of(parts[name], size) for name, (_, size) in widths.items()], 2)[0]
            return x, bare.wanted(images[one], self.truth[one])[0]

        fitted, kept = moments(rows_of, len(images), sum(unknowns), self.generator)
        weight, bias = fitted.solve(best_ridge(fitted, kept))
        for (name, (width, size)), part in zip(widths.items(), torch.split(weight.float(), unknowns), strict=True):
            tensors[name] = part.T.reshape(-1, width, size, size)
        tensors["bias"] = bias.float().view(-1, 1, 1)
        return Correction(self.decoder.layout, self.decoder.block, tensors)


def _widths(decoder: RidgeDecoder) -> dict[str, tuple[int, int]] | None:
    """Return channels and patch of each part of a step's inputs; None where features lie nowhere or are too many."""
    channels = decoder.layout.grid[0]
    pixels = decoder.image_shape[0] * math.prod(decoder.block)
    near = 3 if 9 * pixels <= _WIDEST // 4 else 1
    left = _WIDEST - 2 * pixels * near**2
    size = next((size for size in _PATCHES if channels * size**2 <= left), None)
    if decoder.layout.order == "vector" or size is None:
        return None
    return {"features": (channels, size), "pull": (pixels, near), "pixels": (pixels, near)}


def _pulled(prefix: PrefixFunction, images: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return leak - prefix(images) and J^T of it."""
    offs, pulls = [], []
    for some, leak in zip(torch.split(images, CHUNK), torch.split(features, CHUNK), strict=True):
        x = some.detach().requires_grad_()
        with torch.enable_grad():
            # A copy: a prefix may begin in place, which autograd forbids on a leaf.
            off = leak - prefix(x.clone())
            (slope,) = torch.autograd.grad(-0.5 * off.square().sum(), x)
        offs.append(off.detach())
        pulls.append(slope)
    return torch.cat(offs), torch.cat(pulls)


def _gridded(tiles: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Lay numbers by position out on the grid, "b n k" -> "b k rows columns"."""
    return tiles.mT.reshape(len(tiles), -1, *grid[1:])


def _convolved(part: Tensor, kernel: Tensor) -> Tensor:
    half = kernel.shape[-1] // 2
    return nn.functional.conv2d(nn.functional.pad(part, [half] * 4, mode="replicate"), kernel)


def log_error(images: Float[Tensor, "b c h w"], truth: Float[Tensor, "b c h w"]) -> float:
    """Return the mean log of the mean squared error: minus the mean PSNR, up to a factor."""
    return float((images - truth).square().flatten(1).mean(1).clamp_min(1e-16).log().mean())
