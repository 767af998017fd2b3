"""ImageNet-1K: photographs of a thousand classes, as ILSVRC 2012 published them."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from ..files import printable
from ..registry import register, suggest
from ..types import SeepageError
from .published import Text, find_bytes, find_text, list_folders, list_pictures, require_path
from .source import Entry, PictureSource, require_split

_DEVKIT = "ILSVRC2012_devkit_t12"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.ASCII | re.IGNORECASE)
_FETCH: Mapping[str, str] = {
    "train": (
        "fetch ILSVRC2012_img_train.tar (image-net.org, with an account), unpack it into FOLDER/train and each "
        "archive inside into a folder of its WordNet id, train/n01440764/, ..."
    ),
    "val": (
        f"fetch ILSVRC2012_img_val.tar and {_DEVKIT}.tar.gz (image-net.org, with an account), unpack the pictures into "
        "FOLDER/val and put the devkit beside it, packed or unpacked"
    ),
}


@register("dataset", "imagenet")
def imagenet(split: str, path: Path | None) -> PictureSource:
    """Open `imagenet/train@PATH` or `imagenet/val@PATH`, labelled as every classifier trained on it numbers them.

    PATH is a folder with train/WNID/ and val/WNID/, or with val/ as it is published, all pictures in one folder, and
    the devkit whose ground truth labels them by their number. Any part of the classes and pictures may be there; the
    classes are always all thousand, in the order of their WordNet ids. Source: Russakovsky et al. 2015.

    Raises:
        SeepageError: another split, a file that is missing, or pictures of no class.
    """
    require_split("imagenet", split, _FETCH)
    name = f"imagenet/{split}"
    root = require_path(path, name, _FETCH[split])
    folder = root / split
    if not folder.is_dir():
        raise SeepageError(f"{name}: {printable(root)} has no folder {split}: {_FETCH[split]}, and write {name}@FOLDER")
    wnids, classes = _classes()
    folders = list_folders(folder, name)
    flat = list_pictures(folder, name)
    if split == "val" and not folders:
        entries = _numbered(flat, root, {wnid: label for label, wnid in enumerate(wnids)}, name)
    elif flat:
        raise SeepageError(f"{name}: {printable(folder / next(iter(flat)))} lies in no folder of a class")
    else:
        entries = _by_folder(folder, folders, wnids, name)
    if not entries:
        raise SeepageError(f"{name}: no picture in {printable(folder)}: {_FETCH[split]}")
    return PictureSource(name, tuple(entries), classes, folder)


@cache
def _classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the WordNet ids and the names of the classes, from timm's list and torchvision's."""
    from torchvision.models import MobileNet_V2_Weights

    names = tuple(MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])
    spec = importlib.util.find_spec("timm")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        listed = Path(place, "data", "_info", "imagenet_synsets.txt")
        if listed.is_file() and len(wnids := tuple(listed.read_text(encoding="ascii").split())) == len(names):
            return wnids, names
    raise SeepageError("timm is installed without its list of ImageNet's classes; name a folder of pictures instead")


def _by_folder(folder: Path, folders: Sequence[str], wnids: Sequence[str], name: str) -> list[Entry]:
    label = {wnid: number for number, wnid in enumerate(wnids)}
    stray = next((one for one in folders if one not in label), None)
    if stray is not None:
        where = f"{name}: {printable(folder / stray)}"
        raise SeepageError(f"{where} is no folder of a class, such as n01440764{suggest(stray, wnids)}")
    return [
        Entry(f"{wnid}/{file}", path, label[wnid])
        for wnid in folders
        for file, path in list_pictures(folder / wnid, name).items()
    ]


def _numbered(files: Mapping[str, Path], root: Path, label: Mapping[str, int], name: str) -> list[Entry]:
    """Label pictures by the number in their name: that of their line in the ground truth."""
    places = [root / _DEVKIT, root, root / f"{_DEVKIT}.tar.gz"]
    text = find_text(places, (f"data/{_TRUTH}", _TRUTH), name)
    meta = find_bytes(places, ("data/meta.mat", "meta.mat"), name)
    if text is None or meta is None:
        absent = _TRUTH if text is None else "meta.mat"
        raise SeepageError(
            f"{name}: the pictures lie in no folders of classes, and {printable(root)} has no {_DEVKIT}.tar.gz nor "
            f"its {absent}, which labels them: {_FETCH['val']}"
        )
    wnids = _meta(*meta, name)
    truth = _truth(text, wnids, label)
    entries = []
    for file, path in files.items():
        match = _NUMBERED.fullmatch(file)
        if match is None:
            raise SeepageError(f"{name}: {printable(path)} is not named as published, ILSVRC2012_val_00000001.JPEG")
        if int(match[1]) not in truth:
            raise SeepageError(f"{name}: {printable(path)} has no line in {text.file}, which has {len(truth)}")
        entries.append(Entry(file, path, truth[int(match[1])]))
    return entries


def _truth(text: Text, wnids: Mapping[int, str], label: Mapping[str, int]) -> dict[int, int]:
    """Return the label of each line. The devkit counts classes in an order of its own."""
    found = {}
    for line, number in text.lines():
        wnid = wnids.get(int(number)) if number.isascii() and number.isdigit() and len(number) < 9 else None
        if wnid is None:
            raise SeepageError(f"{text.at(line)}: expected the number of a class in meta.mat, got {number[:80]!r}")
        if wnid not in label:
            raise SeepageError(f"{text.at(line)}: class {number} is {wnid!r}, none of ImageNet-1K")
        found[line] = label[wnid]
    return found


def _meta(file: str, content: bytes, name: str) -> dict[int, str]:
    """Return the WordNet id of each class number."""
    import scipy.io  # type: ignore[import-untyped]

    try:
        rows = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    # A damaged file may raise anything at all on its way.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise SeepageError(f"{name}: {file} is no list of ImageNet's classes: {reason}") from error
