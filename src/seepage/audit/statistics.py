"""From one value a sample to a line of statistics: mean, range, worst decile, bootstrap interval, recovery."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..schema import Stats

RESAMPLES = 2000
LEVEL = 0.95
_SEED = 20250410
_CHUNK = 2_000_000

Array = NDArray[np.float64]


def describe(values: Sequence[float], *, higher_leaks: bool, n_failed: int = 0) -> Stats:
    """Return the statistics of one metric over samples, without recovery.

    `worst` is the mean of the most-leaking decile, at least one sample. A NaN among the values makes the mean NaN: it
    stays visible.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values to describe")
    array = np.asarray(values, dtype=np.float64)
    leaking = np.sort(array)[::-1] if higher_leaks else np.sort(array)
    worst = math.nan if np.isnan(array).any() else float(leaking[: math.ceil(len(array) / 10)].mean())
    low, high = _interval(_resampled_means(array)[0])
    return Stats(
        mean=float(array.mean()),
        median=float(np.median(array)),
        min=float(array.min()),
        max=float(array.max()),
        worst=worst,
        ci_low=low,
        ci_high=high,
        n=len(array),
        n_failed=n_failed,
    )


def with_recovery(
    stats: Stats,
    values: Sequence[float],
    controls: Mapping[str, Sequence[float]],
    *,
    perfect: float | Sequence[float] | None,
    higher_leaks: bool = True,
) -> Stats:
    """Add how far the values lie from the strongest null control (0) towards the truth (1), with a paired interval.

    `perfect` is what the truth scores: one value, or, of a metric that has none, what each sample's ceiling scores. The
    strongest control is the one whose mean is nearest to it. Values, controls and ceilings are of the same samples in
    the same order. Nothing is added where there is no finite perfect value or no control, or where some resample has
    ceilings that say no more than the control, by `higher_leaks`.
    """
    pairs = {name: np.asarray(c, dtype=np.float64) for name, c in controls.items() if len(c) == len(values)}
    if perfect is None or not pairs:
        return stats
    array = np.asarray(values, dtype=np.float64)
    truth = np.broadcast_to(np.asarray(perfect, dtype=np.float64), array.shape)
    null = min(pairs.values(), key=lambda control: _gap(float(control.mean()), float(truth.mean())))
    denominator = truth.mean() - null.mean()
    if not np.isfinite(denominator) or denominator == 0:
        return stats
    means = _resampled_means(array, null, truth)
    if np.ndim(perfect) and not ((means[2] > means[1]) if higher_leaks else (means[2] < means[1])).all():
        return stats
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (means[0] - means[1]) / (means[2] - means[1])
    low, high = _interval(share)
    recovery = float((array.mean() - null.mean()) / denominator)
    return stats.model_copy(update={"recovery": recovery, "recovery_low": low, "recovery_high": high})


def paired_difference(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Return how far the mean rises from `before` to `after`, with the bootstrap interval of that over samples.

    Values are of the same samples in the same order, and drawn together.

    Raises:
        ValueError: there are none, or not as many of either.
    """
    if not before or len(before) != len(after):
        raise ValueError(f"expected as many values before as after and at least one, got {len(before)}, {len(after)}")
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return float(difference.mean()), *_interval(_resampled_means(difference)[0])


def interval_of_sums(evidence: Array, of_sums: Callable[[Array], Array]) -> tuple[float, float]:
    """Return the bootstrap interval, over samples, of a value that comes from the sums of each one's numbers "n k"."""
    sums = len(evidence) * _resampled_means(*evidence.T)
    return _interval(of_sums(sums.T))


def _gap(mean: float, perfect: float) -> float:
    return math.inf if math.isnan(mean) else abs(perfect - mean)


def _resampled_means(*arrays: Array) -> Array:
    """Return the means of `RESAMPLES` bootstrap draws, one row an array; the same draws serve all of them."""
    n = len(arrays[0])
    stacked = np.stack(arrays)
    generator = np.random.default_rng(_SEED)
    chunk = max(1, _CHUNK // n)
    parts = []
    for start in range(0, RESAMPLES, chunk):
        draws = generator.integers(0, n, size=(min(chunk, RESAMPLES - start), n))
        parts.append(stacked[:, draws].mean(2))
    return np.concatenate(parts, axis=1)


def _interval(means: Array) -> tuple[float, float]:
    if len(means) == 0 or np.isnan(means).any():
        return math.nan, math.nan
    tail = 50 * (1 - LEVEL)
    if np.isinf(means).any():
        ordered = np.sort(means)
        return float(ordered[int(len(means) * tail / 100)]), float(ordered[-1 - int(len(means) * tail / 100)])
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
