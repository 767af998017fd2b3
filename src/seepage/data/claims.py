"""Work shared by processes: who claims a piece does it, the others go on with the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def claimed(paths: Sequence[Path], *, wait: bool) -> Iterator[bool]:
    """Hold these names against other processes, and say whether they could be had without `wait`ing.

    A claim ends with its process. Where the system has no locks, or the file system none, everyone holds everything:
    what is done twice must then be as good as done once. The files are empty, and removed in the end.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    with ExitStack() as stack:
        for path in sorted(paths):  # in one order: nobody waits for who waits for him
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("w"))
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            except OSError:
                continue
            stack.callback(path.unlink, missing_ok=True)
        yield True
