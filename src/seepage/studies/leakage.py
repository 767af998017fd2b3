"""The worst that those who attacked one candidate got out of it, and how far beyond it may lie."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..audit.statistics import RESAMPLES
from ..schema import Cell, Stats

SHARES = ("top1", "top5", "rank1", "agreement")
"""Metrics of which a picture scores 0 or 1."""
_SHARES_OF = {"psnr": "mse"}
_SEED = 20250411
_Z = 1.959964
_PLAIN_WORST = 0.1


@dataclass(frozen=True)
class Worst:
    """One metric by the attack that leaks most of it: the mean with its 95 % interval, and the worst statistic.

    `worst` is the mean of the most-leaking decile, for shares and for gains the mean; `lower` and `upper` are the ends
    of its 95 % interval: by bootstrap, for shares Wilson's. `recovery` is 0 at the strongest null control, 1 at the
    truth. `lower_bound` says that the attack learned on leaks without the defense: one that learns on defended leaks
    may get more.
    """

    metric: str
    attack: str
    attacker: str
    n: int
    n_failed: int
    mean: float
    low: float
    high: float
    worst: float
    lower: float
    upper: float
    recovery: float | None = None
    recovery_low: float | None = None
    recovery_high: float | None = None
    lower_bound: bool = False

    def around(self, statistic: str) -> tuple[float | None, float | None, float | None]:
        """Return what `statistic`, `upper` or `recovery_high`, is the upper end of, and that interval's ends."""
        if statistic == "recovery_high":
            return self.recovery, self.recovery_low, self.recovery_high
        return self.worst, self.lower, self.upper


def of(cell: Cell, metric: str) -> Worst | None:
    """Return a cell's metric, of which more is more leakage; None where it has no value."""
    stats = cell.summary.get(metric)
    if cell.status != "done" or stats is None:
        return None
    share: Stats = cell.summary.get(_SHARES_OF.get(metric, metric), stats)
    if metric in SHARES:
        worst, (lower, upper) = stats.mean, wilson(stats.mean, stats.n)
        lower, upper = min(stats.ci_low, lower), max(stats.ci_high, upper)
    else:
        values = [sample.metrics[metric] for sample in cell.samples if metric in sample.metrics]
        worst, (lower, upper) = stats.worst, decile_interval(values)
        lower, upper = min(stats.worst, lower), max(stats.worst, upper)
    return Worst(
        metric, cell.spec.attack, cell.spec.attacker, stats.n, stats.n_failed, stats.mean, stats.ci_low, stats.ci_high,
        worst, lower, upper, share.recovery, share.recovery_low, share.recovery_high, cell.spec.learned_undefended,
    )  # fmt: skip


def worst_of(cells: Iterable[Cell], metric: str, statistic: str = "mean") -> Worst | None:
    """Return the attack that leaks most of a metric by this statistic; one that is NaN leaks more than any other."""
    found = [worst for cell in cells if (worst := of(cell, metric)) is not None]
    known = [item for item in found if getattr(item, statistic) is not None]
    return max(known, key=lambda item: _rank(getattr(item, statistic)), default=found[0] if found else None)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of `n` (Wilson 1927): what was never seen may still be."""
    if not 0 <= share <= 1 or n < 1:
        return math.nan, math.nan
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def decile_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the bootstrap's 95 % interval of the mean of the tenth of the values that is largest.

    Of ten values or fewer its upper end is the largest one: nothing beyond it was seen.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0 or np.isnan(array).any():
        return math.nan, math.nan
    count = math.ceil(len(array) * _PLAIN_WORST)
    draws = np.random.default_rng(_SEED).integers(0, len(array), size=(RESAMPLES, len(array)))
    tops = -np.sort(-array[draws], axis=1)[:, :count]
    low, high = np.percentile(tops.mean(1), [2.5, 97.5])
    return float(low), float(high)


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else value
