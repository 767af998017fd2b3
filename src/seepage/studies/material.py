"""What an attack is trained on: two disjoint parts of pictures and, from one pass of the victim, their features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import data, seeding, victims
from ..data.feature_cache import CachedFeatures, Stored, cache_features, home
from ..data.shown import shown
from ..data.source import Entry, PictureSource
from ..types import LeakHeader, Pair, PictureFile, Pictures, Progress, SeepageError, SplitModel
from ..victims.cut import cut
from ..victims.several import several
from ..victims.victim import Victim

_SELECT_SHARE = 5
_BATCH = 32
LEAST = 2
"""The fewest pictures of a part: one has no other that its features could be taken for."""


class MaterialError(SeepageError):
    """Pictures that nothing can be learned from; the message says what they lack."""


@dataclass(frozen=True)
class Part:
    """Pictures with their features at every layer; `rows` are those of the source that have them all."""

    source: PictureSource
    features: Mapping[str, CachedFeatures]
    rows: tuple[int, ...]
    load: Callable[[PictureFile], Tensor]

    def keeping(self, wanted: Callable[[Entry], bool]) -> Part:
        """Return the part of the pictures that are wanted."""
        rows = tuple(row for row in self.rows if wanted(self.source.entries[row]))
        return Part(self.source, self.features, rows, self.load)

    def few(self, count: int) -> tuple[int, ...]:
        """Return so many of the pictures, the same each time; sources often list them class by class."""
        drawn = torch.randperm(len(self.rows), generator=seeding.generator(0, "fit", "held out"))[:count]
        return tuple(self.rows[place] for place in drawn.tolist())

    def batches(self, layer: str) -> Iterator[Tensor]:
        """Yield the features at a layer, some rows at a time."""
        for start in range(0, len(self.rows), _BATCH):
            yield self.features[layer].read(self.rows[start : start + _BATCH])

    def pictures(self, rows: Sequence[int], ways: Sequence[int] | None = None) -> Pictures:
        """Return pictures by their index in the source, as they are or in the ways that are named.

        Raises:
            MaterialError: they are no longer what their features were computed of.
        """
        batch = data.load_batch(self.source, rows, self.load)
        if batch.pictures is None or batch.failed:
            reason = next(iter(batch.failed.values()), "there are none")
            raise MaterialError(f"pictures of {self.source.name} changed while they were learned from: {reason}")
        if ways is None:
            return batch.pictures
        files = [self.source.entries[row].file_sha256 for row in rows]
        images = [shown(*each) for each in zip(batch.pictures.images, ways, files, strict=True)]
        return replace(batch.pictures, images=torch.stack(images))

    def hashes(self) -> list[str]:
        """Return the SHA-256 of the pictures' files."""
        return [self.source.entries[row].file_sha256 for row in self.rows]


@dataclass(frozen=True)
class Pairs:
    """A part's leaks at one layer with what is known of their pictures; their pixels where `pixels` says so."""

    part: Part
    layer: str
    pixels: bool = True

    def __len__(self) -> int:
        return -(-len(self.part.rows) // _BATCH)

    def __iter__(self) -> Iterator[Pair]:
        for start in range(0, len(self.part.rows), _BATCH):
            rows = self.part.rows[start : start + _BATCH]
            load = self.part.load if self.pixels else _nothing
            batch = data.load_batch(self.part.source, rows, load)
            if batch.pictures is not None:
                yield self.part.features[self.layer].leak(batch.indices), batch.pictures


def _nothing(file: PictureFile) -> Tensor:
    return torch.empty(3, 0, 0)


@dataclass(frozen=True)
class Material:
    """A victim cut at some layers, pictures to train and to select on, and lines on what was left out."""

    victim: Victim
    splits: Mapping[str, SplitModel]
    train: Part
    select: Part
    notes: tuple[str, ...]


def sources(public: str, select: str | None, limit: int | None) -> tuple[PictureSource, PictureSource]:
    """Open the pictures to train and to select on; without the latter, one in five of the former by its hash.

    Raises:
        OverlapError: a picture is in both.
        MaterialError: one part has too few pictures.
        SeepageError: there are no such pictures.
    """
    whole = data.open_source(public)
    if select is not None:
        train, held = whole if limit is None else whole.limit(limit), data.open_source(select)
        data.require_disjoint(train, held)
    else:
        whole = whole if limit is None else whole.limit(limit)
        # Equal files fall on the same side.
        sides = [int(entry.file_sha256[:8] or "1", 16) % _SELECT_SHARE == 0 for entry in whole.entries]
        train = whole.subset(index for index, held_back in enumerate(sides) if not held_back)
        held = whole.subset(index for index, held_back in enumerate(sides) if held_back)
    for part, name in ((train, "train"), (held, "select")):
        if len(part) < LEAST:
            raise MaterialError(
                f"{len(part)} pictures of {public if select is None or part is train else select} are left to {name} "
                f"on; expected at least {LEAST}: give more with {'--public' if part is train else '--select'}"
            )
    return train, held


def material(
    victim_name: str,
    layers: Sequence[str],
    parts: tuple[PictureSource, PictureSource],
    *,
    size: int | None = None,
    device: str = "cpu",
    stored: Stored = "fp16",
    flips: bool = False,
    crops: int = 0,
    progress: Progress | None = None,
) -> Material:
    """Load the victim, cut it, and have the features of both parts at every layer on disk.

    Raises:
        MaterialError: too few pictures have features.
        SeepageError: the victim cannot be had or cut, or the features cannot be kept.
    """
    victim = victims.load(victim_name, device=device, size=size)
    splits = {split.layer: split for split in (cut(victim, layer) for layer in layers)}
    extract = several(tuple(splits.values()))
    headers = [
        LeakHeader(split.name, split.weights_sha256, layer, split.preprocessing) for layer, split in splits.items()
    ]
    load = next(iter(splits.values())).load
    found: list[Part] = []
    notes: list[str] = []
    tell = progress or (lambda done, what: None)
    for number, source in enumerate(parts):

        def advance(done: float, what: str, number: int = number) -> None:
            tell((number + done) / 2, what)

        learned = number == 0
        kept = cache_features(
            source,
            load,
            extract,
            headers,
            home(),
            stored=stored,
            flips=flips and learned,
            crops=crops if learned else 0,
            progress=advance,
        )
        common = set.intersection(*(set(one.indices) for one in kept))
        rows = tuple(index for index in range(len(source)) if index in common)
        if len(rows) < LEAST:
            raise MaterialError(f"{len(rows)} pictures of {source.name} gave features; expected at least {LEAST}")
        lost = {index: reason for one in kept for index, reason in one.failed.items()}
        if lost:
            first = min(lost)
            name = source.entries[first].id
            notes.append(f"{len(lost)} of {len(source)} pictures are left out; the first, {name}: {lost[first]}")
        notes += [note for one in kept for note in one.notes]
        found.append(Part(source, dict(zip(splits, kept, strict=True)), rows, load))
    return Material(victim, splits, found[0], found[1], tuple(notes))
