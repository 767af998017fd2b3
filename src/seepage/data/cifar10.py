"""CIFAR-10: the publisher's batches, read without running what a pickle may hold, or pictures in class folders."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import tarfile
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import assets
from ..files import printable
from ..registry import register
from ..types import SeepageError
from .archive import folder_of
from .folder import open_folder
from .published import pulled
from .source import Entry, PictureSource, require_split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The names of the ten labels, in their published order."""

_BATCHES: Mapping[str, tuple[str, ...]] = {
    "test": ("test_batch",),
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
}
_FOLDER = "cifar-10-batches-py"
_EXPECTED = (
    f"cifar-10-python.tar.gz, a folder with its {_FOLDER}, or an archive or folder of pictures as SPLIT/CLASS/NAME.png"
)
_ROW = (3, 32, 32)
# What pickled arrays name under Python 2, NumPy 1 and NumPy 2; nothing else of a pickle is looked up.
_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.zeros(0))[0],
    ("numpy._core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.zeros(0))[0],
    ("_codecs", "encode"): lambda text, encoding: str(text).encode(encoding),
}


@register("dataset", "cifar10")
def cifar10(split: str, path: Path | None) -> PictureSource:
    """Open `cifar10/test[@PATH]` or `cifar10/train[@PATH]`, labelled by class.

    PATH is the publisher's `cifar-10-python.tar.gz`, a folder that holds its unpacked batches, or an archive or folder
    of pictures that lie in test/ and train/ in one folder a class. Without PATH, what `seepage pull cifar10` fetched.
    Batches are written out as PNG into the cache once. Source: Krizhevsky 2009.

    Raises:
        SeepageError: another split, nothing at PATH, batches that are damaged or hold anything but pictures and labels,
            or pictures outside the folders of the classes.
    """
    name = f"cifar10/{split}"
    require_split("cifar10", split, _BATCHES)
    found = pulled(name, _EXPECTED) if path is None else path
    batches = _batches(found, split, name)
    if batches is not None:
        return _source(_written(batches, split, name), name, split)
    return _source(folder_of(found, name, _EXPECTED), name, split)


def _batches(path: Path, split: str, name: str) -> list[bytes] | None:
    """Return the bytes of the split's batches, None where there are none of them."""
    wanted = _BATCHES[split]
    try:
        if path.is_dir():
            folder = next((one for one in (path, path / _FOLDER) if (one / wanted[0]).is_file()), None)
            return None if folder is None else [(folder / batch).read_bytes() for batch in wanted]
        if not path.is_file() or not tarfile.is_tarfile(path):
            return None
        held = {}
        with tarfile.open(path) as tarred:
            for member in tarred:
                inner = PurePosixPath(member.name)
                if member.isreg() and inner.parent.name == _FOLDER and inner.name in wanted:
                    opened = tarred.extractfile(member)
                    assert opened is not None
                    held[inner.name] = opened.read()
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise SeepageError(f"{name}: {printable(path)} is a damaged archive: {error}") from error
    except OSError as error:
        missing = printable(error.filename or path)
        raise SeepageError(f"{name}: cannot read {missing}: {error.strerror or error}") from error
    if not held:
        return None
    absent = next((batch for batch in wanted if batch not in held), None)
    if absent is not None:
        raise SeepageError(f"{name}: {printable(path)} holds no {_FOLDER}/{absent}; expected {_EXPECTED}")
    return [held[batch] for batch in wanted]


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries of arrays, numbers and text; whatever else a pickle names is refused, not imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch needs")
        return _ALLOWED[module, name]


def _read(content: bytes, batch: str, name: str) -> tuple[NDArray[np.uint8], Sequence[int]]:
    """Return a batch's pictures "n 32 32 3" and labels."""
    try:
        held = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        data, labels = held["data"], [int(label) for label in held["labels"]]
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(labels), 3072):
            raise ValueError(f"data is no array of bytes, {len(labels)} by 3072")
        if not labels or not set(labels) <= set(range(len(CLASSES))):
            raise ValueError(f"labels are not numbers from 0 to {len(CLASSES) - 1}")
    # A damaged pickle may raise anything at all on its way.
    except Exception as error:
        raise SeepageError(f"{name}: {batch} is no batch of CIFAR-10: {str(error).partition(chr(10))[0]}") from error
    return data.reshape(-1, *_ROW).transpose(0, 2, 3, 1), labels


def _written(batches: Sequence[bytes], split: str, name: str) -> Path:
    """Return the folder in the cache that holds these batches as PNG files, SPLIT/CLASS/NUMBER.png."""
    digest = hashlib.sha256(b"".join(batches)).hexdigest()
    place = assets.home() / "pictures" / f"cifar10-{digest[:16]}"
    if place.is_dir():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".part-") as folder:
            fresh, number = Path(folder, "pictures"), 0
            for title in CLASSES:
                (fresh / split / title).mkdir(parents=True)
            for batch, content in zip(_BATCHES[split], batches, strict=True):
                for picture, label in zip(*_read(content, batch, name), strict=True):
                    Image.fromarray(picture).save(fresh / split / CLASSES[label] / f"{number:05}.png")
                    number += 1
            try:
                os.rename(fresh, place)
            except OSError:
                # Another process that writes the same batches may have been faster.
                if not place.is_dir():
                    raise
    except OSError as error:
        raise SeepageError(
            f"{name}: its pictures cannot be written to {printable(place)}: {error.strerror or error}; "
            "set SEEPAGE_HOME to a writable folder"
        ) from error
    return place


def _source(root: Path, name: str, split: str) -> PictureSource:
    """Open the pictures of a split under `root`, which may be the split's own folder."""
    source = open_folder(root)
    inside = any(split in PurePosixPath(entry.id).parts[:-1] for entry in source.entries)
    above = () if inside else (root.resolve().name,)
    entries = []
    for entry in source.entries:
        parts = (*above, *PurePosixPath(entry.id).parts)
        if split not in parts[:-1]:
            continue
        below = parts[len(parts) - parts[::-1].index(split, 1) :]
        if len(below) != 2 or below[0] not in CLASSES:
            where = printable(entry.id)
            raise SeepageError(f"{name}: {where} lies in no folder of a class under {split}/; expected {_EXPECTED}")
        entries.append(Entry("/".join(below), entry.path, label=CLASSES.index(below[0])))
    if not entries:
        raise SeepageError(f"{name}: no picture of {printable(root)} lies in a folder {split}; expected {_EXPECTED}")
    if len({entry.id for entry in entries}) != len(entries):
        raise SeepageError(f"{name}: {printable(root)} holds two folders {split}; expected {_EXPECTED}")
    entries.sort(key=lambda entry: entry.id)
    return dataclasses.replace(source, name=name, entries=tuple(entries), classes=CLASSES)
