"""Reading the pictures that people have, and writing those that come back."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Container, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .files import printable, replacing
from .types import PictureFile, SeepageError

MAX_PIXELS = 100_000_000
"""Pictures of more pixels than this are refused from their header, before anything is decoded."""

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
"""What is decoded. Pillow knows more, some of which (EPS) run other programs."""

EXTENSIONS = frozenset(
    {".apng", ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Names that count as pictures when a folder is listed, in lower case."""

_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, RuntimeError, struct.error, zlib.error)
# Pillow tells of oddities through warnings, and Python's filters are shared by all threads: one reader at a time.
_quiet = threading.Lock()


class UnreadablePictureError(SeepageError):
    """A file that is no picture, is damaged, or is too large to decode."""


def read_picture(file: PictureFile) -> Image.Image:
    """Return a picture as 8-bit RGB, upright by its EXIF orientation; of an animation the first frame.

    16-bit grey is scaled, not clipped; transparency is laid on white; colour profiles are not applied, as the
    preprocessing of vision models does not. The picture handed in, or the stream, stays open and unchanged.

    Raises:
        UnreadablePictureError: no picture, damaged, or of more than `MAX_PIXELS`; one line that names the file.
    """
    name = _name(file)
    try:
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(file, Image.Image):
                return _rgb(file, name)
            if isinstance(file, str | Path):
                _require_content(Path(file), name)
                with open(file, "rb") as stream:
                    return _decode(stream, name)
            return _decode(file, name)
    except (FileNotFoundError, NotADirectoryError):
        raise UnreadablePictureError(f"{name}: there is no such file") from None
    except UnidentifiedImageError:
        raise UnreadablePictureError(f"{name} is no picture; what is read: {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except _DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadablePictureError(f"{name} is no readable picture: {' '.join(reason.split())}") from error


def picture_size(path: str | Path) -> tuple[int, int] | None:
    """Return a picture's height and width from its header, as stored; None where it cannot be read."""
    try:
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _require_content(Path(path), "")
            with Image.open(path, formats=FORMATS) as image:
                return image.height, image.width
    except (SeepageError, Image.DecompressionBombError, *_DAMAGE):
        return None


REMEMBERED = 12
"""So many digits of a picture's SHA-256 are kept by what learned from it: enough to find it, little to store."""


def remembered(hashes: Iterable[str]) -> frozenset[str]:
    """Return how pictures are remembered, given their SHA-256."""
    return frozenset(one[:REMEMBERED] for one in hashes)


def recalled(hashes: Iterable[str], known: Container[str]) -> tuple[str, ...]:
    """Return those of the SHA-256 that are among the remembered."""
    return tuple(one for one in hashes if one[:REMEMBERED] in known)


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        UnreadablePictureError: the file cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UnreadablePictureError(f"{printable(path)} cannot be read: {error.strerror or error}") from error


def write_png(image: Float[Tensor, "3 h w"], path: str | Path) -> None:
    """Write RGB in [0, 1] as an 8-bit PNG; what lies outside is clipped, NaN comes out black.

    Raises:
        OutputError: the file cannot be written; nothing is left half-written.
    """
    levels = torch.nan_to_num(image.detach().float().cpu(), nan=0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    picture = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
    with replacing(path) as part:
        picture.save(part, format="PNG")


def _name(file: PictureFile) -> str:
    if isinstance(file, str | Path):
        return printable(file)
    name = getattr(file, "filename" if isinstance(file, Image.Image) else "name", None)
    return printable(name) if isinstance(name, str) and name else "the picture"


def _require_content(path: Path, name: str) -> None:
    """Opening a named pipe would wait for ever, so the kind of file is looked at first."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise UnreadablePictureError(f"{name} is a folder, not a picture")
    if not stat.S_ISREG(status.st_mode):
        raise UnreadablePictureError(f"{name} is no regular file")
    if status.st_size == 0:
        raise UnreadablePictureError(f"{name} is empty")


def _decode(stream: BinaryIO | io.BufferedIOBase, name: str) -> Image.Image:
    return _rgb(Image.open(stream, formats=FORMATS), name)  # type: ignore[arg-type]  # Pillow needs read and seek


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name)
    image.load()
    image = _upright(image)
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        image = _eight_bit(image, name)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """A damaged EXIF block says nothing of the pixels: such a picture is shown as it is stored."""
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGE:
        return image.copy()


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """Map 16-bit values, also in Pillow's 32-bit mode, and floats in [0, 1] to 8 bits."""
    values = np.asarray(image).astype(np.float64)
    peak = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= peak):
        raise UnreadablePictureError(f"{name} holds values outside [0, {peak:g}], of unknown range: save it as 8-bit")
    levels = (values * (255 / peak)).round()
    levels[values == image.info.get("transparency")] = 255
    return Image.fromarray(levels.astype(np.uint8))


def _too_large(name: str) -> UnreadablePictureError:
    return UnreadablePictureError(f"{name} has more than {MAX_PIXELS // 10**6} million pixels: make it smaller first")
