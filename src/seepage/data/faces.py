"""The ORL faces: 40 people, ten pictures each, a folder a person."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from ..files import printable
from ..registry import register
from ..types import SeepageError
from .archive import folder_of
from .folder import open_folder
from .source import Entry, PictureSource, require_split

_EXPECTED = "orl_faces.tgz or a folder of s1/1.pgm, s1/2.pgm, ..."
_GALLERY = 5
_SPLITS = {
    "all": range(1, 11),
    "gallery": range(1, _GALLERY + 1),
    "probe": range(_GALLERY + 1, 11),
}


@register("dataset", "orl")
def orl(split: str, path: Path | None) -> PictureSource:
    """Open `orl/SPLIT@PATH`, identities by folder: `all`, `gallery` (the first five a person) or `probe` (the rest).

    PATH is the archive of AT&T Laboratories Cambridge or a folder of it. The first picture of every person stands
    first, then the second of every person, so that a limit takes many people. Source: Samaria and Harter 1994.

    Raises:
        SeepageError: another split, no path, or pictures that do not lie as in the archive.
    """
    require_split("orl", split, _SPLITS)
    name = f"orl/{split}"
    source = open_folder(folder_of(path, name, _EXPECTED))
    found = [(*_place(entry, name), entry) for entry in source.entries]
    found.sort(key=lambda one: one[:2])
    entries = tuple(
        Entry(f"s{person}/{entry.path.name}", entry.path, identity=f"s{person}")
        for number, person, entry in found
        if number in _SPLITS[split]
    )
    if not entries:
        numbers = _SPLITS[split]
        raise SeepageError(
            f"{name}: nobody has a picture from {numbers[0]} to {numbers[-1]} in {printable(source.root)}"
        )
    if len({entry.id for entry in entries}) != len(entries):
        raise SeepageError(f"{name}: a person lies in {printable(source.root)} twice; expected {_EXPECTED}")
    return dataclasses.replace(source, name=name, entries=entries, classes=None)


def _place(entry: Entry, name: str) -> tuple[int, int]:
    """Return the number of the picture and that of the person."""
    match = re.fullmatch(r"s(\d+)/(\d+)", f"{entry.path.parent.name}/{entry.path.stem}", re.ASCII)
    if match is None:
        raise SeepageError(f"{name}: {printable(entry.id)} lies in no folder of a person; expected {_EXPECTED}")
    return int(match.group(2)), int(match.group(1))
