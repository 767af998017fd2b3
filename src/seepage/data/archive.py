"""Pictures out of tar and zip archives, unpacked once into the cache under the hash of the archive; texts, read."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from .. import assets
from ..files import printable
from ..pictures import EXTENSIONS
from ..types import SeepageError
from .hashes import remembered_sha256

_LARGEST_TEXT = 1 << 29
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)


def folder_of(path: Path | None, name: str, expected: str) -> Path:
    """Return the folder that holds the pictures of `name`, DATASET/SPLIT: `path` itself, or what its archive held.

    `expected` says what there should be, for the error. The cache keeps unpacked archives by their SHA-256; names
    inside that lead out of it, links and what is no picture are left in the archive.

    Raises:
        SeepageError: no path, nothing there, no archive, a damaged one, one without pictures, or a cache that cannot
            be written.
    """
    if path is None:
        raise SeepageError(f"{name} needs its pictures: write {name}@PATH, where PATH is {expected}")
    if path.is_dir():
        return path
    if not path.is_file():
        raise SeepageError(f"{name}: there is no {printable(path)}; expected {expected}")
    try:
        return _unpacked(path, name, expected)
    except _DAMAGE as error:
        raise SeepageError(f"{name}: {printable(path)} is a damaged archive: {error}") from error
    except OSError as error:
        raise SeepageError(
            f"{name}: {printable(path)} cannot be unpacked: {error.strerror or error}; "
            "set SEEPAGE_HOME to a writable folder"
        ) from error


def files_of(path: Path, wanted: Callable[[PurePosixPath], bool], name: str) -> dict[PurePosixPath, bytes]:
    """Return the bytes of those files inside an archive of `name`, DATASET/SPLIT, that are `wanted` by their path.

    Raises:
        SeepageError: no archive, a damaged one, one that cannot be read, or a file of more than half a gigabyte.
    """
    found = {}
    try:
        if not (tarfile.is_tarfile(path) or zipfile.is_zipfile(path)):
            raise SeepageError(f"{name}: {printable(path)} is no folder, tar or zip, or a damaged one")
        for inner, stream in _members(path, wanted):
            found[inner] = stream.read(_LARGEST_TEXT + 1)
            if len(found[inner]) > _LARGEST_TEXT:
                raise SeepageError(f"{name}: {inner} in {printable(path)} is larger than {_LARGEST_TEXT >> 20} MiB")
    except _DAMAGE as error:
        raise SeepageError(f"{name}: {printable(path)} is a damaged archive: {error}") from error
    except OSError as error:
        raise SeepageError(f"{name}: cannot read {printable(path)}: {error.strerror or error}") from error
    return found


def _unpacked(archive: Path, name: str, expected: str) -> Path:
    if not (tarfile.is_tarfile(archive) or zipfile.is_zipfile(archive)):
        raise SeepageError(f"{name}: {printable(archive)} is no folder, tar or zip; expected {expected}")
    place = assets.home() / "pictures" / remembered_sha256(archive)[:16]
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".part-") as folder:
        fresh = Path(folder, "pictures")
        fresh.mkdir()
        for inner, stream in _members(archive, _is_picture):
            target = fresh / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                shutil.copyfileobj(stream, out)
        if not any(fresh.iterdir()):
            raise SeepageError(f"{name}: {printable(archive)} holds no picture; expected {expected}")
        try:
            os.rename(fresh, place)
        except OSError:
            # Another process that unpacks the same bytes may have been faster.
            if not place.is_dir():
                raise
    return place


def _members(archive: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                inner = PurePosixPath(entry.filename)
                if not entry.is_dir() and _inside(inner) and wanted(inner):
                    with zipped.open(entry) as stream:
                        yield inner, stream
        return
    with tarfile.open(archive) as tarred:
        for member in tarred:
            inner = PurePosixPath(member.name)
            if member.isreg() and _inside(inner) and wanted(inner):
                opened = tarred.extractfile(member)
                assert opened is not None
                with opened as stream:
                    yield inner, stream


def _inside(inner: PurePosixPath) -> bool:
    return not inner.is_absolute() and not any(part == ".." or part.startswith(".") for part in inner.parts)


def _is_picture(inner: PurePosixPath) -> bool:
    return inner.suffix.lower() in EXTENSIONS
