"""Which labels are taken for which, at most twenty of them by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from ..schema import Cell
from .findings import findings
from .verdict import Verdict

MOST_CLASSES = 20


@dataclass(frozen=True)
class Count:
    """How many pictures of a true class were given a label, and which share of that class that is.

    Among grouped classes nobody knows which of them are right.
    """

    count: int
    share: float
    kind: Literal["right", "wrong", "grouped"]


@dataclass(frozen=True)
class Line:
    """One true class: its name, its counts by recovered label, and the share that is right."""

    name: str
    counts: tuple[Count, ...]
    total: int
    right: float


@dataclass(frozen=True)
class Confusion:
    """One layer's strongest attack on labels; `names` head the columns, `grouped` classes share the last one."""

    layer: str
    attack: str
    names: tuple[str, ...]
    lines: tuple[Line, ...]
    n: int
    grouped: int


def confusions(verdict: Verdict) -> tuple[Confusion, ...]:
    """Return a matrix a layer, of the strongest attack there; none where labels are withheld."""
    made = [
        confusion(found.layer, verdict.attacker(found.best), found.best)
        for finding in findings(verdict)
        if finding.kind == "labels"
        for found in finding.layers
    ]
    return tuple(matrix for matrix in made if matrix is not None)


def confusion(layer: str, attack: str, cell: Cell) -> Confusion | None:
    """Count pairs of true and recovered label; the most frequent classes are named, the rest are one."""
    pairs = [
        (sample.truth.label, sample.recovered.label)
        for sample in cell.samples
        if sample.truth is not None and sample.recovered is not None
        if sample.truth.label is not None and sample.recovered.label is not None
    ]
    if not pairs:
        return None
    often = Counter(true for true, _ in pairs)
    often.update({said: 0 for _, said in pairs})
    ranked = sorted(often, key=lambda name: (-often[name], name))
    shown, rest = ranked[:MOST_CLASSES], ranked[MOST_CLASSES:]
    other = f"{len(rest)} other classes" if len(rest) > 1 else rest[0] if rest else ""
    names = (*shown, *([other] if rest else []))
    place = {name: index for index, name in enumerate(shown)} | dict.fromkeys(rest, len(shown))
    counts = Counter((place[true], place[said]) for true, said in pairs)
    agreed = Counter(place[true] for true, said in pairs if true == said)
    totals = Counter(place[true] for true, _ in pairs)
    lines = [
        Line(
            name,
            tuple(
                Count(
                    counts[row, column],
                    counts[row, column] / totals[row],
                    "wrong" if row != column else "right" if row < len(shown) else "grouped",
                )
                for column in range(len(names))
            ),
            totals[row],
            agreed[row] / totals[row],
        )
        for row, name in enumerate(names)
        if totals[row]
    ]
    return Confusion(layer, attack, names, tuple(lines), len(pairs), len(rest))
