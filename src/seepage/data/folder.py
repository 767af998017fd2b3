"""Folders of pictures: class subfolders, and a metadata.jsonl beside the pictures."""

from __future__ import annotations

import codecs
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..files import printable
from ..pictures import EXTENSIONS
from ..registry import register, suggest
from ..types import SeepageError
from .published import LONGEST_CAPTION
from .source import Entry, PictureSource, require_split

METADATA = "metadata.jsonl"

_Sentence = Annotated[str, Field(pattern=r"\S", max_length=LONGEST_CAPTION)]
_EXPECTED = {
    "file_name": "a path relative to the folder",
    "captions": "a list of sentences",
    "label": "the name of a class, or its number from 0",
    "identity": "a name",
    "split": "a name",
}


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    file_name: Annotated[str, Field(min_length=1)]
    captions: tuple[_Sentence, ...] | None = None
    label: _Sentence | Annotated[int, Field(ge=0)] | None = None
    identity: _Sentence | None = None
    split: _Sentence | None = None


@dataclass(frozen=True)
class _Described:
    """A valid line of the metadata, and where it stands."""

    where: str
    line: _Line


def open_folder(folder: Path, split: str | None = None) -> PictureSource:
    """Open a folder and all below it; with `split`, only the pictures that metadata.jsonl puts there.

    A picture's label is the metadata's, else, where the metadata gives none at all, the first subfolder that it does
    not share with all others. Hidden files and folders are skipped; other files count only where the metadata names
    them.

    Raises:
        SeepageError: no picture, or a line of metadata.jsonl that is wrong.
    """
    files, others = _walk(folder)
    described = _read_metadata(folder)
    for name, about in described.items():
        if name not in files:
            files[name] = _named_file(folder, name, about.where, files)
    if not files:
        raise SeepageError(f"no picture in {printable(folder)}: looked for {_listed(EXTENSIONS)}; {_seen(others)}")
    if split is not None:
        require_split(printable(folder), split, _splits(described))
    labels, classes = _labels(files, described)
    entries = tuple(
        _entry(name, files[name], labels.get(name), described.get(name))
        for name in sorted(files)
        if split is None or (name in described and described[name].line.split == split)
    )
    title = printable(folder.resolve().name) or "/"
    return PictureSource(title if split is None else f"{title}/{split}", entries, classes, folder)


def open_file(path: Path) -> PictureSource:
    """Open one picture, whatever its name; metadata beside it is not read."""
    return PictureSource(printable(path.name), (Entry(printable(path.name), path),), None, path.parent)


@register("dataset", "folder")
def folder_split(split: str, path: Path | None) -> PictureSource:
    """Open `folder/SPLIT@PATH`: the pictures of a folder that its metadata.jsonl puts into that split.

    Raises:
        SeepageError: no folder is named, or it has no such split.
    """
    if path is None or not path.is_dir():
        raise SeepageError(f"folder/{split} needs a folder: write folder/{split}@PATH")
    return open_folder(path, split)


def _walk(folder: Path) -> tuple[dict[str, Path], Counter[str]]:
    """Return the pictures by id, and how many other files there are by extension."""
    pictures: dict[str, Path] = {}
    others: Counter[str] = Counter()
    entered: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(place, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() in EXTENSIONS:
                pictures[_id(path.relative_to(folder))] = path
            elif name != METADATA:
                others[path.suffix.lower()] += 1
    return pictures, others


def _refuse(error: OSError) -> None:
    raise SeepageError(f"cannot list {printable(error.filename)}: {error.strerror}") from error


def _id(relative: Path) -> str:
    """A record is UTF-8, a file name may be any bytes: what is not UTF-8 is escaped."""
    return os.fsencode(relative.as_posix()).decode("utf-8", "backslashreplace")


def _read_metadata(folder: Path) -> dict[str, _Described]:
    path = folder / METADATA
    if not path.is_file():
        return {}
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SeepageError(f"cannot read {printable(path)}: {error.strerror}") from error
    described: dict[str, _Described] = {}
    for number, raw in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not raw.strip():
            continue
        where = f"{printable(path)}, line {number}"
        line = _parse(raw, where)
        name = PurePosixPath(line.file_name)
        if name.is_absolute() or ".." in name.parts:
            raise SeepageError(f"{where}: {line.file_name!r} lies outside the folder; file_name is relative to it")
        if str(name) in described:
            raise SeepageError(f"{where}: {line.file_name!r} was described already, in {described[str(name)].where}")
        described[str(name)] = _Described(where, line)
    return described


def _parse(raw: bytes, where: str) -> _Line:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise SeepageError(f"{where} is not UTF-8: save the file in that encoding") from None
    try:
        return _Line.model_validate_json(text)
    except ValidationError as error:
        raise SeepageError(f"{where}: {_complaint(error)}") from None


def _complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return f"expected one JSON object with file_name, captions, label, identity, split; {first['msg']}"
    key = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return f"there is no field {key!r}{suggest(key, _EXPECTED)}"
    if first["type"] == "missing":
        return f"{key} is missing: {_EXPECTED[key]}"
    if first["type"] == "string_too_long":
        return f"{key} takes at most {LONGEST_CAPTION:,} characters at a time, got {len(first['input']):,}"
    return f"{key} is {_EXPECTED[key]}, got {json.dumps(first['input'])[:80]}"


def _named_file(folder: Path, name: str, where: str, files: Mapping[str, Path]) -> Path:
    path = folder / name
    if not path.is_file():
        raise SeepageError(f"{where}: there is no file {name!r}{suggest(name, files)}")
    return path


def _splits(described: Mapping[str, _Described]) -> set[str]:
    return {about.line.split for about in described.values() if about.line.split is not None}


def _labels(
    files: Mapping[str, Path], described: Mapping[str, _Described]
) -> tuple[dict[str, int], tuple[str, ...] | None]:
    """Return a label a picture, and the names of the classes where labels are names."""
    given = {name: about.line.label for name, about in described.items() if about.line.label is not None}
    if not given:
        # A subfolder that all pictures share, as an unpacked archive leaves one, tells none from another.
        folders = {name: PurePosixPath(name).parent for name in files}
        shared = len(PurePosixPath(os.path.commonpath(folders.values())).parts)
        given = {name: place.parts[shared] for name, place in folders.items() if len(place.parts) > shared}
    names = {name: label for name, label in given.items() if isinstance(label, str)}
    numbers = {name: label for name, label in given.items() if isinstance(label, int)}
    if names and numbers:
        name, number = (described[next(iter(labels))].where for labels in (names, numbers))
        raise SeepageError(f"{name} labels by name, {number} by number: use one of them throughout")
    if not names:
        return numbers, None
    classes = tuple(sorted(set(names.values())))
    index = {label: position for position, label in enumerate(classes)}
    return {name: index[label] for name, label in names.items()}, classes


def _entry(name: str, path: Path, label: int | None, about: _Described | None) -> Entry:
    if about is None:
        return Entry(name, path, label)
    return Entry(name, path, label, about.line.captions or (), about.line.identity)


def _listed(extensions: frozenset[str]) -> str:
    return " ".join(sorted(extensions))


def _seen(others: Counter[str]) -> str:
    if not others:
        return "the folder holds no files at all"
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))[:3]
    kinds = ", ".join(f"{count} {extension or 'without extension'}" for extension, count in ranked)
    return f"other files seen: {others.total()} ({kinds})"
