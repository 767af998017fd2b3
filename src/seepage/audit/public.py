"""The attacker's own pictures: disjoint from those under audit, and in two disjoint parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from .. import data
from ..attacks.equipped import Learned
from ..data.disjoint import OverlapError
from ..data.source import PictureSource
from ..pictures import recalled
from ..types import Attack, Examples, Leak, Pair, SeepageError
from ..victims.victim import Victim

_SELECT_SHARE = 5
_BATCH = 32


@dataclass(frozen=True)
class _Pairs:
    """A re-iterable of (leak, pictures): each pass reads and protects them afresh."""

    source: PictureSource
    receive: Callable[[Tensor], Leak]
    load: Callable[..., Tensor]

    def __len__(self) -> int:
        return math.ceil(len(self.source) / _BATCH)

    def __iter__(self) -> Iterator[Pair]:
        for batch in data.batches(self.source, self.load, _BATCH):
            if batch.pictures is not None:
                yield self.receive(batch.pictures.images), batch.pictures


def require_unseen(attack: Attack, text: str, source: PictureSource) -> None:
    """Refuse to audit with pictures that an attack has learned from.

    Raises:
        OverlapError: it has seen one of them.
    """
    try:
        hashes = [entry.file_sha256 for entry in source.entries]
        seen = set(attack.learned_from(hashes)) if isinstance(attack, Learned) else set()
    except SeepageError:
        return  # its cells will fail with this reason; the others can be run
    if seen:
        first = next(entry.id for entry in source.entries if entry.file_sha256 in seen)
        raise OverlapError(
            f"{text.partition(',')[0]} has learned from {len(seen)} of the {len(source)} pictures under audit, the "
            f"first {first}: audit others, or train without them"
        )


def require_untaught(victim: Victim, source: PictureSource) -> None:
    """Refuse to audit with pictures that a victim's trained defense has learned to hide.

    Raises:
        OverlapError: it has learned from one of them.
    """
    if not victim.seen:
        return
    known = frozenset(victim.seen)
    taught = [entry.id for entry in source.entries if recalled([entry.file_sha256], known)]
    if taught:
        raise OverlapError(
            f"the defense of {victim.name} was trained on {len(taught)} of the {len(source)} pictures under audit, the "
            f"first {taught[0]}: audit others, or train without them"
        )


def examples(source: PictureSource, receive: Callable[[Tensor], Leak], load: Callable[..., Tensor]) -> Examples:
    """Split the attacker's pictures by hash, one in five to select on, the others to train on.

    Equal files fall on the same side.
    """
    train: list[int] = []
    select: list[int] = []
    for index, entry in enumerate(source.entries):
        part = select if int(entry.file_sha256[:8] or "0", 16) % _SELECT_SHARE == 0 else train
        part.append(index)
    return Examples(_Pairs(source.subset(train), receive, load), _Pairs(source.subset(select), receive, load))
