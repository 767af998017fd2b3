"""Flickr8k: 8,091 photographs of people and animals, five captions each, in the published splits."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..files import printable
from ..registry import register
from ..types import SeepageError
from .archive import folder_of
from .published import Line, Text, caption, file_name, find_text, list_pictures, require_file, require_path
from .source import Entry, PictureSource, require_split

_SPLITS = ("train", "dev", "test")
_ALL = "all"
_CAPTIONS = ("Flickr8k.token.txt", "captions.csv", "captions.txt")
_TEXTS = ("Flickr8k_text", "flickr8k_text", "Flickr8k_text.zip", "flickr8k_text.tgz")
_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset", "Images", "images")
_ARCHIVES = ("Flickr8k_Dataset.zip", "flickr8k_images.tar")
_FETCH = (
    "fetch Flickr8k_Dataset.zip and Flickr8k_text.zip (github.com/jbrownlee/Datasets, release Flickr8k), "
    "put both into one folder, packed or unpacked"
)
# The published captions describe one picture twice, once under a name that no file ever had.
_NEVER_PUBLISHED = "2258277193_586949ec62.jpg.1"


@dataclass
class _Described:
    """The captions of one picture, and the line of the first."""

    line: int
    captions: list[str] = field(default_factory=list)


@register("dataset", "flickr8k")
def flickr8k(split: str, path: Path | None) -> PictureSource:
    """Open `flickr8k/SPLIT@PATH`: `train`, `dev` or `test` with their captions, or `all`, in any split or none.

    PATH is a folder of the published files (Flicker8k_Dataset/, Flickr8k.token.txt, Flickr_8k.trainImages.txt, ...),
    packed or unpacked, or of pictures with captions.csv or Kaggle's captions.txt and, but for `all`, lists of the
    splits (the published ones or splits/train.txt, ...). Sorted by name. Source: Hodosh, Young and Hockenmaier 2013.

    Raises:
        SeepageError: another split, a file that is missing or says what cannot be, or a picture in two splits.
    """
    require_split("flickr8k", split, (*_SPLITS, _ALL))
    name = f"flickr8k/{split}"
    root = require_path(path, name, _FETCH)
    texts = [root, *(root / inner for inner in _TEXTS)] if root.is_dir() else [root]
    text = find_text(texts, _CAPTIONS, name)
    if text is None:
        raise SeepageError(f"{name}: {printable(root)} holds none of {', '.join(_CAPTIONS)}: {_FETCH}")
    described = _described(text)
    folder = _pictures(root, name)
    files = list_pictures(folder, name)
    if split == _ALL:
        members = {one: text.at(about.line) for one, about in described.items() if one != _NEVER_PUBLISHED}
    else:
        members = _members(texts, split, name)
    entries = []
    for one, where in sorted(members.items()):
        if one not in described:
            raise SeepageError(f"{where}: {one!r} has no caption in {text.file}")
        entries.append(Entry(one, require_file(one, files, folder, where), captions=tuple(described[one].captions)))
    return PictureSource(name, tuple(entries), None, folder)


def _described(text: Text) -> dict[str, _Described]:
    """Return what is said of each picture, in the order of the file."""
    rows = _numbered(text) if text.file.endswith(".token.txt") else _table(text)
    found: dict[str, _Described] = {}
    for line, picture, sentence in rows:
        where = text.at(line)
        about = found.setdefault(file_name(picture, where), _Described(line))
        about.captions.append(caption(sentence, where))
    if not found:
        raise SeepageError(f"{text} holds no caption")
    return found


def _numbered(text: Text) -> Iterator[tuple[int, str, str]]:
    """Yield line, picture and caption of NAME#NUMBER, a tab, the caption."""
    first: dict[str, int] = {}
    for line, content in text.lines():
        key, tab, sentence = content.partition("\t")
        picture, sharp, number = key.rpartition("#")
        if not sharp or not (number.isascii() and number.isdigit()):
            raise SeepageError(f"{text.at(line)}: expected NAME.jpg#NUMBER, a tab and a caption, got {content[:80]!r}")
        if key in first:
            raise SeepageError(f"{text.at(line)}: {key!r} was described already, in line {first[key]}")
        first[key] = line
        yield line, picture, sentence if tab else ""


def _table(text: Text) -> Iterator[tuple[int, str, str]]:
    """Yield line, picture and caption of a CSV table with columns image and caption."""
    reader = csv.reader(io.StringIO(text.content, newline=""), strict=True)
    line = 1
    try:
        for row in reader:
            if line == 1 and row != ["image", "caption"]:
                raise SeepageError(f"{text.at(1)}: expected the header image,caption, got {','.join(row)[:80]!r}")
            if line > 1 and row:
                if len(row) != 2:
                    raise SeepageError(f"{text.at(line)}: expected two columns, image,caption, got {len(row)}")
                yield line, row[0], row[1]
            # A quoted caption may hold line breaks: the next row begins behind the last line read.
            line = reader.line_num + 1
    except csv.Error as error:
        raise SeepageError(f"{text.at(line)}: no row of a CSV table: {error}") from error


def _pictures(root: Path, name: str) -> Path:
    """Return the folder that the pictures lie in."""
    if root.is_dir():
        packed = next((root / inner for inner in _ARCHIVES if (root / inner).is_file()), None)
        if _inner(root) is None and packed is not None:
            root = packed
    unpacked = folder_of(root, name, "the pictures of Flickr8k")
    folder = _inner(unpacked) or unpacked
    if not list_pictures(folder, name):
        raise SeepageError(f"{name}: no pictures in {printable(root)}, nor in its {', '.join(_FOLDERS)}: {_FETCH}")
    return folder


def _inner(root: Path) -> Path | None:
    return next(
        (root / inner for inner in _FOLDERS if (root / inner).is_dir() and any((root / inner).glob("*.jpg"))), None
    )


def _members(places: list[Path], split: str, name: str) -> dict[str, Line]:
    """Return the pictures of a split, and where its list names each."""
    lists: dict[str, tuple[Text, dict[str, int]]] = {}
    for one in _SPLITS:
        published = f"Flickr_8k.{one}Images.txt"
        text = find_text(places, (published, f"splits/{one}.txt"), name)
        if text is not None:
            lists[one] = text, _lines(text)
        elif one == split:
            raise SeepageError(
                f"{name}: {printable(places[0])} has no list of its {split} pictures: put {published}, out of "
                f"Flickr8k_text.zip, beside the captions, or write flickr8k/{_ALL}"
            )
    text, own = lists.pop(split)
    for other, (there, lines) in lists.items():
        both = next((picture for picture in own if picture in lines), None)
        if both is not None:
            where = f"{text.at(own[both])}: {both!r}"
            raise SeepageError(f"{where} is in {other} too, by {there.file}, line {lines[both]}")
    return {picture: text.at(line) for picture, line in own.items()}


def _lines(text: Text) -> dict[str, int]:
    """Return the line of each picture in a list of them."""
    found: dict[str, int] = {}
    for line, picture in text.lines():
        first = found.setdefault(file_name(picture, text.at(line)), line)
        if first != line:
            raise SeepageError(f"{text.at(line)}: {picture!r} is listed already, in line {first}")
    if not found:
        raise SeepageError(f"{text} lists no picture")
    return found
