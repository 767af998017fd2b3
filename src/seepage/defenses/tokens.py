"""Tokens of a transformer, left out or out of order; those that lie nowhere in the picture stay."""

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
from .base import (
    EVERYONE,
    BuiltIn,
    DefenseError,
    Payload,
    applied,
    drawn,
    learned,
    mean_of,
    require_share,
    towards,
)
from .moments import rows_of


@register("defense", "token-drop")
@dataclass(frozen=True)
class TokenDrop(BuiltIn):
    """Of a picture's patch tokens the share `keep` is sent, drawn afresh for every send; the rest is zero.

    Leading tokens beyond the largest square (class, registers) are always sent. The next stage, like an aware attacker,
    puts the mean tokens of the leaks it is fitted on in the place of those that are missing.
    """

    keep: float = 0.5
    mean: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    power: float = field(default=0.0, init=False, repr=False, compare=False)
    variance: float = field(default=0.0, init=False, repr=False, compare=False)

    holder: ClassVar[str] = "nobody"
    protects_from: ClassVar[tuple[str, ...]] = EVERYONE
    randomised: ClassVar[bool] = True
    affine: ClassVar[bool] = True
    gathers: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_share("keep", self.keep)

    def fit(self, leaks: Iterator[Leak]) -> TokenDrop:
        """Learn the mean token of every place, how large numbers are, and how much they vary."""
        rows = rows_of(leaks)
        mean, power = rows.mean(0), float(rows.double().square().mean())
        found = learned(learned(self, "mean", mean), "power", power)
        return learned(found, "variance", power - float(mean.double().square().mean()))

    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, Secret | None]:
        """Drop tokens; nothing is kept.

        Raises:
            DefenseError: the leak has no tokens.
        """
        tokens, lead = _tokens(leak, "token-drop")
        count = self.count(tokens - lead)

        def kept(shape: Shape, generator: torch.Generator) -> Tensor:
            chosen = torch.zeros(tokens, 1)
            chosen[:lead] = 1
            chosen[lead + torch.randperm(tokens - lead, generator=generator)[:count]] = 1
            return chosen

        return applied(leak, self, leak.features * drawn(leak, generators, kept)), None

    def restore(self, leak: Leak, secret: Secret | None) -> Leak:
        """Return the leak with mean tokens in the empty places."""
        return leak.with_features(self.filled(leak.features))

    def law(self) -> Law:
        """Return the share."""
        return DropLaw(self)

    def payload(self, payload: Payload, shape: Shape) -> Payload:
        """Return the tokens that are sent and a bit a token to say which."""
        tokens, lead = shape[0], _leading(shape[0])
        return payload.keeping_tokens((lead + self.count(tokens - lead)) / tokens, math.ceil(tokens / 8))

    def chance(self, tokens: int) -> Float[Tensor, "t 1"]:
        """Return each token's chance to be sent."""
        lead = _leading(tokens)
        chance = torch.full((tokens, 1), self.count(tokens - lead) / (tokens - lead))
        chance[:lead] = 1
        return chance

    def filled(self, features: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Return the features with mean tokens where all is zero."""
        return features if self.mean is None else _filled(features, self.mean)

    def count(self, patches: int) -> int:
        """Return how many of so many patch tokens are sent."""
        return max(1, math.ceil(self.keep * patches))


@dataclass(frozen=True)
class DropLaw:
    """A token that came is as it was."""

    defense: TokenDrop

    def sample(self, clean: Leak, generators: Generators) -> Leak:
        """Return what might be sent."""
        return self.defense.protect(clean, generators)[0]

    def expected(self, clean: Leak) -> Leak:
        """Return the leak, each token times its chance."""
        tokens, _ = _tokens(clean, "token-drop")
        return applied(clean, self.defense, clean.features * self.defense.chance(tokens).to(clean.features))

    def shown(self, sent: Leak, blur: Float[Tensor, "b"]) -> Leak:
        """Return the tokens that came, zeros for the others: the longest, of which there are as many as are sent."""
        tokens, lead = _tokens(sent, "token-drop")
        if not blur.any():
            return sent
        length = sent.features.norm(dim=2)
        length[:, :lead] = math.inf
        best = length.topk(lead + self.defense.count(tokens - lead), dim=1).indices
        came = torch.zeros_like(length).scatter(1, best, 1.0)
        return sent.with_features(sent.features * came[:, :, None])

    @property
    def share(self) -> float:
        """A patch token's chance to be sent."""
        return self.defense.keep

    def told(self, sent: Leak, blur: Float[Tensor, "b"]) -> Bool[Tensor, "b"]:
        """Return that it shows: how many tokens came is known."""
        return torch.ones(len(sent), dtype=torch.bool)

    def untold(self, sends: Sequence[Leak], blur: Float[Tensor, "b"]) -> Leak:
        """Return the best linear guess between the mean of the sends, of what came, and the mean tokens."""
        tokens, _ = _tokens(sends[0], "token-drop")
        noise = (1 - self.share) / self.share * self.defense.power / len(sends)
        sent = mean_of(sends) / self.defense.chance(tokens).to(sends[0].features)
        found = towards(self.defense.mean, sent, self.defense.variance, torch.full((len(sends[0]),), noise))
        return sends[0].with_features(found)

    def carried(self, sent: Leak, blur: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Return the blur: a token that came is as it was."""
        return blur

    def exact(self, sent: Leak) -> Bool[Tensor, "b"]:
        """Return that nothing else is lost."""
        return torch.ones(len(sent), dtype=torch.bool)

    def matched(self, clean: Leak, sent: Leak) -> Leak:
        """Return what is sent where the same tokens are missing: which is in plain sight."""
        return sent.with_features(clean.features * (sent.features != 0).any(2, keepdim=True))

    def estimate(self, sends: Sequence[Leak]) -> Leak:
        """Return every token that some send shows, mean tokens in the other places."""
        stacked = torch.stack([send.features for send in sends])
        shown = (stacked != 0).any(3, keepdim=True)
        return sends[0].with_features(self.defense.filled(stacked.sum(0) / shown.sum(0).clamp_min(1)))

    def log_likelihood(self, sent: Leak, clean: Leak) -> None:
        """Return nothing: what is sent has no density."""
        return


@register("defense", "token-shuffle")
@dataclass(frozen=True)
class TokenShuffle(BuiltIn):
    """A picture's patch tokens are sent in an order drawn afresh for every send; nobody restores it.

    Where the suffix does not care for their order, as a transformer's with its answer on a class token, nothing is
    lost. Tokens know their place, though: an aware attacker puts each where the mean tokens of the leaks it was fitted
    on fit best (by an assignment problem). Leading tokens beyond the largest square stay where they are.
    """

    mean: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    holder: ClassVar[str] = "nobody"
    protects_from: ClassVar[tuple[str, ...]] = EVERYONE
    randomised: ClassVar[bool] = True
    affine: ClassVar[bool] = True
    gathers: ClassVar[int] = 3

    def fit(self, leaks: Iterator[Leak]) -> TokenShuffle:
        """Learn the mean token of every place."""
        return learned(self, "mean", rows_of(leaks).mean(0))

    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, Secret | None]:
        """Shuffle; the order is forgotten.

        Raises:
            DefenseError: the leak has no tokens.
        """
        tokens, lead = _tokens(leak, "token-shuffle")

        def order(shape: Shape, generator: torch.Generator) -> Tensor:
            return torch.cat([torch.arange(lead), lead + torch.randperm(tokens - lead, generator=generator)])

        return applied(leak, self, _ordered(leak.features, drawn(leak, generators, order))), None

    def law(self) -> Law:
        """Return that every order is as likely as any other."""
        return ShuffleLaw(self)

    def payload(self, payload: Payload, shape: Shape) -> Payload:
        """Return what was there: in another order nothing weighs more."""
        return payload


@dataclass(frozen=True)
class ShuffleLaw:
    """Every order is as likely; what tokens say of their place is another matter."""

    defense: TokenShuffle

    def sample(self, clean: Leak, generators: Generators) -> Leak:
        """Return what might be sent."""
        return self.defense.protect(clean, generators)[0]

    def expected(self, clean: Leak) -> Leak:
        """Return the leak with the mean of its patch tokens in all their places."""
        _, lead = _tokens(clean, "token-shuffle")
        patches = clean.features[:, lead:]
        mean = patches.mean(1, keepdim=True).expand_as(patches)
        return applied(clean, self.defense, torch.cat([clean.features[:, :lead], mean], dim=1))

    def estimate(self, sends: Sequence[Leak]) -> Leak:
        """Return what `unbiased` says, mean tokens in places that are empty."""
        found, mean = self.unbiased(sends), self.defense.mean
        return found if mean is None else found.with_features(_filled(found.features, mean))

    def unbiased(self, sends: Sequence[Leak], *, plain: bool = True) -> Leak:
        """Return the mean of the sends, each put in order first; in the first one's order where nothing was learned."""
        reference = self.defense.mean
        ordered = [torch.stack([self._sorted(row, reference) for row in send.features]) for send in sends]
        if reference is None:
            return sends[0].with_features(ordered[0])
        stacked = torch.stack(ordered)
        # Zeros may be holes that something else left.
        return sends[0].with_features(stacked.sum(0) / (stacked != 0).sum(0).clamp_min(1))

    def log_likelihood(self, sent: Leak, clean: Leak) -> None:
        """Return nothing: what is sent has no density."""
        return

    def _sorted(self, row: Float[Tensor, "t d"], reference: Float[Tensor, "t d"] | None) -> Float[Tensor, "t d"]:
        if reference is None:
            return row
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

        lead = _leading(len(row))
        places, given = (part[lead:].double().cpu() for part in (reference, row.detach()))
        # What all places share says nothing of where a token belongs.
        distance = torch.cdist(places - places.mean(0), given - given.mean(0)).square()
        _, chosen = linear_sum_assignment(distance.numpy())
        return torch.cat([row[:lead], row[lead:][torch.as_tensor(chosen, device=row.device)]])


def _filled(features: Float[Tensor, "b t d"], mean: Float[Tensor, "t d"]) -> Float[Tensor, "b t d"]:
    return torch.where((features == 0).all(2, keepdim=True), mean.to(features), features)


def _ordered(features: Float[Tensor, "b t d"], order: Tensor) -> Float[Tensor, "b t d"]:
    return features.gather(1, order[:, :, None].expand_as(features))


def _tokens(leak: Leak, name: str) -> tuple[int, int]:
    """Return how many tokens a leak has, and how many of them lie nowhere."""
    shape = tuple(leak.features.shape[1:])
    if len(shape) != 2:
        raise DefenseError(
            f"{name} needs a leak of tokens (tokens, width), {leak.header.layer} gives {shape}; "
            "dropout and prune serve every leak"
        )
    return shape[0], _leading(shape[0])


def _leading(tokens: int) -> int:
    """Return how many tokens are left beside the largest square: a class token, registers."""
    return tokens - math.isqrt(tokens) ** 2
