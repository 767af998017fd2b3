"""The tensors inside whatever a module takes or returns: a tensor, tuples, lists, mappings, dataclasses of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def tensors(value: object) -> tuple[Tensor, ...]:
    """Return every tensor in a structure, depth first."""
    if isinstance(value, Tensor):
        return (value,)
    return tuple(tensor for part in _parts(value).values() for tensor in tensors(part))


def first(value: object) -> Tensor | None:
    """Return the first tensor in a structure, None where there is none."""
    return next(iter(tensors(value)), None)


def with_first(value: Any, tensor: Tensor) -> Any:
    """Return the same structure with another first tensor; what was given stays as it was.

    Raises:
        ValueError: there is no tensor in it.
    """
    if isinstance(value, Tensor):
        return tensor
    for key, part in _parts(value).items():
        if first(part) is not None:
            return _with_part(value, key, with_first(part, tensor))
    raise ValueError(f"no tensor in a {type(value).__name__}")


def _parts(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {}


def _with_part(value: Any, key: Any, part: Any) -> Any:
    # transformers' outputs are mappings and dataclasses at once, and keep both in step when an item is set.
    if isinstance(value, Mapping):
        changed: Any = copy.copy(value)
        changed[key] = part
        return changed
    if isinstance(value, tuple | list):
        items = [part if index == key else item for index, item in enumerate(value)]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    return dataclasses.replace(value, **{key: part})
