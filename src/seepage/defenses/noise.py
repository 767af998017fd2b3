"""Noise of mean zero on every number, drawn afresh for every send, and kept by nobody."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..registry import register
from ..types import Generators, Law, Leak, Noise, Secret, Shape
from .base import EVERYONE, BuiltIn, DefenseError, applied, drawn, learned, mean_of, require_positive, together
from .moments import Channels, spread_of

Kind = Literal["gaussian", "laplace", "uniform"]


class _Additive(BuiltIn, ABC):
    """What the three have in common; `strength` is the law's own parameter, in features or in spreads of theirs."""

    kind: ClassVar[Kind]
    holder: ClassVar[str] = "nobody"
    protects_from: ClassVar[tuple[str, ...]] = EVERYONE
    randomised: ClassVar[bool] = True
    affine: ClassVar[bool] = True
    relative: bool
    spread: float | None
    usual: Channels | None

    @property
    @abstractmethod
    def strength(self) -> float:
        """The parameter as given."""

    def fit(self, leaks: Iterator[Leak]) -> _Additive:
        """Learn what leaks are like: their spread where the strength is relative to it, and what denoises them."""
        pool = list(leaks)
        found = learned(self, "usual", Channels.of(iter(pool)))
        return learned(found, "spread", spread_of(iter(pool))) if self.relative else found

    @property
    def width(self) -> float:
        """The law's parameter in units of the features.

        Raises:
            DefenseError: it is relative to a spread that nothing was fitted on.
        """
        if not self.relative:
            return self.strength
        if self.spread is None:
            raise DefenseError(f"{self.kind}:relative=true is fitted on leaks before it protects any")
        return self.strength * self.spread

    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, Secret | None]:
        """Add the noise; nothing is kept."""
        noise = drawn(leak, generators, lambda shape, generator: draw(self.kind, shape, generator))
        return applied(leak, self, leak.features + self.width * noise), None

    def law(self) -> Law:
        """Return the noise's distribution."""
        return NoiseLaw(self, self.kind, self.width)

    def noise(self) -> Noise:
        """Return kind and standard deviation."""
        return Noise(self.kind, self.width * DEVIATION[self.kind])


@register("defense", "gaussian")
@dataclass(frozen=True)
class Gaussian(_Additive):
    """Gaussian noise of standard deviation `sigma` on every number.

    With `relative` the deviation is `sigma` times that of all numbers of the leaks it is fitted on.
    """

    sigma: float = 1.0
    relative: bool = False
    spread: float | None = field(default=None, init=False, repr=False, compare=False)
    usual: Channels | None = field(default=None, init=False, repr=False, compare=False)

    kind: ClassVar[Kind] = "gaussian"

    def __post_init__(self) -> None:
        require_positive("sigma", self.sigma, zero=True)

    @property
    def strength(self) -> float:
        """The standard deviation."""
        return self.sigma


@register("defense", "laplace")
@dataclass(frozen=True)
class Laplace(_Additive):
    """Laplace noise of density exp(-|e| / `scale`) / (2 `scale`) on every number: standard deviation sqrt(2) `scale`.

    With `relative` the scale is `scale` times the standard deviation of all numbers of the leaks it is fitted on.
    """

    scale: float = 1.0
    relative: bool = False
    spread: float | None = field(default=None, init=False, repr=False, compare=False)
    usual: Channels | None = field(default=None, init=False, repr=False, compare=False)

    kind: ClassVar[Kind] = "laplace"

    def __post_init__(self) -> None:
        require_positive("scale", self.scale, zero=True)

    @property
    def strength(self) -> float:
        """The density's scale."""
        return self.scale


@register("defense", "uniform")
@dataclass(frozen=True)
class Uniform(_Additive):
    """Uniform noise between -`scale` and `scale` on every number: standard deviation `scale` / sqrt(3).

    With `relative` the scale is `scale` times the standard deviation of all numbers of the leaks it is fitted on.
    """

    scale: float = 1.0
    relative: bool = False
    spread: float | None = field(default=None, init=False, repr=False, compare=False)
    usual: Channels | None = field(default=None, init=False, repr=False, compare=False)

    kind: ClassVar[Kind] = "uniform"

    def __post_init__(self) -> None:
        require_positive("scale", self.scale, zero=True)

    @property
    def strength(self) -> float:
        """The largest noise."""
        return self.scale


