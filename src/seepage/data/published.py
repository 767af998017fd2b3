"""What the loaders of published data sets share: finding their files, reading their lists, refusing what is wrong."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .. import assets
from ..files import printable
from ..pictures import EXTENSIONS
from ..registry import suggest
from ..types import SeepageError
from .archive import files_of

LONGEST_CAPTION = 10_000
"""Characters a caption may have, far above any that people write of a picture."""


@dataclass(frozen=True)
class Text:
    """A text file, on disk or inside an archive, of a data set that errors call `name`."""

    name: str
    file: str
    content: str

    def __str__(self) -> str:
        return f"{self.name}: {self.file}"

    def at(self, line: int) -> Line:
        """Return the name of a line, counted from 1."""
        return Line(self, line)

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield the lines that are not blank, stripped, with their numbers."""
        for number, line in enumerate(self.content.split("\n"), start=1):
            if line.strip():
                yield number, line.strip()


class Line(NamedTuple):
    """Where a line stands, put into words only once an error needs them: a file may have half a million."""

    text: Text
    number: int

    def __str__(self) -> str:
        return f"{self.text}, line {self.number}"


def require_path(path: Path | None, name: str, fetch: str) -> Path:
    """Return the path that was given for `name`, DATASET/SPLIT.

    `fetch` says what to fetch, from where, and where to put it.

    Raises:
        SeepageError: none was given, or nothing is there.
    """
    if path is None:
        raise SeepageError(f"{name} needs its files: {fetch}, and write {name}@FOLDER")
    if not path.exists():
        raise SeepageError(f"{name}: there is no {printable(path)}: {fetch}, and write {name}@FOLDER")
    return path


def pulled(name: str, expected: str) -> Path:
    """Return what `seepage pull` fetched of `name`, DATASET/SPLIT; `expected` says what a PATH may be instead.

    Raises:
        SeepageError: it was not fetched.
    """
    asset = assets.DATA[name.partition("/")[0]]
    if not asset.path.is_file():
        size = f"{asset.size / 1e6:.0f} MB from {asset.sources[0]}"
        raise SeepageError(
            f"{name} is not here: type `seepage pull {asset.name}` ({size}), put {asset.filename} at "
            f"{printable(asset.path)}, or write {name}@PATH, where PATH is {expected}"
        )
    return asset.path


def find_text(places: Iterable[Path], names: Sequence[str], name: str) -> Text | None:
    """Return the first file of `names` in the first of `places`, folders and archives, that has one.

    Raises:
        SeepageError: it cannot be read, is not UTF-8, or lies in a damaged archive.
    """
    found = find_bytes(places, names, name)
    return None if found is None else decode(found[1], name, found[0])


def find_bytes(places: Iterable[Path], names: Sequence[str], name: str) -> tuple[str, bytes] | None:
    """Return what the first such file is called in errors, and its bytes; see `find_text`.

    Raises:
        SeepageError: it cannot be read, or lies in a damaged archive.
    """
    for place in places:
        if place.is_dir():
            path = next((place / inner for inner in names if (place / inner).is_file()), None)
            if path is not None:
                return printable(path), _read(path, name)
        elif place.is_file():
            held = files_of(place, lambda inner: _listed(inner, names) is not None, name)
            for wanted in names:
                for inner, content in held.items():
                    if _listed(inner, names) == wanted:
                        return f"{printable(place)}/{printable(inner)}", content
    return None


def _listed(inner: PurePosixPath, names: Sequence[str]) -> str | None:
    return next(
        (one for one in names if inner.parts[-len(PurePosixPath(one).parts) :] == PurePosixPath(one).parts), None
    )


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SeepageError(f"{name}: cannot read {printable(path)}: {error.strerror or error}") from error


def decode(content: bytes, name: str, file: str) -> Text:
    """Return bytes as text; a byte order mark of UTF-8 is left out.

    Raises:
        SeepageError: another encoding; the first line that shows it is named.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SeepageError(f"{name}: {file}, line 1, is UTF-16, not UTF-8: save the file in that encoding")
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = Text(name, file, content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SeepageError(f"{name}: {file}, line {line}, is not UTF-8: save the file in that encoding") from None
    null = text.content.find("\0")
    if null >= 0:
        line = text.content.count("\n", 0, null) + 1
        raise SeepageError(f"{text.at(line)}, holds a null character: save the file as UTF-8 text")
    return text


def caption(text: str, where: object) -> str:
    """Return a caption on one line, its spaces single; `where` is what an error begins with.

    Raises:
        SeepageError: it is empty, or longer than `LONGEST_CAPTION`.
    """
    if len(text) > LONGEST_CAPTION:
        raise SeepageError(f"{where}: a caption has at most {LONGEST_CAPTION:,} characters, this one {len(text):,}")
    words = " ".join(text.split())
    if not words:
        raise SeepageError(f"{where}: the caption is empty; expected a sentence, or no line at all")
    return words


def file_name(text: str, where: object) -> str:
    """Return the name of a picture in its folder.

    Raises:
        SeepageError: it is empty or leads elsewhere.
    """
    if not text or text in (".", "..") or "/" in text or "\\" in text:
        raise SeepageError(f"{where}: {text[:80]!r} is no file name; expected the name of a picture, without a folder")
    return text


def require_file(file: str, files: Mapping[str, Path], folder: Path, where: object) -> Path:
    """Return the picture called `file`.

    Raises:
        SeepageError: the folder has none of that name.
    """
    path = files.get(file)
    if path is None:
        near = suggest(file, files) if len(files) < 1000 else ""
        raise SeepageError(f"{where}: there is no file {file!r} in {printable(folder)}{near}")
    return path


def list_pictures(folder: Path, name: str) -> dict[str, Path]:
    """Return the pictures of a folder by file name, sorted; hidden files and other files are left out.

    Raises:
        SeepageError: the folder cannot be listed.
    """
    return {
        file: folder / file for file in _names(folder, name, lambda one: os.path.splitext(one)[1].lower() in EXTENSIONS)
    }


def list_folders(folder: Path, name: str) -> tuple[str, ...]:
    """Return the names of the folders in a folder, sorted; hidden ones are left out.

    Raises:
        SeepageError: the folder cannot be listed.
    """
    return tuple(_names(folder, name, lambda one: os.path.isdir(folder / one)))


def _names(folder: Path, name: str, wanted: Callable[[str], bool]) -> list[str]:
    try:
        return sorted(one for one in os.listdir(folder) if not one.startswith(".") and wanted(one))
    except OSError as error:
        raise SeepageError(f"{name}: cannot list {printable(folder)}: {error.strerror or error}") from error
