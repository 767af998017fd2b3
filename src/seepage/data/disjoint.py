"""Whether sources share a picture: by the bytes of its file, or by its pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ..files import printable
from ..pictures import UnreadablePictureError, read_picture
from ..types import SeepageError
from .source import Entry, PictureSource


class OverlapError(SeepageError):
    """Sources that must be disjoint share a picture; the message names the first and counts them all."""


@dataclass(frozen=True)
class Shared:
    """A picture in more than one source: the hash that says so and, a source, its index and the id it has there."""

    sha256: str
    places: tuple[tuple[int, str], ...]


def shared(*sources: PictureSource, pixels: bool = False) -> tuple[Shared, ...]:
    """Return the pictures that lie in more than one source, in the order of the sources.

    Equal are files of equal SHA-256 and, with `pixels`, files that decode to equal 8-bit RGB: the same picture in
    another file format or with other metadata. That decodes every picture. A resized or recompressed copy is found by
    neither, an unreadable picture equals none.
    """
    places: dict[str, dict[int, str]] = {}
    for number, source in enumerate(sources):
        for entry in source.entries:
            digest = _pixels_sha256(entry) if pixels else entry.file_sha256
            if digest:
                places.setdefault(digest, {}).setdefault(number, entry.id)
    return tuple(Shared(digest, tuple(found.items())) for digest, found in places.items() if len(found) > 1)


def require_disjoint(*sources: PictureSource, pixels: bool = False) -> None:
    """Refuse sources that share a picture, as `shared` finds it.

    Raises:
        OverlapError: they do; one line that names the first such picture in both.
    """
    found = shared(*sources, pixels=pixels)
    if not found:
        return
    (one, first), (other, second) = found[0].places[:2]
    names = [source.name for source in sources]
    if names[one] == names[other]:
        names = [printable(source.root) for source in sources]
    what = "pixels" if pixels else "SHA-256"
    many = f"{len(found)} pictures are" if len(found) > 1 else "a picture is"
    raise OverlapError(
        f"{many} in more than one of {', '.join(names)}: {first!r} of {names[one]} and {second!r} of {names[other]} "
        f"have the same {what} ({found[0].sha256[:12]}...); leave it out of one of them"
    )


def _pixels_sha256(entry: Entry) -> str:
    try:
        picture = read_picture(entry.path)
    except UnreadablePictureError:
        return ""
    return hashlib.sha256(f"{picture.width} {picture.height} ".encode() + picture.tobytes()).hexdigest()
