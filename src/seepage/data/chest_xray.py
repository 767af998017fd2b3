"""Chest X-rays by diagnosis: a folder a finding."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..files import printable
from ..registry import register
from ..types import SeepageError
from .archive import folder_of
from .folder import open_folder
from .source import Entry, PictureSource, require_split

_EXPECTED = "chest_xray_224.tar or a folder with one folder a finding"


@register("dataset", "chestxray")
def chestxray(split: str, path: Path | None) -> PictureSource:
    """Open `chestxray/all@PATH`: labels by folder, such as Covid-19, No_findings and Pneumonia.

    PATH is an archive or a folder of pictures in one folder a finding.

    Raises:
        SeepageError: another split, no path, or pictures outside such folders.
    """
    require_split("chestxray", split, ("all",))
    source = open_folder(folder_of(path, "chestxray/all", _EXPECTED))
    stray = next((entry for entry in source.entries if entry.label is None), None)
    if stray is not None or source.classes is None:
        where = printable(stray.id if stray is not None else source.root)
        raise SeepageError(f"chestxray/all: {where} lies in no folder of a finding; expected {_EXPECTED}")
    entries = tuple(_shortened(entry, source.classes) for entry in source.entries)
    return dataclasses.replace(source, name="chestxray/all", entries=entries)


def _shortened(entry: Entry, classes: tuple[str, ...]) -> Entry:
    """Begin the id at the finding, so that it is the same whatever folders lie above."""
    assert entry.label is not None
    finding = classes[entry.label]
    parts = Path(entry.id).parts
    return dataclasses.replace(entry, id="/".join(parts[parts.index(finding) :])) if finding in parts else entry
