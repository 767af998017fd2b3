"""What was put into words of each picture, as a terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence

from ..schema import Cell
from . import text
from .findings import kind, leading
from .verdict import verdicts

_MOST, _LONGEST = 8, 160


def sentences(cells: Sequence[Cell]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]] | None:
    """Return the names of columns and a row a picture, of the first few: what was said of its leak, and by a person.

    They are those of the strongest attack on words at the deepest cut that has one, without a defense where there is
    such a cell; None where no caption came back.
    """
    told = [
        (layer.layer, cell, cell.key in leading(verdict))
        for verdict in sorted(verdicts(cells), key=lambda one: bool(one.setting.defenses), reverse=True)
        for layer in verdict.layers
        for cell in layer.cells
        if kind(cell) == "captions" and any(one.recovered is not None and one.recovered.caption for one in cell.samples)
    ]
    if not told:
        return None
    last = told[-1][0]
    where, cell, _ = max((one for one in told if one[0] == last), key=lambda one: one[2])
    rows = [
        (text.plain(sample.id), *(_shown(side.caption if side else None) for side in (sample.recovered, sample.truth)))
        for sample in cell.samples[:_MOST]
    ]
    attack = cell.spec.attack.partition(":")[0]
    return ("picture", f"said of its leak at {where}, by {attack}", "said by a person"), tuple(rows)


def _shown(caption: str | None) -> str:
    said = text.plain((caption or text.NONE)[: _LONGEST + 1])
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"
