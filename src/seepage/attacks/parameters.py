"""What the numbers among the parameters of an attack, or of what else learns, may be."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ..registry import BadParameterError


def within(default: float, least: float = 0, most: float = math.inf) -> Any:
    """Return a dataclass field of that default whose values `require_sensible` holds against these bounds."""
    return dataclasses.field(default=default, metadata={"least": least, "most": most})


def require_sensible(component: object, name: str) -> None:
    """Refuse a number that nothing can work with: each is finite and, unless its field says otherwise, at least 0.

    Raises:
        BadParameterError: the first such parameter of what is called `name`, and what it may be.
    """
    known = dataclasses.is_dataclass(component)
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(component) if known else ()  # type: ignore[arg-type]
    for field in fields:
        value = getattr(component, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        least, most = field.metadata.get("least", 0), field.metadata.get("most", math.inf)
        if not (least <= value <= most and math.isfinite(value)):
            bound = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
            raise BadParameterError(f"{name}:{field.name} is a number {bound}, got {value}")
