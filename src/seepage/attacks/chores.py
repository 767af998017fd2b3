"""What an attack does beside passes through the prefix, said so that it can be timed before it is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..types import Knowledge


@dataclass(frozen=True)
class Chore:
    """Work that an attack does over and over; `once` does it one time, on made-up data.

    It is done `fitting` times before a leak is seen and `each` times a picture, which may be a fraction: what serves
    several pictures together counts for each of them as its share.
    """

    once: Callable[[], object]
    fitting: float = 0.0
    each: float = 0.0


@runtime_checkable
class Laborious(Protocol):
    """An attack whose passes do not say how long it takes: it trains, or runs a network of its own."""

    def chores(self, knowledge: Knowledge, rows: int) -> Sequence[Chore]:
        """Return all that takes time where `rows` pictures are recovered together, passes included.

        Raises:
            NotRunError: the knowledge lacks what this attack needs.
        """
        ...
