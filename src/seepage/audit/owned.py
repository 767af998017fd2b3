"""The attacker's own pictures with their leaks, in two disjoint parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from .. import data
from ..data.feature_cache import CachedFeatures, Extract, NoFeaturesError, cache_features, home, marks_of
from ..data.features import leak_shape
from ..data.source import PictureSource
from ..files import OutputError
from ..types import Examples, Leak, LeakHeader, Pair, PictureFile, SplitModel
from ..victims.several import several

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
        for start in range(0, len(self.source), _BATCH):
            some = self.source.subset(range(start, min(start + _BATCH, len(self.source))))
            try:
                yield from self._pair(some, self._known.get(start) or self._known.setdefault(start, self._keep(some)))
            except NoFeaturesError:
                continue
            except OutputError:  # a full disk, or none of ours
                yield from _Afresh(some, lambda images: self.received(self.split.leak(images)), self.split.load)

    def _pair(self, some: PictureSource, features: CachedFeatures) -> Iterator[Pair]:
        batch = data.load_batch(some, features.indices, self.split.load)
        if batch.pictures is not None:
            leak = features.leak(batch.indices)
            yield self.received(leak.with_features(leak.features.to(self.split.device))), batch.pictures

    def _keep(self, some: PictureSource) -> CachedFeatures:
        split = self.split
        header = LeakHeader(split.name, split.weights_sha256, split.layer, split.preprocessing)
        (found,) = cache_features(
            some, split.load, self._extract, [header], home(), stored="fp32", rows=_BATCH, marks=self._marks
        )
        return found

    @cached_property
    def _known(self) -> dict[int, CachedFeatures]:
        return {}

    @cached_property
    def _extract(self) -> Extract:
        return several((self.split,))

    @cached_property
    def _marks(self) -> dict[str, str]:
        return marks_of(self.split.load, self._extract, [self.split.layer])


def afresh(source: PictureSource, receive: Callable[[Tensor], Leak], load: Callable[[PictureFile], Tensor]) -> Examples:
    """Return the attacker's pictures with leaks that are made anew on every pass."""
    train, select = _parts(source)
    return Examples(_Afresh(train, receive, load), _Afresh(select, receive, load))


def kept(source: PictureSource, split: SplitModel, received: Callable[[Leak], Leak]) -> Examples:
    """Return the attacker's pictures with their leaks at a cut, `received` as whoever holds a leak reads it.

    The victim runs once a picture, when it is first asked for: its features are kept on disk for every attack and audit
    after. Where they would take too much room, or none can be written, they are made anew on every pass.
    """
    if 4 * len(source) * math.prod(leak_shape(split)) > _MOST_BYTES:
        return afresh(source, lambda images: received(split.leak(images)), split.load)
    train, select = _parts(source)
    return Examples(_Kept(train, split, received), _Kept(select, split, received))


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
