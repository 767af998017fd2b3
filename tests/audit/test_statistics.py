from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from seepage.audit.statistics import describe, with_recovery


def test_against_numpy_and_scipy() -> None:
    values = np.random.default_rng(0).normal(20, 3, size=57)
    found = describe(values.tolist(), higher_leaks=True, n_failed=2)
    assert found.mean == pytest.approx(values.mean())
    assert found.median == pytest.approx(np.median(values))
    assert (found.min, found.max) == (values.min(), values.max())
    assert found.worst == pytest.approx(np.sort(values)[-6:].mean())
    assert (found.n, found.n_failed) == (57, 2)
    reference = scipy_stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1))
    assert found.ci_low == pytest.approx(reference.confidence_interval.low, abs=0.1)
    assert found.ci_high == pytest.approx(reference.confidence_interval.high, abs=0.1)


def test_worst_is_the_most_leaking_decile() -> None:
    values = [float(i) for i in range(1, 21)]
    assert describe(values, higher_leaks=True).worst == 19.5
    assert describe(values, higher_leaks=False).worst == 1.5
    assert describe([3.0], higher_leaks=False).worst == 3.0


def test_nan_and_infinity_stay_visible() -> None:
    found = describe([1.0, math.nan], higher_leaks=True)
    assert math.isnan(found.mean)
    assert math.isnan(found.worst)
    assert math.isnan(found.ci_low)
    found = describe([1.0, math.inf, 2.0], higher_leaks=True)
    assert found.mean == math.inf
    assert found.ci_high == math.inf


def test_no_values() -> None:
    with pytest.raises(ValueError, match="no values"):
        describe([], higher_leaks=True)


def test_recovery_is_0_at_the_strongest_control_and_1_at_the_truth() -> None:
    controls = {"weak": [0.4, 0.6], "strong": [0.1, 0.3]}
    for values, expected in (([0.1, 0.3], 0.0), ([0.0, 0.0], 1.0), ([0.05, 0.15], 0.5), ([0.2, 0.6], -1.0)):
        found = with_recovery(describe(values, higher_leaks=False), values, controls, perfect=0.0)
        assert found.recovery == pytest.approx(expected)
        assert found.recovery_low <= found.recovery + 1e-12
        assert found.recovery_high >= found.recovery - 1e-12


def test_recovery_is_paired() -> None:
    """Where every sample recovers half of its own control, resampling cannot change the share."""
    control = np.random.default_rng(0).uniform(0.05, 0.5, size=40)
    values = (control / 2).tolist()
    found = with_recovery(describe(values, higher_leaks=False), values, {"c": control.tolist()}, perfect=0.0)
    assert found.recovery_low == pytest.approx(0.5)
    assert found.recovery_high == pytest.approx(0.5)


def test_recovery_without_a_finite_perfect_value_or_controls() -> None:
    stats = describe([1.0, 2.0], higher_leaks=True)
    assert with_recovery(stats, [1.0, 2.0], {"c": [0.0, 0.0]}, perfect=None) == stats
    assert with_recovery(stats, [1.0, 2.0], {}, perfect=3.0) == stats
    assert with_recovery(stats, [1.0, 2.0], {"c": [3.0, 3.0]}, perfect=3.0) == stats


def test_recovery_ends_at_the_ceiling_where_no_value_is_perfect() -> None:
    draws = np.random.default_rng(0)
    control = draws.uniform(0.0, 0.2, size=60)
    ceiling = control + draws.uniform(0.5, 1.0, size=60)
    values = (0.75 * control + 0.25 * ceiling).tolist()
    found = with_recovery(
        describe(values, higher_leaks=True), values, {"c": control.tolist()}, perfect=ceiling.tolist()
    )
    for share in (found.recovery, found.recovery_low, found.recovery_high):
        assert share == pytest.approx(0.25)
    lower = with_recovery(
        describe((1 - np.array(values)).tolist(), higher_leaks=False),
        (1 - np.array(values)).tolist(),
        {"c": (1 - control).tolist()},
        perfect=(1 - ceiling).tolist(),
        higher_leaks=False,
    )
    assert lower.recovery == pytest.approx(0.25)


def test_a_ceiling_that_is_not_above_the_control_measures_nothing() -> None:
    draws = np.random.default_rng(0)
    control, values = draws.uniform(size=30).tolist(), draws.uniform(size=30).tolist()
    stats = describe(values, higher_leaks=True)
    for ceiling in (draws.uniform(size=30).tolist(), (np.array(control) - 1).tolist()):
        assert with_recovery(stats, values, {"c": control}, perfect=ceiling) == stats


def test_many_samples_need_little_memory() -> None:
    values = np.random.default_rng(0).uniform(size=60_000)
    found = describe(values.tolist(), higher_leaks=True)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.ci_high - found.mean == pytest.approx(half, rel=0.1)
