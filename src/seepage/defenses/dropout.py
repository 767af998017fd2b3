"""Dropout: each number is sent with some chance, and is else zero."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..registry import register
from ..types import Generators, Law, Leak, Secret, Shape
from .base import EVERYONE, BuiltIn, Payload, applied, drawn, learned, mean_of, towards
from .moments import rows_of

_AWAY, _PLAIN = 20.0, 36.0
"""Variances of what was done since: beyond so many a number was sent, and numbers are to have so many on the mean."""


@register("defense", "dropout")
@dataclass(frozen=True)
class Dropout(BuiltIn):
    """Each number is zero with chance `rate`; the others are divided by 1 - `rate`, so that the mean stays."""

    rate: float = 0.5
    mean: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    empty: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    power: float | None = field(default=None, init=False, repr=False, compare=False)
    variance: float = field(default=0.0, init=False, repr=False, compare=False)

    holder: ClassVar[str] = "nobody"
    protects_from: ClassVar[tuple[str, ...]] = EVERYONE
    randomised: ClassVar[bool] = True
    affine: ClassVar[bool] = True
    gathers: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate is a share of at least 0 and below 1, got {self.rate:g}")

    def fit(self, leaks: Iterator[Leak]) -> Dropout:
        """Learn the mean leak, by which what was dropped is guessed at, how often a number is zero by itself, how large
        numbers are, and how much they vary."""
        rows, found = rows_of(leaks), self
        mean, power = rows.mean(0), float(rows.double().square().mean())
        found = learned(learned(found, "mean", mean), "empty", (rows == 0).float().mean(0))
        return learned(learned(found, "power", power), "variance", power - float(mean.double().square().mean()))

    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, Secret | None]:
        """Drop; nothing is kept."""
        kept = drawn(leak, generators, lambda shape, generator: torch.rand(shape, generator=generator) >= self.rate)
        return applied(leak, self, leak.features * kept / (1 - self.rate)), None

    def law(self) -> Law:
        """Return the chance."""
        return DropoutLaw(self)

    def payload(self, payload: Payload, shape: Shape) -> Payload:
        """Return as many numbers and, where zero is none of their levels, a bit a number to say which are dropped."""
        left = payload.entrywise()
        return left.marked(math.ceil(math.prod(shape) / 8)) if left.rounded else left


@dataclass(frozen=True)
class DropoutLaw:
    """What was not dropped is known up to a factor."""

    defense: Dropout

    def sample(self, clean: Leak, generators: Generators) -> Leak:
        """Return what might be sent."""
        return self.defense.protect(clean, generators)[0]

    def expected(self, clean: Leak) -> Leak:
        """Return the leak itself."""
        return clean

    @property
    def share(self) -> float:
        """A number's chance to be sent."""
        return 1 - self.defense.rate

    def shown(self, sent: Leak, blur: Float[Tensor, "b"]) -> Leak:
        """Return what was sent, zero where it may be what was done to a zero since: to take that for a number sent is
        worse than to leave a small number out."""
        flat, off = sent.features.flatten(1), blur[:, None].to(sent.features).square()
        seen = (flat.square() > _AWAY * off).view_as(sent.features)
        return sent.with_features(sent.features * seen)

    def told(self, sent: Leak, blur: Float[Tensor, "b"]) -> Bool[Tensor, "b"]:
        """Return whether numbers are usually so much larger that enough are left."""
        power = self.defense.power
        if power is None:
            return blur == 0
        return power / (1 - self.defense.rate) ** 2 >= _PLAIN * blur.square()

    def untold(self, sends: Sequence[Leak], blur: Float[Tensor, "b"]) -> Leak:
        """Return the best linear guess between the mean of the sends and the mean leak."""
        power = self.defense.power or 0.0
        noise = (self.defense.rate / self.share * power + blur.square()) / len(sends)
        found = towards(self.defense.mean, mean_of(tuple(sends)), self.defense.variance, noise)
        return sends[0].with_features(found)

    def carried(self, sent: Leak, blur: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Return the blur, less by what numbers are divided by: what came through is as it was."""
        return self.share * blur

    def exact(self, sent: Leak) -> Bool[Tensor, "b"]:
        """Return that nothing else is lost."""
        return torch.ones(len(sent), dtype=torch.bool)

    def matched(self, clean: Leak, sent: Leak) -> Leak:
        """Return what is sent where the same numbers are dropped: which is in plain sight.

        A number that was zero before is taken for dropped, and tells nothing.
        """
        return sent.with_features(clean.features * (sent.features != 0) / (1 - self.defense.rate))

    def estimate(self, sends: Sequence[Leak]) -> Leak:
        """Return every number that some send shows, and where none does what is likely: the mean leak's, less by the
        chance that the number is zero by itself, which grows with every send that shows none."""
        stacked = torch.stack([send.features for send in sends])
        shown = (stacked != 0).sum(0)
        value = stacked.sum(0) * self.share / shown.clamp_min(1)
        mean, empty = self.defense.mean, self.defense.empty
        unknown = torch.zeros_like(value)
        if mean is not None and empty is not None:
            unseen = self.defense.rate ** len(sends)
            never = (empty + (1 - empty) * unseen).clamp_min(unseen).clamp_min(torch.finfo(torch.float32).tiny)
            unknown = (mean * unseen / never).to(value).expand_as(value)
        return sends[0].with_features(torch.where(shown > 0, value, unknown))

    def log_likelihood(self, sent: Leak, clean: Leak) -> None:
        """Return nothing: what is sent has no density."""
        return
