"""The attacker's own pictures with their leaks, in two disjoint parts."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from .. import data
from ..data.feature_cache import CachedFeatures, Extract, NoFeaturesError, cache_features, holds, home, marks_of
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


@dataclass
class _Kept:
    """A re-iterable of (leak, pictures) whose features the victim gives once: what has been asked for is on disk.

    Once the disk is full, nothing more is kept.
    """

    source: PictureSource
    split: SplitModel
    received: Callable[[Leak], Leak]
    full: bool = False

    def __len__(self) -> int:
        return math.ceil(len(self.source) / _BATCH)

    def __iter__(self) -> Iterator[Pair]:
        for start, some in self._batches():
            try:
                features = self._kept(start, some)
            except NoFeaturesError:
                continue
            if features is None:
                yield from _Afresh(some, lambda images: self.received(self.split.leak(images)), self.split.load)
            else:
                yield from self._pair(some, features)

    @property
    def lacking(self) -> int:
        """How many pictures the victim has yet to be run on."""
        header, mark = self._header, self._marks[self.split.layer]
        return sum(
            len(some)
            for start, some in self._batches()
            if start not in self._known and not holds(some, header, home(), stored="fp32", mark=mark, rows=_BATCH)
        )

    def _batches(self) -> Iterator[tuple[int, PictureSource]]:
        for start in range(0, len(self.source), _BATCH):
            yield start, self.source.subset(range(start, min(start + _BATCH, len(self.source))))

    def _kept(self, start: int, some: PictureSource) -> CachedFeatures | None:
        """Return the features of a batch, from disk if they can be; None if they are to be made anew."""
        if start not in self._known and not self.full:
            try:
                self._known[start] = self._keep(some)
            except OutputError:  # a full disk, or none of ours
                self.full = True
        return self._known.get(start)

    def _pair(self, some: PictureSource, features: CachedFeatures) -> Iterator[Pair]:
        batch = data.load_batch(some, features.indices, self.split.load)
        if batch.pictures is not None:
            leak = features.leak(batch.indices)
            yield self.received(leak.with_features(leak.features.to(self.split.device))), batch.pictures

    def _keep(self, some: PictureSource) -> CachedFeatures:
        (found,) = cache_features(
            *(some, self.split.load, self._extract, [self._header], home()),
            stored="fp32", rows=_BATCH, marks=self._marks,
        )  # fmt: skip
        return found

    @property
    def _header(self) -> LeakHeader:
        split = self.split
        return LeakHeader(split.name, split.weights_sha256, split.layer, split.preprocessing)

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
    after. Where they would take more than 4 GiB, or half of what is free, they are made anew on every pass.
    """
    if len(source) * row_bytes(split) > min(_MOST_BYTES, _free(home()) // 2):
        return afresh(source, lambda images: received(split.leak(images)), split.load)
    train, select = _parts(source)
    return Examples(_Kept(train, split, received), _Kept(select, split, received))


def lacking(examples: Examples) -> int:
    """Return how many of the attacker's pictures the victim has yet to be run on for good."""
    return sum(part.lacking for part in (examples.train, examples.select) if isinstance(part, _Kept))


def row_bytes(split: SplitModel) -> int:
    """Return what the kept features of one picture weigh."""
    return 4 * math.prod(leak_shape(split))


def _free(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or would be."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    return shutil.disk_usage(there).free


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
