"""Attacks at a later cut than the leak's: who holds the rest of the network runs the leak on to there, then reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..types import Examples, Generators, Knowledge, Leak, NotRunError, Pair, Recoverer, Recovery, SeepageError

_AT_ONCE = 32


@dataclass(frozen=True)
class Way:
    """From a leak to what the victim makes of it at `layer`."""

    layer: str
    run: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, leak: Leak) -> Leak:
        """Return the leak of the later cut; a row of zeros, which says nothing, stays one."""
        features = leak.features.float()
        there = torch.cat([self.run(part) for part in torch.split(features, _AT_ONCE)])
        silent = (features.flatten(1) == 0).all(1).view(-1, *[1] * (there.ndim - 1))
        return Leak(torch.where(silent.to(there.device), 0.0, there), replace(leak.header, layer=self.layer))


def neighbours(features: Float[Tensor, "b ..."]) -> tuple[Int[Tensor, "d"], Int[Tensor, "b"]]:
    """Return which rows differ from the one before, the first of all among them, and which of those each row equals."""
    rows = features.flatten(1)
    fresh = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    for place in range(1, len(rows)):
        fresh[place] = not torch.equal(rows[place], rows[place - 1])
    return fresh.nonzero().flatten(), fresh.cumsum(0) - 1


def way(knowledge: Knowledge, layer: str) -> Way:
    """Return the way from this attacker's cut to a later one.

    Raises:
        NotRunError: the attacker does not have the rest of the network, or there is no such way.
    """
    if knowledge.onward is None:
        raise NotRunError(f"through={layer} needs the victim's own layers up to there, which this attacker lacks")
    try:
        return Way(layer, knowledge.onward(layer))
    except SeepageError as error:
        raise NotRunError(f"through={layer}: {error}") from error


def beyond(knowledge: Knowledge, way: Way) -> Knowledge:
    """Return what is known at the later cut: leaks that are asked for, or owned, are run on as well."""
    query, public = knowledge.query, knowledge.public
    return Knowledge(
        knowledge.image_shape,
        query=None if query is None else lambda images: way(query(images)),
        public=None if public is None else Examples(_Led(public.train, way), _Led(public.select, way)),
        classes=knowledge.classes,
    )


@dataclass(frozen=True)
class _Led:
    """Examples of the later cut, as often as they are gone through."""

    pairs: Iterable[Pair]
    way: Way

    def __iter__(self) -> Iterator[Pair]:
        for leak, pictures in self.pairs:
            yield self.way(leak), pictures


class Onward(Recoverer):
    """A recoverer of the later cut, given leaks of the earlier."""

    def __init__(self, inner: Recoverer, way: Way) -> None:
        self.inner, self.way = inner, way

    def recover(self, leak: Leak, generators: Generators) -> Recovery:
        """Recover from what each row becomes."""
        return self.inner.recover(self.way(leak), generators)

    def prior(self, n: int, generators: Generators) -> Recovery:
        """Return what it says of nothing: at the later cut nothing looks the same."""
        return self.inner.prior(n, generators)

    def constant(self, n: int) -> Recovery | None:
        """Return the later cut's constant."""
        return self.inner.constant(n)

    def score(self, leak: Leak, candidates: Sequence[str] | Tensor) -> Float[Tensor, "b k"] | None:
        """Rank candidates by what each row becomes."""
        return self.inner.score(self.way(leak), candidates)

    def log_likelihood(self, leak: Leak, captions: Sequence[str]) -> Float[Tensor, "b"] | None:
        """Return nats a token of each row's caption under what the row becomes; of equal neighbours one is run on."""
        first, own = neighbours(leak.features)
        there = self.way(leak.with_features(leak.features[first]))
        return self.inner.log_likelihood(there.with_features(there.features[own.to(there.features.device)]), captions)

    def save(self, path: Path) -> None:
        """Write the recoverer of the later cut."""
        self.inner.save(path)
