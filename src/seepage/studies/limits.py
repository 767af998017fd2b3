"""What a user asks of a cut: limits on what leaks, what is kept and what it costs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..registry import suggest
from ..types import Recovers, SeepageError

COSTS = ("device-macs", "bytes", "milliseconds")
_SUFFIXES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}
_AMOUNT = re.compile(r"(?P<number>[-+.\deE]+|[-+]?(?:nan|inf(?:inity)?))\s*(?P<unit>[kKmMgG]?)(?P<byte>[bB]?)", re.I)


class LimitError(SeepageError):
    """Limits that make no sense, or contradict each other."""


@dataclass(frozen=True)
class Kind:
    """One thing that can be limited: `key` is its option without the dashes.

    `range` are the values that it can have. `leaks` is the metric whose worst statistic it limits and `statistic` that
    of `leakage.Worst`; without one it is a cost or a utility.
    """

    key: str
    side: Literal["max", "min"]
    range: tuple[float, float]
    unit: str = ""
    leaks: str = ""
    statistic: str = "upper"
    recovers: Recovers | None = None
    whole: bool = False


_ENDLESS = math.inf
KINDS: Mapping[str, Kind] = {
    kind.key: kind
    for kind in (
        Kind("max-psnr", "max", (0.0, 160.0), "dB", "psnr", recovers="images"),
        Kind("max-ssim", "max", (-1.0, 1.0), "", "ssim", recovers="images"),
        Kind("max-caption-gain", "max", (-1.0, 1.0), "", "cider", "recovery_high", "captions"),
        Kind("max-top1", "max", (0.0, 1.0), "", "top1", recovers="labels"),
        Kind("max-rank1", "max", (0.0, 1.0), "", "rank1", recovers="images"),
        Kind("min-utility", "min", (0.0, 1.0)),
        Kind("max-bytes", "max", (0.0, _ENDLESS), "B", whole=True),
        Kind("max-device-macs", "max", (0.0, _ENDLESS), "MAC", whole=True),
        Kind("max-server-macs", "max", (0.0, _ENDLESS), "MAC", whole=True),
        Kind("max-milliseconds", "max", (0.0, _ENDLESS), "ms"),
    )
}


@dataclass(frozen=True)
class Limit:
    """One limit as asked for."""

    kind: Kind
    value: float

    def holds(self, value: float | None) -> bool:
        """Return whether a value keeps to it; one that is not known, or NaN, does not."""
        if value is None or math.isnan(value):
            return False
        return value <= self.value if self.kind.side == "max" else value >= self.value

    def excess(self, value: float | None) -> float:
        """Return how far beyond it a value lies, at most 0 where it holds; infinite where it is not known."""
        if value is None or math.isnan(value):
            return math.inf
        return value - self.value if self.kind.side == "max" else self.value - value


def read(asked: Mapping[str, str | None]) -> tuple[Limit, ...]:
    """Return the limits among options by name, the ones that were not given left out.

    Raises:
        LimitError: there is none, or one makes no sense; the message says what would.
    """
    found = tuple(_limit(KINDS[key], text) for key, text in asked.items() if text is not None)
    if not found:
        raise LimitError(
            f"no limit is given, so that anything would do; there are {', '.join('--' + k for k in KINDS)}"
        )
    return found


def require_cost(name: str) -> str:
    """Return what is to be least.

    Raises:
        LimitError: no cost is called that.
    """
    if name not in COSTS:
        raise LimitError(f"--minimise: no cost is called {name!r}{suggest(name, COSTS)}")
    return name


def amount(text: str) -> float:
    """Read a number with k, M or G behind it for thousands, millions and milliards, and B for bytes.

    Raises:
        ValueError: it is none.
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    return float(match["number"]) * _SUFFIXES[match["unit"].lower()]


def _limit(kind: Kind, text: str) -> Limit:
    low, high = kind.range
    example = "200k" if kind.whole else "0.5" if high == 1 else "18"
    try:
        value = amount(text) if kind.whole else float(text)
    except ValueError:
        raise LimitError(f"--{kind.key} is a number such as {example}, got {text!r}") from None
    if math.isnan(value) or math.isinf(value):
        raise LimitError(f"--{kind.key} is a finite number such as {example}, got {text!r}")
    if not low <= value <= high:
        wanted = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise LimitError(f"--{kind.key} is {wanted}, got {text!r}")
    if value == 0 and math.isinf(high):
        raise LimitError(f"--{kind.key} 0 leaves nothing to be done or sent: every cut takes some")
    return Limit(kind, value)