DEVIATION: dict[Kind, float] = {"gaussian": 1.0, "laplace": math.sqrt(2), "uniform": 1 / math.sqrt(3)}
"""The standard deviation of noise whose parameter is 1."""


def draw(kind: Kind, shape: Shape, generator: torch.Generator) -> Tensor:
    """Return noise whose parameter is 1."""
    if kind == "gaussian":
        return torch.randn(shape, generator=generator)
    if kind == "uniform":
        return 2 * torch.rand(shape, generator=generator) - 1
    # The difference of two exponentials has no logarithm of a zero that a uniform number may be.
    one = torch.empty(shape).exponential_(generator=generator)
    return one - torch.empty(shape).exponential_(generator=generator)


@dataclass(frozen=True)
class NoiseLaw:
    """The noise's distribution about the clean leak, and the likeliest leak behind several sends of it."""

    defense: _Additive
    kind: Kind
    width: float

    def sample(self, clean: Leak, generators: Generators) -> Leak:
        """Return what might be sent."""
        return self.defense.protect(clean, generators)[0]

    def expected(self, clean: Leak) -> Leak:
        """Return the leak itself: the noise has mean zero."""
        return clean

    def estimate(self, sends: Sequence[Leak]) -> Leak:
        """Return the best guess: what `unbiased` says, denoised by what leaks are like where that was learned."""
        return self.guess(sends, torch.zeros(len(sends[0])))

    def guess(
        self, sends: Sequence[Leak], blur: Float[Tensor, "b"], *, behind: float = 1.0, plain: bool = True
    ) -> Leak:
        """Return `unbiased` denoised, of the noise and of a blur that came since."""
        plain = plain and not blur.any()
        found, usual, k = self.unbiased(sends, plain=plain), self.defense.usual, len(sends)
        if usual is None or self.deviation == 0:
            return found
        variance = self.deviation**2 / (k * behind)
        if plain and k > 1 and self.kind != "gaussian":
            # Of a median under Laplace noise, and of the middle of least and largest under uniform noise.
            variance *= 0.5 if self.kind == "laplace" else 6 * k / ((k + 1) * (k + 2))
        return found.with_features(usual.denoised(found.features, variance + blur.square() / k))

    def unbiased(self, sends: Sequence[Leak], *, plain: bool = True) -> Leak:
        """Return the likeliest leak: the mean under Gaussian noise, the median under Laplace's, under uniform noise
        the middle of least and largest, which comes nearer than the mean from three sends on. The mean of what is not
        plain."""
        if self.kind == "gaussian" or len(sends) == 1 or not plain:
            return sends[0].with_features(mean_of(tuple(sends)))
        ordered = torch.stack([send.features for send in sends]).sort(0).values
        last = len(sends) - 1
        low, high = (ordered[last // 2], ordered[last - last // 2]) if self.kind == "laplace" else ordered[[0, last]]
        return sends[0].with_features((low + high) / 2)

    @property
    def deviation(self) -> float:
        """The noise's standard deviation."""
        return self.width * DEVIATION[self.kind]

    def carried(self, sent: Leak, blur: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Return the blur with the noise."""
        return together(blur, torch.full((len(sent),), self.deviation))

    def exact(self, sent: Leak) -> Bool[Tensor, "b"]:
        """Return that nothing else is lost."""
        return torch.ones(len(sent), dtype=torch.bool)

    def log_likelihood(self, sent: Leak, clean: Leak) -> Float[Tensor, "b"] | None:
        """Return the density's logarithm, in nats; None for noise of no width."""
        if self.width == 0:
            return None
        return density(self.kind, (sent.features - clean.features) / self.width, self.width)


def density(kind: Kind, off: Float[Tensor, "b ..."], width: float) -> Float[Tensor, "b"]:
    """Return the log density of each row of noise, given in units of its parameter."""
    flat = off.flatten(1)
    if kind == "gaussian":
        return -0.5 * (flat.square() + math.log(2 * math.pi * width**2)).sum(1)
    if kind == "laplace":
        return -(flat.abs() + math.log(2 * width)).sum(1)
    # What was sent was rounded, so that noise on the edge may seem beyond it.
    inside = (flat.abs() <= 1 + 1e-4).all(1)
    return torch.where(inside, -flat.shape[1] * math.log(2 * width), -math.inf).to(flat)
