"""Warnings that a result is not to be trusted, or how it is to be read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from .schema import Check, Sample, Stats

FEW = 30
LARGE_RESIDUAL = 0.05
SMALL_RESIDUAL = 0.01
IDENTIFIED = 0.9


def check(samples: Sequence[Sample], summary: Mapping[str, Stats], *, pictures: bool) -> tuple[Check, ...]:
    """Return what a reader of a cell must know before trusting it.

    `pictures` says that the recoveries are pictures, for which residual and error can be compared.
    """
    finished = [sample for sample in samples if sample.status != "failed"]
    found = [_failed(samples), _few(finished), _control(summary)]
    if pictures:
        found += [_not_converged(finished), _not_identifiable(finished, summary)]
    return tuple(item for item in found if item is not None)


def _failed(samples: Sequence[Sample]) -> Check | None:
    failed = [sample for sample in samples if sample.status == "failed"]
    if not failed:
        return None
    return Check(
        name="failed-samples",
        level="error",
        message=f"{len(failed)} of {len(samples)} samples failed, the first because: {failed[0].message}",
    )


def _few(finished: Sequence[Sample]) -> Check | None:
    if len(finished) >= FEW:
        return None
    return Check(
        name="few-pictures",
        level="warning",
        message=f"n = {len(finished)}: an indication; intervals are meaningful from about {FEW} pictures on",
    )


def _control(summary: Mapping[str, Stats]) -> Check | None:
    """By the first metric that has a recovery; captions without references by what their leak adds to likelihood."""
    lows = [summary[key].recovery_low for key in ("mse", "top1", "rouge_l") if key in summary]
    lows += [summary[key].ci_low for key in ("nll_gap",) if key in summary]
    low = next((low for low in lows if low is not None), None)
    if low is None or low > 0:
        return None
    return Check(
        name="no-better-than-control",
        level="warning",
        message="the recovery is no better than what an attacker without the features reaches: no leakage was shown",
    )


def _not_converged(finished: Sequence[Sample]) -> Check | None:
    residual = _median_residual(finished)
    if residual is None or residual <= LARGE_RESIDUAL:
        return None
    return Check(
        name="not-converged",
        level="warning",
        message=f"median residual {residual:.1%} of the leak: the attack stopped early, the leak may give more",
    )


def _not_identifiable(finished: Sequence[Sample], summary: Mapping[str, Stats]) -> Check | None:
    residual = _median_residual(finished)
    recovery = summary["mse"].recovery if "mse" in summary else None
    if residual is None or recovery is None or residual > SMALL_RESIDUAL or recovery >= IDENTIFIED:
        return None
    return Check(
        name="not-identifiable",
        level="info",
        message=f"pictures other than the truth match the leak to {residual:.2%}: only a better prior gives more",
    )


def _median_residual(finished: Sequence[Sample]) -> float | None:
    residuals = [sample.residual for sample in finished if sample.residual is not None]
    return statistics.median(residuals) if residuals else None
