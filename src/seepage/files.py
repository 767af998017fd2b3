"""Files that are either whole or absent, and names that are fit to print."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .types import SeepageError

if TYPE_CHECKING:
    from torch import Tensor


class OutputError(SeepageError):
    """A file that cannot be written: no right to, no room for, or no folder."""


def printable(path: str | os.PathLike[str]) -> str:
    """Return a path on one line: a name with line breaks, control characters or broken encoding comes escaped."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)[1:-1]


@contextmanager
def replacing(path: str | os.PathLike[str], mode: int = 0o666) -> Iterator[Path]:
    """Yield a temporary path in the same folder that becomes `path` once the block ends, and is removed if it fails.

    A reader sees the old file or the new one, never half of either; missing folders are made. `mode` is who may
    read it, as far as the process's umask lets them.

    Raises:
        OutputError: the operating system does not let the file be written.
    """
    target = Path(path)
    part = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        try:
            if target.is_dir():  # said before the work, not after it
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            target.parent.mkdir(parents=True, exist_ok=True)
            part.touch(mode, exist_ok=False)
            rights = part.stat().st_mode
            yield part
            # A writer may have put a file of its own there, with rights for its owner alone.
            part.chmod(rights)
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {printable(target)}: {error.strerror or error}") from error


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    said: Mapping[str, str] | None = None,
    mode: int = 0o666,
) -> None:
    """Write tensors, on the CPU and contiguous, as safetensors, with strings beside them; as `replacing` does.

    Raises:
        OutputError: the operating system does not let the file be written, a full disk among other reasons.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path, mode) as part:
        try:
            save_file(dict(tensors), part, metadata=None if said is None else dict(said))
        except SafetensorError as error:  # no OSError, whatever the reason
            raise OSError(str(error).rpartition("I/O error: ")[2]) from error


def require_writable(folder: str | os.PathLike[str]) -> None:
    """Make a folder, and look that a file can be written there, before the work whose result it is to hold.

    Raises:
        OutputError: the operating system does not let it.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to {printable(folder)}: {error.strerror or error}; choose another") from error
