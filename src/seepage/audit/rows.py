"""Some rows of what has one row a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..types import Pictures, Recovery

_OF_COLUMNS = ("classes",)


def take(truth: Pictures, rows: Sequence[int]) -> Pictures:
    """Return some rows of the pictures."""
    index = list(rows)

    def pick(values: tuple[object, ...] | None) -> tuple[object, ...] | None:
        return None if values is None else tuple(values[row] for row in index)

    return Pictures(
        truth.images[index],
        tuple(truth.ids[row] for row in index),
        None if truth.labels is None else truth.labels[index],
        truth.classes,
        pick(truth.captions),  # type: ignore[arg-type]
        pick(truth.identities),  # type: ignore[arg-type]
    )


def take_recovery(recovery: Recovery, rows: Sequence[int]) -> Recovery:
    """Return some rows of a recovery, its tensors on the CPU, without its trace."""
    index = list(rows)
    names = [field.name for field in dataclasses.fields(recovery.value) if field.name not in _OF_COLUMNS]
    value = dataclasses.replace(recovery.value, **{name: _pick(getattr(recovery.value, name), index) for name in names})
    return Recovery(value, tuple(recovery.status[row] for row in index), recovery.passes[index].cpu())


def _pick(values: Tensor | Sequence[object] | None, index: list[int]) -> Any:
    if values is None:
        return None
    return values[index].detach().cpu() if isinstance(values, Tensor) else tuple(values[row] for row in index)
