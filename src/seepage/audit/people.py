"""Who is on the pictures under audit, and the gallery: other pictures of the same people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor

from .. import data
from ..data.source import PictureSource
from ..schema import Check
from ..types import PictureFile, Pictures
from .judges import FaceJudge
from .request import RequestError

_BATCH = 32
Load = Callable[[PictureFile], Tensor]
_NAMING = "give each an identity in metadata.jsonl, or each person a folder"


class Gallery:
    """The pictures that a recovered one is compared with, and the people they share with those under audit."""

    def __init__(self, audited: PictureSource, source: PictureSource, load: Load, seed: int) -> None:
        mine = {entry.file_sha256 for entry in audited.entries}
        kept = [index for index, entry in enumerate(source.entries) if entry.file_sha256 not in mine]
        if not kept:
            raise RequestError(f"--gallery {source.name}: every picture of it is under audit too")
        self.source = source.subset(kept)
        self.audited = who(audited)
        self._left_out = len(source) - len(kept)
        self._load = load
        self._seed = seed

    @cached_property
    def known(self) -> Counter[str]:
        """How many pictures the gallery has of each person."""
        return Counter(filter(None, who(self.source)))

    @cached_property
    def others(self) -> Mapping[str, str]:
        """For each person under audit whom the gallery knows, another such: a fixed derangement; empty for one."""
        shared = list(dict.fromkeys(person for person in self.audited if person in self.known))
        if len(shared) < 2:
            return {}
        shift = 1 + self._seed % (len(shared) - 1)
        return {person: shared[(index + shift) % len(shared)] for index, person in enumerate(shared)}

    def unavailable(self, least_people: int) -> str | None:
        """Return why no identity can be judged with it, None where one can."""
        if not any(self.audited):
            return f"nothing says who is on the pictures under audit: {_NAMING}"
        if not self.known:
            return f"nothing says who is on the gallery's pictures: {_NAMING}"
        if not any(person in self.known for person in self.audited):
            return f"none of the {len(set(filter(None, self.audited)))} people under audit is in the gallery"
        if len(self.known) < least_people:
            return f"the gallery's pictures are all of one person, and {least_people} are needed to tell apart"
        return None

    def require_a_picture(self) -> None:
        """Look for one picture that can be read.

        Raises:
            RequestError: there is none; the first one's reason is named.
        """
        first = ""
        for batch in data.batches(self.source, self._load, 1):
            if batch.pictures is not None:
                return
            first = first or next(iter(batch.failed.values()))
        raise RequestError(f"--gallery {self.source.name}: no picture of it can be read; the first: {first}")

    def pictures(self, judge: FaceJudge) -> Pictures:
        """Return what can be read of the gallery, as the victim reads pictures and the judge takes them.

        The judge has computed its embeddings of them by then.
        """
        images, rows = [], list[int]()
        for batch in data.batches(self.source, self._load, _BATCH):
            if batch.pictures is not None:
                images.append(judge.fitted(batch.pictures.images))
                rows += batch.indices
        names = who(self.source)
        found = Pictures(
            torch.cat(images),
            tuple(self.source.entries[row].id for row in rows),
            identities=tuple(names[row] for row in rows),
        )
        judge.keep(found.images)
        return found

    def check(self, pictures: Pictures) -> Check:
        """Return what a reader must know of the gallery that was used."""
        have = set(filter(None, pictures.identities or ()))
        absent = sum(person not in have for person in self.audited)
        unread = len(self.source) - len(pictures)
        parts = [f"identities are judged against {len(pictures)} pictures of {len(have)} people"]
        parts += [f"{self._left_out} more are under audit and were left out"] if self._left_out else []
        parts += [f"{unread} more cannot be read"] if unread else []
        parts += [f"{absent} of {len(self.audited)} pictures show nobody it knows and are not scored"] if absent else []
        return Check(name="gallery", level="warning" if absent or unread else "info", message="; ".join(parts))


def who(source: PictureSource) -> tuple[str, ...]:
    """Return who is on each picture: its identity where pictures have any, else its class; empty where unknown."""
    if "identity" in source.known:
        return tuple(entry.identity or "" for entry in source.entries)
    names, labels = source.classes, [entry.label for entry in source.entries]
    return tuple("" if label is None else str(label) if names is None else names[label] for label in labels)
