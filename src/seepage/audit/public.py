"""The attacker's own pictures: disjoint from those under audit, and in two disjoint parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from .. import data
from ..attacks.equipped import Learned
from ..data.disjoint import OverlapError
from ..data.feature_cache import CachedFeatures, Extract, NoFeaturesError, cache_features, home, marks_of
from ..data.features import leak_shape
from ..data.source import PictureSource
from ..files import OutputError, require_writable
from ..pictures import recalled
from ..types import Attack, Examples, Leak, LeakHeader, Pair, PictureFile, SeepageError, SplitModel
from ..victims.several import several
from ..victims.victim import Victim

_SELECT_SHARE = 5
_BATCH = 32
_MOST_BYTES = 4 << 30
"""So much room the features of one cut may take."""


@dataclass(frozen=True)
class _Afresh:
    """A re-iterable of (leak, pictures): each pass reads and protects them afresh."""

    source: PictureSource
    receive: Callable[[Tensor], Leak]
    load: Callable[[PictureFile], Tensor]

    def __len__(self) -> int:
        return math.ceil(len(self.source) / _BATCH)

    def __iter__(self) -> Iterator[Pair]:
        for batch in data.batches(self.source, self.load, _BATCH):
            if batch.pictures is not None:
                yield self.receive(batch.pictures.images), batch.pictures


@dataclass(frozen=True)
class _Kept:
    """A re-iterable of (leak, pictures) whose features the victim gives once: what has been asked for is on disk."""

    source: PictureSource
    split: SplitModel
    received: Callable[[Leak], Leak]

    def __len__(self) -> int:
        return math.ceil(len(self.source) / _BATCH)

    def __iter__(self) -> Iterator[Pair]:
        for number in range(len(self)):
            features = self._features(number)
            if features is None:
                continue
            some = self.source.subset(self._rows(number))
            batch = data.load_batch(some, features.indices, self.split.load)
            if batch.pictures is not None:
                leak = features.leak(batch.indices)
                yield self.received(leak.with_features(leak.features.to(self.split.device))), batch.pictures

    def _features(self, number: int) -> CachedFeatures | None:
        """Return the features of the pictures of one pair, computed at the first asking; None where none has any."""
        if number not in self._known:
            split, some = self.split, self.source.subset(self._rows(number))
            header = LeakHeader(split.name, split.weights_sha256, split.layer, split.preprocessing)
            try:
                (found,) = cache_features(
                    some, split.load, self._extract, [header], home(), stored="fp32", rows=_BATCH, marks=self._marks
                )
            except NoFeaturesError:
                return None
            self._known[number] = found
        return self._known[number]

    def _rows(self, number: int) -> range:
        return range(number * _BATCH, min((number + 1) * _BATCH, len(self.source)))

    @cached_property
    def _known(self) -> dict[int, CachedFeatures]:
        return {}

    @cached_property
    def _extract(self) -> Extract:
        return several((self.split,))

    @cached_property
    def _marks(self) -> dict[str, str]:
        return marks_of(self.split.load, self._extract, [self.split.layer])


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


def afresh(source: PictureSource, receive: Callable[[Tensor], Leak], load: Callable[[PictureFile], Tensor]) -> Examples:
    """Return the attacker's pictures with leaks that are made anew on every pass."""
    train, select = _parts(source)
    return Examples(_Afresh(train, receive, load), _Afresh(select, receive, load))


def kept(source: PictureSource, split: SplitModel, received: Callable[[Leak], Leak]) -> Examples:
    """Return the attacker's pictures with their leaks at a cut, `received` as whoever holds a leak reads it.

    The victim runs once a picture, when it is first asked for: its features are kept on disk for every attack and audit
    after. Where they would take too much room, or none can be written, they are made anew on every pass.
    """
    wanted = 4 * len(source) * math.prod(leak_shape(split))
    if wanted > _MOST_BYTES or not _writable(home()):
        return afresh(source, lambda images: received(split.leak(images)), split.load)
    train, select = _parts(source)
    return Examples(_Kept(train, split, received), _Kept(select, split, received))


def _writable(folder: Path) -> bool:
    try:
        require_writable(folder)
    except OutputError:
        return False
    return True


def _parts(source: PictureSource) -> tuple[PictureSource, PictureSource]:
    """Split the attacker's pictures by hash, one in five to select on, the others to train on.

    Equal files fall on the same side.
    """
    train: list[int] = []
    select: list[int] = []
    for index, entry in enumerate(source.entries):
        part = select if int(entry.file_sha256[:8] or "0", 16) % _SELECT_SHARE == 0 else train
        part.append(index)
    return source.subset(train), source.subset(select)
