"""What a training has to tell, as plain values that a report takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .material import Part
from .stages import Stage


@dataclass(frozen=True)
class Outcome:
    """The stages of a training and, in a table, what held-out pictures score beside the null controls."""

    stages: tuple[Stage, ...]
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    parts: tuple[Part, Part] | None = None
    """What was learned from and selected on, where that is not all of the material."""


def percent(share: float) -> str:
    """Return a share of one in percent."""
    return "NaN" if math.isnan(share) else f"{100 * share:.1f} %"
