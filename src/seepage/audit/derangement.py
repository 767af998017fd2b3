"""Which other picture a picture is taken for: the null control of leaks and recoveries that are swapped."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import torch

from .. import seeding
from ..data.source import Entry
from ..metrics.tokens import words


class Derangement:
    """Pictures in a ring drawn by `seed`, of which the next is somebody else's.

    In no order of theirs: pictures often lie class by class, and the next one's label is then one's own.
    """

    def __init__(self, entries: Sequence[Entry], hashes: Sequence[str], seed: int, name: str) -> None:
        draws = seeding.generator(seed, "control", name)
        self._entries, self._hashes = entries, hashes
        self._ring: list[int] = torch.randperm(len(entries), generator=draws).tolist()
        self._place = {index: place for place, index in enumerate(self._ring)}
        self._places: dict[str, list[int]] = {}

    def others(self, index: int, having: str = "") -> Iterator[int]:
        """Yield the others in the ring's order from `index` on, without its copies.

        With `having` "captions" or "label" those alone that have some.
        """
        ring, hashes, places = self._ring, self._hashes, self._with(having)
        start = bisect_right(places, self._place[index])
        for step in range(len(places)):
            other = ring[places[(start + step) % len(places)]]
            if hashes[other] != hashes[index]:
                yield other

    def _with(self, having: str) -> list[int]:
        """Return the places of those that have it, in order, looked for once."""
        if having not in self._places:
            found = (place for place, index in enumerate(self._ring) if _has(self._entries[index], having))
            self._places[having] = list(found)
        return self._places[having]


def _has(entry: Entry, what: str) -> bool:
    if what == "captions":
        return any(map(words, entry.captions))
    return what != "label" or entry.label is not None
