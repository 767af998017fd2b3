"""A stored dump under audit, and which of its rows are of which picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import data
from ..data.source import PictureSource
from ..types import Leak, PictureFile
from .request import RequestError

Load = Callable[[PictureFile], Tensor]


@dataclass(frozen=True)
class Stored:
    """A dump as it lies in its file, and the rows of each picture that it has one of, one a send."""

    leak: Leak
    rows: Mapping[int, tuple[int, ...]]

    def read(self, source: PictureSource, indices: Sequence[int], send: int, device: torch.device) -> Leak:
        """Return one send of these pictures, in the wire's format."""
        rows = [self.rows[index][send] for index in indices]
        scale = self.leak.header.scale
        header = replace(self.leak.header, scale=None if scale is None else tuple(scale[row] for row in rows))
        features = self.leak.features[rows].to(device)
        return Leak(features, header, tuple(source.entries[index].id for index in indices))


def placed(leak: Leak, path: str, source: PictureSource, load: Load, sends: int) -> Mapping[int, tuple[int, ...]]:
    """Return the rows of each picture: by the dump's ids, else in order, all sends of a picture together.

    Raises:
        RequestError: the dump has no row of any picture, not as many as there are sends, or without ids another number.
    """
    if leak.ids is None:
        return _in_order(len(leak), path, source, load, sends)
    counts = Counter(leak.ids)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None and sends == 1:
        raise RequestError(
            f"--leak {path} has more than one row for {twice!r}; expected one a picture, or --sends K for K of each"
        )
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(leak.ids):
        rows.setdefault(name, []).append(row)
    found = {i: tuple(rows[entry.id]) for i, entry in enumerate(source.entries) if entry.id in rows}
    if not found:
        first = source.entries[0].id
        raise RequestError(f"--leak {path} has no row for {first!r}; it names {len(rows)}, e.g. {leak.ids[0]!r}")
    short = next((index for index, own in found.items() if len(own) < sends), None)
    if short is not None:
        name = source.entries[short].id
        raise RequestError(
            f"--leak {path} has {len(found[short])} of the {sends} rows for {name!r} that --sends {sends} averages"
        )
    return found


def _in_order(count: int, path: str, source: PictureSource, load: Load, sends: int) -> Mapping[int, tuple[int, ...]]:
    indices = list(range(len(source)))
    if count != sends * len(indices):
        # A client that leaves names out leaves unreadable pictures out too.
        indices = [i for batch in data.batches(source, load, 1) for i in batch.indices]
    if count != sends * len(indices):
        each = f" and {sends} sends of each" if sends > 1 else ""
        raise RequestError(f"--leak {path} has {count} rows without ids, but there are {len(source)} pictures{each}")
    return {index: tuple(range(sends * place, sends * (place + 1))) for place, index in enumerate(indices)}
