"""Hashes of files, remembered: a data set of 100,000 pictures is read once for them, not once a command."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .. import assets
from ..pictures import file_sha256

_SETTLED_NS = 2 * 10**9
_LINE = re.compile(r"(\d+ \d+ \d+ \d+) ([0-9a-f]{64}) (\".*\")", re.ASCII)


def remembered_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; from the cache where size, times and inode are those it was hashed with.

    A file that changed within the last two seconds is not remembered: it may change again within the clock's tick. A
    cache that cannot be read or written is done without.

    Raises:
        UnreadablePictureError: the file cannot be read.
    """
    stamp = _stamp(path)
    if stamp is None:
        return file_sha256(path)
    folder, name = os.path.split(os.path.abspath(path))
    # The cache's place is part of the key: a process may change it.
    shard = _load(folder, os.environ.get("SEEPAGE_HOME", ""))
    held = shard.known.get(name)
    if held is not None and held[0] == stamp:
        return held[1]
    digest = file_sha256(path)
    if _stamp(path) == stamp:
        shard.known[name] = (stamp, digest)
        with contextlib.suppress(OSError):
            shard.path.parent.mkdir(parents=True, exist_ok=True)
            with shard.path.open("a", encoding="ascii") as out:
                # One write a line: processes that append at once do not cut into each other's.
                out.write(f"{stamp} {digest} {json.dumps(name)}\n")
    return digest


def _stamp(path: Path) -> str | None:
    """Return what changes with a file's bytes; None where it changed too lately to tell, or is not to be had."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _SETTLED_NS or status.st_mtime_ns < 0:
        return None
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


@dataclass(frozen=True)
class _Shard:
    """What is remembered of one folder: stamp and hash by file name, and the file that keeps them."""

    path: Path
    known: dict[str, tuple[str, str]]


# A source lists its folders one after another: a few shards at hand are enough, and the memory stays flat.
@lru_cache(maxsize=4)
def _load(folder: str, home: str) -> _Shard:
    """Return a folder's shard; lines cut short by a kill are skipped, the last of a name counts."""
    shard = _Shard(assets.home() / "hashes" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.txt", {})
    try:
        lines = shard.path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return shard
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is not None:
            with contextlib.suppress(json.JSONDecodeError):
                shard.known[json.loads(match[3])] = (match[1], match[2])
    return shard
