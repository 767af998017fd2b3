"""COCO 2017: photographs of everyday scenes with five captions each."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ..files import printable
from ..registry import register
from ..types import SeepageError
from .published import Text, caption, file_name, find_text, list_pictures, require_file, require_path
from .source import Entry, PictureSource, require_split

_SPLITS = ("train2017", "val2017")
_CONFIG = ConfigDict(strict=True, extra="ignore")
_SHAPE = '{"images": [{"id": 1, "file_name": "x.jpg"}, ...], "annotations": [{"image_id": 1, "caption": "..."}, ...]}'


@dataclass(config=_CONFIG, frozen=True, slots=True)
class _Image:
    id: int
    file_name: str


@dataclass(config=_CONFIG, frozen=True, slots=True)
class _Annotation:
    image_id: int
    caption: str


@dataclass(config=_CONFIG, frozen=True, slots=True)
class _Captions:
    images: list[_Image]
    annotations: list[_Annotation]


@register("dataset", "coco")
def coco(split: str, path: Path | None) -> PictureSource:
    """Open `coco/train2017@PATH` or `coco/val2017@PATH`, with the captions of every picture.

    PATH is a folder of the published layout: train2017/, val2017/ and annotations/captions_train2017.json, .... Sorted
    by name. Source: Lin et al. 2014, Chen et al. 2015.

    Raises:
        SeepageError: another split, a file that is missing, or annotations of another shape.
    """
    require_split("coco", split, _SPLITS)
    name = f"coco/{split}"
    fetch = (
        f"fetch images.cocodataset.org/zips/{split}.zip and "
        "images.cocodataset.org/annotations/annotations_trainval2017.zip, unpack both into one folder"
    )
    root = require_path(path, name, fetch)
    folder = next((one for one in (root / split, root / "images" / split) if one.is_dir()), None)
    if folder is None:
        raise SeepageError(f"{name}: {printable(root)} has no folder {split}: {fetch}, and write {name}@FOLDER")
    text = find_text([root], (f"annotations/captions_{split}.json",), name)
    if text is None:
        raise SeepageError(f"{name}: {printable(root)} has no annotations/captions_{split}.json: {fetch}")
    files = list_pictures(folder, name)
    entries = []
    for where, picture, captions in _described(text):
        found = require_file(picture, files, folder, where)
        if not captions:
            raise SeepageError(f"{where}: {picture!r} has no caption among the annotations")
        entries.append(Entry(picture, found, captions=tuple(captions)))
    entries.sort(key=lambda entry: entry.id)
    return PictureSource(name, tuple(entries), None, folder)


class _Item(NamedTuple):
    """Where a picture or a caption stands in the file."""

    text: Text
    key: str
    position: int

    def __str__(self) -> str:
        return f"{self.text}, {self.key}[{self.position}]"


def _described(text: Text) -> list[tuple[_Item, str, list[str]]]:
    """Return where a picture is described, its file and its captions, in the order of the file."""
    held = _parsed(text)
    found: dict[int, tuple[_Item, str, list[str]]] = {}
    first: dict[str, int] = {}
    for index, image in enumerate(held.images):
        where = _Item(text, "images", index)
        picture = file_name(image.file_name, where)
        if image.id in found:
            raise SeepageError(f"{where}: the id {image.id} is that of {found[image.id][1]!r} already")
        if first.setdefault(picture, index) != index:
            raise SeepageError(f"{where}: {picture!r} is listed already, as images[{first[picture]}]")
        found[image.id] = where, picture, []
    for index, annotation in enumerate(held.annotations):
        where = _Item(text, "annotations", index)
        if annotation.image_id not in found:
            raise SeepageError(f"{where}: no picture among the images has the id {annotation.image_id}")
        found[annotation.image_id][2].append(caption(annotation.caption, where))
    if not found:
        raise SeepageError(f"{text} lists no image")
    return list(found.values())


def _parsed(text: Text) -> _Captions:
    try:
        return TypeAdapter(_Captions).validate_json(text.content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
        where = f"{text}, {place}" if place else f"{text}"
        raise SeepageError(f"{where}: {first['msg']}; expected {_SHAPE}") from None
