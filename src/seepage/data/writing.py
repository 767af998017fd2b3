"""Leaks into files, some rows at a time: a dump may be larger than the memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..files import printable, replacing
from ..types import Leak, LeakHeader
from .features import FEATURES, KEY, SCALE, LeakFileError, header_json, require_sound

# How safetensors names the types in its header.
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8", torch.int32: "I32"}


def write_leak(leak: Leak, path: str | Path) -> None:
    """Write a leak as safetensors: the features in their wire format, int8's scales, and the header as JSON.

    Raises:
        LeakFileError: features and header do not fit each other, or a feature is not finite.
        OutputError: the file cannot be written; nothing is left half-written.
    """
    with writing_leak(path, len(leak) if leak.ids is None else leak.ids) as writer:
        writer.append(leak)


@contextmanager
def writing_leak(path: str | Path, rows: int | Sequence[str]) -> Iterator[LeakWriter]:
    """Yield a writer of a leak that holds one part of it at a time; the file appears once the block ends.

    `rows` are the ids that may come, in order, or how many rows without ids. The same rows give the same bytes, however
    they were cut into parts.

    Raises:
        LeakFileError: no row was written, or as `LeakWriter.append` does.
        OutputError: the file cannot be written; nothing is left half-written.
    """
    with replacing(path) as part, part.open("wb") as stream:
        writer = LeakWriter(stream, path, rows)
        yield writer
        writer.close()


class LeakWriter:
    """Appends rows to a safetensors file whose header is written last, into room that was left for it."""

    def __init__(self, stream: BinaryIO, path: str | Path, rows: int | Sequence[str]) -> None:
        self._stream = stream
        self._path = path
        self._most = rows
        self._header: LeakHeader | None = None
        self._first: Tensor | None = None
        self._scales: list[float] = []
        self._ids: list[str] = []
        self._count = 0
        self._room = 0

    def append(self, leak: Leak) -> None:
        """Write some more rows.

        Raises:
            LeakFileError: features and header do not fit each other or the rows before, or a feature is not finite.
        """
        where = f"cannot write {printable(self._path)}: "
        require_sound(leak, where, self._count)
        features, header = leak.features.detach().cpu().contiguous(), leak.header
        if self._first is None or self._header is None:
            self._first, self._header = features[:1].clone(), header
            self._room = -len(self._describe(self._most)) % 8 + len(self._describe(self._most))
            self._stream.write(bytes(8 + self._room))
        elif features.shape[1:] != self._first.shape[1:] or features.dtype != self._first.dtype:
            raise LeakFileError(f"{where}the rows from {self._count} on have another shape or format")
        self._stream.write(features.view(torch.uint8).numpy().data if features.numel() else b"")
        self._scales += header.scale or ()
        self._ids += leak.ids or ()
        self._count += len(leak)

    def close(self) -> None:
        """Write what follows the features, and the header.

        Raises:
            LeakFileError: no row was written.
        """
        if self._header is None:
            raise LeakFileError(f"cannot write {printable(self._path)}: a leak has at least one row of features")
        self._stream.write(struct.pack(f"<{len(self._scales)}f", *self._scales))
        header = self._describe(self._count if isinstance(self._most, int) else self._ids)
        self._stream.seek(0)
        self._stream.write(struct.pack("<Q", self._room) + header.ljust(self._room))

    def _describe(self, rows: int | Sequence[str]) -> bytes:
        if self._first is None or self._header is None:
            raise RuntimeError("nothing was appended")
        count = rows if isinstance(rows, int) else len(rows)
        end = count * self._first.numel() * self._first.element_size()
        content: dict[str, object] = {
            "__metadata__": {KEY: header_json(self._header, None if isinstance(rows, int) else tuple(rows))},
            FEATURES: {
                "dtype": _NAMES[self._first.dtype],
                "shape": [count, *self._first.shape[1:]],
                "data_offsets": [0, end],
            },
        }
        if self._header.scale is not None:
            content[SCALE] = {"dtype": "F32", "shape": [count], "data_offsets": [end, end + 4 * count]}
        return json.dumps(content, separators=(",", ":")).encode()
