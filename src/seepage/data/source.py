"""A source of pictures: names and files in a fixed order, read one batch at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..pictures import UnreadablePictureError
from ..registry import suggest
from ..types import PictureFile, Pictures, SeepageError
from .hashes import remembered_sha256

UNLABELLED = -1
"""The label, in a batch, of a picture that has none in a source where others have one."""


@dataclass(frozen=True)
class Entry:
    """One picture: its file and what is known of it. `id` is unique in its source, `label` indexes the classes."""

    id: str
    path: Path
    label: int | None = None
    captions: tuple[str, ...] = ()
    identity: str | None = None

    @cached_property
    def file_sha256(self) -> str:
        """The SHA-256 of the file's bytes; empty where they cannot be read, which loading then reports."""
        try:
            return remembered_sha256(self.path)
        except UnreadablePictureError:
            return ""


@dataclass(frozen=True)
class PictureSource:
    """Pictures in a fixed order. `classes` names the labels where the source knows their names."""

    name: str
    entries: tuple[Entry, ...]
    classes: tuple[str, ...] | None
    root: Path

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def known(self) -> frozenset[str]:
        """What is known of at least one picture, among `label`, `captions` and `identity`."""
        return frozenset(
            name
            for entry in self.entries
            for name, value in (
                ("label", entry.label is not None),
                ("captions", entry.captions),
                ("identity", entry.identity),
            )
            if value
        )

    def manifest_sha256(self) -> str:
        """Return a hash of what results depend on: ids, bytes and metadata of all pictures, in order."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for entry in self.entries:
            known = (entry.id, entry.file_sha256, entry.label, entry.captions, entry.identity)
            digest.update(b"\n" + json.dumps(known).encode())
        return digest.hexdigest()

    def limit(self, n: int) -> PictureSource:
        """Return `n` of the pictures: the first of every label, then the second of every label, and so on.

        Raises:
            SeepageError: `n` is not positive.
        """
        if n < 1:
            raise SeepageError(f"a limit of {n} leaves no picture: give at least 1")
        turns: Counter[int | None] = Counter()
        order = []
        for index, entry in enumerate(self.entries):
            order.append((turns[entry.label], index))
            turns[entry.label] += 1
        return self.subset(sorted(index for _, index in sorted(order)[:n]))

    def subset(self, indices: Iterable[int]) -> PictureSource:
        """Return the pictures at these indices, in the order given."""
        return dataclasses.replace(self, entries=tuple(self.entries[index] for index in indices))


@dataclass(frozen=True)
class Batch:
    """What came of loading some pictures of a source.

    `indices` are those that could be read, one a row of `pictures`, which is None where none could; `failed` holds the
    others, each with a line that says why.
    """

    indices: tuple[int, ...]
    pictures: Pictures | None
    failed: dict[int, str]


def load_batch(source: PictureSource, indices: Iterable[int], load: Callable[[PictureFile], Tensor]) -> Batch:
    """Load the pictures at `indices`; `load` is a SplitModel's and gives "3 h w" in [0, 1].

    What a source knows of some pictures and not of others is `UNLABELLED`, an empty tuple or an empty string for those.
    """
    images: list[Tensor] = []
    loaded: list[int] = []
    failed: dict[int, str] = {}
    for index in indices:
        try:
            images.append(load(source.entries[index].path))
            loaded.append(index)
        except SeepageError as error:
            failed[index] = str(error)
    pictures = _pictures(source.subset(loaded), source.known, torch.stack(images)) if images else None
    return Batch(tuple(loaded), pictures, failed)


def batches(
    source: PictureSource,
    load: Callable[[PictureFile], Tensor],
    size: int,
    indices: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yield the pictures at `indices` (all, unless told), `size` at a time, holding no more than one batch."""
    if size < 1:
        raise ValueError(f"a batch holds at least 1 picture, not {size}")
    wanted = range(len(source)) if indices is None else indices
    for start in range(0, len(wanted), size):
        yield load_batch(source, wanted[start : start + size], load)


def require_split(dataset: str, split: str, known: Iterable[str]) -> None:
    """Refuse a split that a data set lacks.

    Raises:
        SeepageError: it is none of `known`; the message names the nearest.
    """
    known = tuple(known)
    if split not in known:
        raise SeepageError(f"{dataset} has no split {split!r}{suggest(split, known)}")


def _pictures(batch: PictureSource, known: frozenset[str], images: Tensor) -> Pictures:
    entries = batch.entries
    labels = torch.tensor([UNLABELLED if entry.label is None else entry.label for entry in entries])
    return Pictures(
        images=images,
        ids=tuple(entry.id for entry in entries),
        labels=labels if "label" in known else None,
        classes=batch.classes,
        captions=tuple(entry.captions for entry in entries) if "captions" in known else None,
        identities=tuple(entry.identity or "" for entry in entries) if "identity" in known else None,
    )
