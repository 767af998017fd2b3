"""Four photographs that come with scikit-image and scikit-learn: what an audit uses when it is given none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..registry import register
from ..types import SeepageError
from .source import Entry, PictureSource, require_split

# Where each lies in its installed package: no import, no download.
_FILES = {
    "astronaut.png": ("skimage", "data"),
    "chelsea.png": ("skimage", "data"),
    "china.jpg": ("sklearn", "datasets/images"),
    "coffee.png": ("skimage", "data"),
}


@register("dataset", "samples")
def samples(split: str, path: Path | None) -> PictureSource:
    """Open `samples/default`: astronaut, chelsea, coffee (scikit-image) and china (scikit-learn).

    Raises:
        SeepageError: another split, a path, or a package that no longer holds its photograph.
    """
    require_split("samples", split, ("default",))
    if path is not None:
        raise SeepageError(f"samples/default is built in and lies in no folder: leave out '@{path}'")
    entries = tuple(Entry(name, _find(name, *place)) for name, place in _FILES.items())
    return PictureSource("samples/default", entries, None, entries[0].path.parent)


def _find(name: str, package: str, folder: str) -> Path:
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(place, folder, name)).is_file():
            return file
    raise SeepageError(f"{package} is installed without its photograph {name}; name a folder of pictures instead")
