"""Work shared by processes: who claims a piece does it, the others go on with the next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

_PATIENCE = 600.0
_PAUSE = 0.05


@contextmanager
def claimed(paths: Sequence[Path], *, wait: bool) -> Iterator[bool]:
    """Hold these names against other processes, and say whether they could be had without `wait`ing.

    A claim ends with its process, and nobody waits for longer than ten minutes: that process may be stopped, or hang.
    Then, and where the system or the file system has no locks, several hold the same: what is done twice must be as
    good as done once. The files are empty, and removed in the end.
    """
    with ExitStack() as stack:
        for path in sorted(paths):  # in one order: nobody waits for who waits for him
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("w"))
                if not _locked(file, _PATIENCE if wait else 0.0):
                    yield wait
                    return
            except OSError:
                continue
            stack.callback(path.unlink, missing_ok=True)
        yield True


def _locked(file: IO[str], patience: float) -> bool:
    """Lock a file, within so many seconds."""
    try:
        import fcntl
    except ImportError:
        return True
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_PAUSE)
        else:
            return True
