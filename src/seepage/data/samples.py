"""Four photographs that come with scikit-image and scikit-learn: what an audit uses when it is given none."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ..registry import register
from ..types import SeepageError
from .source import Entry, PictureSource, require_split


@dataclass(frozen=True)
class _Sample:
    """Where a photograph lies in its installed package (no import, no download), and what five people might say."""

    package: str
    folder: str
    captions: tuple[str, ...]


_SAMPLES = {
    "astronaut.png": _Sample(
        "skimage",
        "data",
        (
            "A woman in an orange space suit smiles in front of a flag .",
            "A smiling astronaut poses with her helmet beside a model of a space shuttle .",
            "A woman with curly brown hair wears an orange flight suit .",
            "An astronaut sits for a portrait with an American flag behind her .",
            "A woman in an orange suit is sitting next to a white helmet .",
        ),
    ),
    "chelsea.png": _Sample(
        "skimage",
        "data",
        (
            "A striped orange cat looks to the side .",
            "A close-up of the face of a tabby cat with green eyes .",
            "A cat with long white whiskers is seen from close by .",
            "A ginger cat with pointed ears stares at something .",
            "The head of a furry cat with a pink nose .",
        ),
    ),
    "china.jpg": _Sample(
        "sklearn",
        "datasets/images",
        (
            "A Chinese temple with several roofs stands above a lake .",
            "A red and green pagoda rises out of the trees .",
            "A colorful Asian tower is surrounded by green trees .",
            "A tall ornate building with curved roofs under a blue sky .",
            "An old tower with four tiers on a hill on a sunny day .",
        ),
    ),
    "coffee.png": _Sample(
        "skimage",
        "data",
        (
            "A cup of coffee sits on a saucer with a spoon .",
            "A red cup full of espresso on a wooden table .",
            "A small coffee with foam in a brown and white cup .",
            "A spoon lies next to a cup of black coffee .",
            "A red cup and saucer have been put on a table made of wood .",
        ),
    ),
}


@register("dataset", "samples")
def samples(split: str, path: Path | None) -> PictureSource:
    """Open `samples/default`: astronaut, chelsea, coffee (scikit-image), china (scikit-learn), five captions each.

    Raises:
        SeepageError: another split, a path, or a package that no longer holds its photograph.
    """
    require_split("samples", split, ("default",))
    if path is not None:
        raise SeepageError(f"samples/default is built in and lies in no folder: leave out '@{path}'")
    entries = tuple(
        Entry(name, _find(name, one.package, one.folder), captions=one.captions) for name, one in _SAMPLES.items()
    )
    return PictureSource("samples/default", entries, None, entries[0].path.parent)


def _find(name: str, package: str, folder: str) -> Path:
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(place, folder, name)).is_file():
            return file
    raise SeepageError(f"{package} is installed without its photograph {name}; name a folder of pictures instead")
