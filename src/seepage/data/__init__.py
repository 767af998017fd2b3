"""Pictures from folders, files and data sets, and leaks as files."""

from __future__ import annotations

import contextlib
import difflib
import os
from pathlib import Path

from .. import registry
from ..types import SeepageError
from .disjoint import OverlapError, Shared, require_disjoint, shared
from .features import LeakFileError, check_leak, open_leak, read_features, read_header, read_leak
from .folder import open_file, open_folder
from .samples import samples
from .source import Batch, Entry, PictureSource, batches, load_batch
from .writing import write_leak, writing_leak

__all__ = [
    "Batch",
    "Entry",
    "LeakFileError",
    "OverlapError",
    "PictureSource",
    "Shared",
    "batches",
    "check_leak",
    "load_batch",
    "open_leak",
    "open_source",
    "read_features",
    "read_header",
    "read_leak",
    "require_disjoint",
    "shared",
    "write_leak",
    "writing_leak",
]


def open_source(text: str | os.PathLike[str] | None = None) -> PictureSource:
    """Open a folder, a picture file or `DATASET/SPLIT[@PATH]`; the built-in photographs where nothing is named.

    What exists on disk goes before a data set of the same name.

    Raises:
        SeepageError: there is no such thing, or it holds no picture; one line that names the nearest.
    """
    if text is None:
        return samples("default", None)
    name = os.fspath(text)
    path = Path(name).expanduser()
    if name and os.path.isdir(path):
        return open_folder(path)
    if name and os.path.exists(path):
        return open_file(path)
    dataset, _, tail = name.partition("/")
    if dataset not in registry.names("dataset"):
        raise SeepageError(f"no folder, picture or data set is called {name!r}{_nearest(name, path)}")
    split, at, place = tail.partition("@")
    if not split:
        raise SeepageError(f"{name!r} names no split: write {dataset}/SPLIT or {dataset}/SPLIT@PATH")
    opened: PictureSource = registry.get("dataset", dataset)(split, Path(place).expanduser() if at else None)
    return opened


def _nearest(name: str, path: Path) -> str:
    beside: list[str] = []
    with contextlib.suppress(OSError):
        beside = [str(path.parent / item) for item in os.listdir(path.parent)]
    dataset, slash, tail = name.partition("/")
    known = registry.names("dataset")
    near = difflib.get_close_matches(str(path), beside, n=1, cutoff=0.7)
    near += [match + slash + tail for match in difflib.get_close_matches(dataset, known, n=1)]
    return f"; did you mean {near[0]!r}?" if near else f"; data sets: {', '.join(known)}, as NAME/SPLIT[@PATH]"
