"""Files that are either whole or absent, and names that are fit to print."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .types import SeepageError


class OutputError(SeepageError):
    """A file that cannot be written: no right to, no room for, or no folder."""


def printable(path: str | os.PathLike[str]) -> str:
    """Return a path on one line: a name with line breaks, control characters or broken encoding comes escaped."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)[1:-1]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder that becomes `path` once the block ends, and is removed if it fails.

    A reader sees the old file or the new one, never half of either; missing folders are made.

    Raises:
        OutputError: the operating system does not let the file be written.
    """
    target = Path(path)
    part = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            part.touch(exist_ok=False)
            mode = part.stat().st_mode
            yield part
            # A writer may have put a file of its own there, with rights for its owner alone.
            part.chmod(mode)
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {printable(target)}: {error.strerror or error}") from error
