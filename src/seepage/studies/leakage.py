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

    `worst` is the mean of the most-leaking decile, for shares and for gains the mean; `upper` the upper end of its 95 %
    interval: by bootstrap, for shares Wilson's. `recovery` is 0 at the strongest null control, 1 at the truth.
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
    upper: float
    recovery: float | None = None
    recovery_high: float | None = None


def of(cell: Cell, metric: str) -> Worst | None:
    """Return a cell's metric, of which more is more leakage; None where it has no value."""
    stats = cell.summary.get(metric)
    if cell.status != "done" or stats is None:
        return None
    share: Stats = cell.summary.get(_SHARES_OF.get(metric, metric), stats)
    if metric in SHARES:
        worst, upper = stats.mean, max(stats.ci_high, wilson(stats.mean, stats.n)[1])
    else:
        values = [sample.metrics[metric] for sample in cell.samples if metric in sample.metrics]
        worst, upper = stats.worst, max(stats.worst, decile_upper(values))
    return Worst(
        metric, cell.spec.attack, cell.spec.attacker, stats.n, stats.n_failed, stats.mean, stats.ci_low, stats.ci_high,
        worst, upper, share.recovery, share.recovery_high,
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


def decile_upper(values: Sequence[float]) -> float:
    """Return the upper end of the bootstrap's 95 % interval of the mean of the tenth of the values that is largest.

    Of ten values or fewer that is the largest one: nothing beyond it was seen.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0 or np.isnan(array).any():
        return math.nan
    count = math.ceil(len(array) * _PLAIN_WORST)
    draws = np.random.default_rng(_SEED).integers(0, len(array), size=(RESAMPLES, len(array)))
    tops = -np.sort(-array[draws], axis=1)[:, :count]
    return float(np.percentile(tops.mean(1), 97.5))


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else value
