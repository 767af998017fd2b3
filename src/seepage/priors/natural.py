"""What bounds, and who weighs noise against pictures, take these to be: Gaussian, with natural pictures' spectrum."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .spectrum import OPPONENT, cosines

GREY = 0.5
# Variance times squared frequency, in cycles a pixel, along brightness, blue against red and green against both. Of 400
# CIFAR-10 test files between 1/50 and 1/6 cycles it is 4e-3 to 6e-3, of 23 ImageNet photographs at 224 px 2e-3 to 7e-3.
_POWER = 5e-3
_COLOURS = (1.0, 0.12, 0.04)


@dataclass(frozen=True)
class NaturalPrior:
    """A Gaussian around grey whose covariance is diagonal in cosines (DCT-II) of opponent colours.

    The variance of a wave falls as one over its squared frequency (Field 1987; colours: Ruderman, Cronin & Chiao 1998),
    held at the lowest frequency of the picture for the constant one. `image_shape` is "3 h w".

    Its density is smooth on all of R^n, vanishes with its gradient at infinity and has Fisher information `precision`:
    what van Trees' inequality asks of a prior. The uniform density on [0, 1] has none (it jumps at its ends).
    """

    image_shape: tuple[int, int, int]

    @property
    def words(self) -> str:
        """The prior in a few words, for records."""
        return "Gaussian around grey with the power spectrum of natural pictures (variance 0.005 / frequency^2)"

    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
        """Return pictures of this prior; about one pixel in twenty lies outside [0, 1]."""
        white = torch.randn(n, *self.image_shape, generator=generator)
        return GREY + self._scaled(white, self.variances(white).sqrt(), analysed=True)

    def signs(self, n: int, generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
        """Return probes for traces: waves with signs drawn at random.

        In the waves what is wanted of a network's information is closer to diagonal than in pixels, and of a diagonal
        matrix such probes give the trace exactly.
        """
        drawn = torch.randint(2, (n, *self.image_shape), generator=generator) * 2.0 - 1.0
        return self._scaled(drawn, torch.ones(self.image_shape), analysed=True)

    def precision(self, v: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Return the inverse covariance times `v`: the prior's Fisher information."""
        return self._scaled(v, 1 / self.variances(v))

    def surprise(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
        """Return minus twice the log density of pictures, but for a constant: the price of one as an explanation."""
        off = images - GREY
        return (off * self.precision(off)).flatten(1).sum(1)

    def shrink(self, v: Float[Tensor, "b 3 h w"], information: float) -> Float[Tensor, "b 3 h w"]:
        """Return (information * identity + inverse covariance)^-1 times `v`."""
        return self._scaled(v, 1 / (information + 1 / self.variances(v)))

    def variances(self, like: Tensor) -> Float[Tensor, "3 h w"]:
        """Return the variance of every wave, on the device and in the type of `like`."""
        return _variances(*self.image_shape[1:]).to(like)

    def _scaled(self, v: Tensor, factors: Tensor, *, analysed: bool = False) -> Tensor:
        rows, columns, colours = (part.to(v) for part in _basis(*self.image_shape[1:]))
        waves = v if analysed else rows @ torch.einsum("ko,bohw->bkhw", colours, v) @ columns.mT
        return torch.einsum("ko,bkhw->bohw", colours, rows.mT @ (factors.to(v) * waves) @ columns)


@functools.lru_cache(maxsize=8)
def _basis(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both cosine transforms and the orthonormal colours, a row each."""
    colours = torch.tensor(OPPONENT, dtype=torch.float64)
    return cosines(height), cosines(width), colours / colours.norm(dim=1, keepdim=True)


@functools.lru_cache(maxsize=8)
def _variances(height: int, width: int) -> Tensor:
    down, across = (torch.arange(size, dtype=torch.float64) / (2 * size) for size in (height, width))
    frequency = (down[:, None].square() + across.square()).clamp_min((0.5 / max(height, width)) ** 2)
    return torch.tensor(_COLOURS, dtype=torch.float64)[:, None, None] * _POWER / frequency
