"""Means of random probes with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

_NORMAL = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, of width 0 where it is exact."""

    value: float
    low: float
    high: float

    @staticmethod
    def exactly(value: float) -> Estimate:
        """Return a number that is known."""
        return Estimate(value, value, value)

    @staticmethod
    def of(values: Float[Tensor, "n"]) -> Estimate:
        """Return the mean of independent values, with Student's interval; unbounded for a single one."""
        value = float(values.double().mean())
        margin = half_width(values)
        return Estimate(value, value - margin, value + margin)

    def times(self, factor: float) -> Estimate:
        """Return the number and its interval times a positive factor."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def within(self, low: float, high: float) -> Estimate:
        """Return it with what lies beyond known limits cut off."""
        value, least, most = (min(max(number, low), high) for number in (self.value, self.low, self.high))
        return Estimate(value, least, most)


def half_width(values: Float[Tensor, "n"]) -> float:
    """Return half the width of the 95 % interval of the mean of independent values."""
    n = len(values)
    return math.inf if n < 2 else _student(n - 1) * float(values.double().std()) / math.sqrt(n)


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion around the normal one (Abramowitz & Stegun 26.7.5).

    From 3 degrees of freedom on it is within 1 %; below, the closed forms.
    """
    if freedom < 3:
        return (12.7062, 4.3027)[freedom - 1]
    z = _NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))
