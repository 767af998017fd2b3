"""What may become of a claim, and when two figures count as apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]
Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Verdict:
    """What became of a claim: our figures in words, and `reproduced`, `partly`, `contradicted`, `not shown` or
    `not tested`."""

    ours: str
    verdict: str


NOT_TESTED = Verdict("–", "not tested")


def below(first: Interval, second: Interval, factor: float = 1.0) -> bool:
    """Return whether `first`, mean, low and high, lies under `second` by `factor`, interval apart from interval."""
    return first[2] * factor < second[1]


def shown(value: Interval, digits: str = ".1f") -> str:
    """Return a figure with its interval."""
    mean, low, high = (format(one, digits) for one in value)
    return f"{mean} [{low}, {high}]"


def counted(outcomes: Sequence[bool], words: str, against: Sequence[bool] | None = None) -> Verdict:
    """Return the verdict over rows; `words` says what held in how many of them.

    Where it held in none, `against` says in which the opposite did: what tells nothing apart contradicts no claim.
    """
    if not outcomes:
        return NOT_TESTED
    held = sum(outcomes)
    none = "contradicted" if against is None or any(against) else "not shown"
    verdict = "reproduced" if held == len(outcomes) else "partly" if held else none
    return Verdict(f"{words} in {held} of {len(outcomes)}", verdict)
