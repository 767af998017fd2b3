"""Cells without anything that shows or names a picture: a report travels further than the pictures may."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from ..schema import Cell, Check, Sample, Spec

WITHHELD = "(withheld)"

# Paths, and file names of pictures, wherever a message holds them.
_PATHS = re.compile(
    r"(?<![^\s'\"(=:,])(?:file://|~|[A-Za-z]:)?[/\\]\S+"
    r"|\S+[/\\]\S+\.\w+"
    r"|\S+\.(?:jpe?g|jfif|png|gif|bmp|tiff?|webp|avif|hei[cf]|dcm|pgm|ppm|npy|safetensors)\b",
    re.IGNORECASE,
)
_SHORTEST_NAME = 3


def redacted(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return the cells with numbers for ids, and without pictures, captions, labels, hashes of pictures or data paths.

    A picture keeps its number in all cells.
    """
    numbers: dict[str, str] = {}
    for cell in cells:
        for sample in cell.samples:
            numbers.setdefault(sample.id, str(len(numbers) + 1))
    names = _pattern(_names(cells))
    return tuple(_cell(cell, numbers, names) for cell in cells)


def _cell(cell: Cell, numbers: dict[str, str], names: re.Pattern[str] | None) -> Cell:
    said = [sample.message for sample in cell.samples if sample.message]
    return cell.model_copy(
        update={
            "message": _scrub(cell.message, names),
            "unavailable": {key: _scrub(reason, names) for key, reason in cell.unavailable.items()},
            "spec": _spec(cell.spec),
            "samples": tuple(_sample(sample, numbers[sample.id]) for sample in cell.samples),
            "checks": tuple(_check(check, said, names) for check in cell.checks),
        }
    )


def _spec(spec: Spec) -> Spec:
    return spec.model_copy(
        update={
            "victim": _without_folders(spec.victim),
            "attack": _scrub(spec.attack, None),
            "defenses": tuple(_scrub(defense, None) for defense in spec.defenses),
            "judges": {
                kind: judge.model_copy(update={"name": _without_folders(judge.name)})
                for kind, judge in spec.judges.items()
            },
            "data": WITHHELD,
            "manifest_sha256": WITHHELD,
            "public": None if spec.public is None else WITHHELD,
            "public_sha256": None if spec.public_sha256 is None else WITHHELD,
            "gallery": None if spec.gallery is None else WITHHELD,
            "gallery_sha256": None if spec.gallery_sha256 is None else WITHHELD,
        }
    )


def _sample(sample: Sample, number: str) -> Sample:
    return sample.model_copy(
        update={
            "id": number,
            "image_sha256": WITHHELD,
            "message": WITHHELD if sample.message else "",
            "recovered": None,
            "truth": None,
        }
    )


def _check(check: Check, said: Sequence[str], names: re.Pattern[str] | None) -> Check:
    message = check.message
    for words in said:
        message = message.replace(words, WITHHELD)
    return check.model_copy(update={"message": _scrub(message, names)})


def _without_folders(victim: str) -> str:
    """Return the victim's name; where it holds a path, only the file's name of it."""
    if not victim.startswith("module/") and not re.search(r"@[^@]*[/\\]", victim):
        return victim
    source, _, name = victim.partition("/")
    return "@".join([f"{source}/{_last(name.split('@')[0])}", *(_last(part) for part in name.split("@")[1:])])


def _last(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]


def _names(cells: Iterable[Cell]) -> set[str]:
    found: set[str] = set()
    for cell in cells:
        found |= {name for name in (cell.spec.data, cell.spec.public, cell.spec.gallery) if name}
        for sample in cell.samples:
            path = PurePosixPath(sample.id)
            found |= {sample.id, path.name, path.stem, sample.image_sha256}
            for shown in filter(None, (sample.truth, sample.recovered)):
                found |= {words for words in (shown.image, shown.caption, shown.label) if words}
    return {name for name in found if len(name) >= _SHORTEST_NAME}


def _pattern(names: set[str]) -> re.Pattern[str] | None:
    if not names:
        return None
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(r"(?<!\w)(?:" + "|".join(re.escape(name) for name in longest_first) + r")(?!\w)")


def _scrub(message: str, names: re.Pattern[str] | None) -> str:
    return _PATHS.sub(WITHHELD, message if names is None else names.sub(WITHHELD, message))
