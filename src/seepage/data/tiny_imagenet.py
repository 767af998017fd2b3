"""TinyImageNet: 200 classes of ImageNet at 64 pixels, 500 training and 50 validation pictures each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..files import printable
from ..registry import register
from ..types import SeepageError
from .archive import folder_of
from .published import Text, file_name, find_text, list_folders, list_pictures, pulled, require_file
from .source import Entry, PictureSource, require_split

_FOLDER = "tiny-imagenet-200"
_EXPECTED = f"{_FOLDER}.zip or the folder it unpacks to"
_FETCH = "`seepage pull tiny_imagenet` fetches all there is"
_COLUMNS = "NAME.JPEG, a tab, the WordNet id of its class, and four numbers of its box"


@register("dataset", "tiny_imagenet")
def tiny_imagenet(split: str, path: Path | None) -> PictureSource:
    """Open `tiny_imagenet/train[@PATH]` or `tiny_imagenet/val[@PATH]`, labelled by class.

    PATH is tiny-imagenet-200.zip, or the folder it unpacks to: wnids.txt, words.txt, train/WNID/images/ and
    val/images/ with val/val_annotations.txt. Without PATH, what `seepage pull tiny_imagenet` fetched. Classes are in
    the order of their WordNet ids, which is that of a classifier trained on class folders, and named by the first of
    their words that no other class begins with. The test pictures have no labels and are none of a split. Source:
    Stanford CS231n.

    Raises:
        SeepageError: another split, nothing at PATH, or a file that is missing or says what cannot be.
    """
    require_split("tiny_imagenet", split, ("train", "val"))
    name = f"tiny_imagenet/{split}"
    root = pulled(name, _EXPECTED) if path is None else path
    if not root.exists():
        raise SeepageError(f"{name}: there is no {printable(root)}; expected {_EXPECTED}")
    if (root / _FOLDER).is_dir():
        root = root / _FOLDER
    texts = {
        file: find_text([root], (file,), name)
        for file in ("wnids.txt", "words.txt", *(["val/val_annotations.txt"] if split == "val" else []))
    }
    absent = next((file for file, text in texts.items() if text is None), None)
    if absent is not None:
        raise SeepageError(f"{name}: {printable(root)} holds no {absent}: {_FETCH}")
    wnids, words, *annotations = (text for text in texts.values() if text is not None)
    classes = _classes(wnids)
    unpacked = folder_of(root, name, _EXPECTED)
    if (unpacked / _FOLDER).is_dir():
        unpacked = unpacked / _FOLDER
    if split == "train":
        entries = _train(unpacked / "train", classes, wnids, name)
    else:
        entries = _val(unpacked / "val" / "images", classes, annotations[0], name)
    return PictureSource(name, entries, _names(list(classes), words), unpacked / split)


def _classes(text: Text) -> dict[str, int]:
    """Return the label of each WordNet id."""
    lines: dict[str, int] = {}
    for line, wnid in text.lines():
        first = lines.setdefault(file_name(wnid, text.at(line)), line)
        if first != line:
            raise SeepageError(f"{text.at(line)}: {wnid!r} is listed already, in line {first}")
    if not lines:
        raise SeepageError(f"{text} lists no class")
    return {wnid: label for label, wnid in enumerate(sorted(lines))}


def _names(wnids: Sequence[str], text: Text) -> tuple[str, ...]:
    """Return what each class is called: its first word, all of its words where two classes share the first."""
    wanted, words = frozenset(wnids), {}
    for line, content in text.lines():
        wnid, tab, named = content.partition("\t")
        if not tab or not named.strip():
            raise SeepageError(f"{text.at(line)}: expected a WordNet id, a tab and words, got {content[:80]!r}")
        if wnid in wanted:
            words[wnid] = named.strip()
    unnamed = next((wnid for wnid in wnids if wnid not in words), None)
    if unnamed is not None:
        raise SeepageError(f"{text} has no words for the class {unnamed!r}")
    firsts = [words[wnid].partition(",")[0] for wnid in wnids]
    count = Counter(firsts)
    return tuple(first if count[first] == 1 else words[wnid] for wnid, first in zip(wnids, firsts, strict=True))


def _train(folder: Path, classes: dict[str, int], wnids: Text, name: str) -> tuple[Entry, ...]:
    entries = []
    there = frozenset(list_folders(folder, name))
    for wnid, label in classes.items():
        if wnid not in there:
            raise SeepageError(f"{name}: {wnid!r} of {wnids.file} has no folder in {printable(folder)}")
        for file, path in list_pictures(folder / wnid / "images", name).items():
            entries.append(Entry(f"{wnid}/{file}", path, label))
    if not entries:
        raise SeepageError(f"{name}: no picture in {printable(folder)}/{next(iter(classes))}/images, nor in the others")
    return tuple(entries)


def _val(folder: Path, classes: dict[str, int], text: Text, name: str) -> tuple[Entry, ...]:
    files = list_pictures(folder, name)
    lines: dict[str, int] = {}
    entries = []
    for line, content in text.lines():
        where = text.at(line)
        columns = content.split("\t")
        if len(columns) < 2:
            raise SeepageError(f"{where}: expected {_COLUMNS}; got {content[:80]!r}")
        picture, wnid = file_name(columns[0], where), columns[1]
        if lines.setdefault(picture, line) != line:
            raise SeepageError(f"{where}: {picture!r} is listed already, in line {lines[picture]}")
        if wnid not in classes:
            raise SeepageError(f"{where}: {wnid!r} is none of the {len(classes)} classes of wnids.txt")
        entries.append(Entry(picture, require_file(picture, files, folder, where), classes[wnid]))
    if not entries:
        raise SeepageError(f"{text} lists no picture")
    return tuple(sorted(entries, key=lambda entry: entry.id))
