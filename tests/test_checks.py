from __future__ import annotations

import pytest

from seepage.checks import check
from seepage.schema import Sample, Stats


def samples(n: int, residual: float | None, failed: int = 0) -> list[Sample]:
    good = [Sample(id=str(i), image_sha256="", status="stopped", residual=residual) for i in range(n)]
    bad = [Sample(id=f"f{i}", image_sha256="", status="failed", message="no such file") for i in range(failed)]
    return good + bad


def mse(recovery: float, low: float) -> dict[str, Stats]:
    stats = Stats(
        mean=0.1, median=0.1, min=0.1, max=0.1, worst=0.1, ci_low=0.1, ci_high=0.1, n=40,
        recovery=recovery, recovery_low=low, recovery_high=1.0,
    )  # fmt: skip
    return {"mse": stats}


def names(found: object) -> set[str]:
    return {item.name for item in found}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "summary", "expected"),
    [
        (samples(40, 0.001), mse(0.99, 0.9), set()),
        (samples(40, 0.2), mse(0.99, 0.9), {"not-converged"}),
        (samples(40, 0.001), mse(0.5, 0.4), {"not-identifiable"}),
        (samples(40, 0.03), mse(0.5, 0.4), set()),
        (samples(40, 0.001), mse(0.95, -0.1), {"no-better-than-control"}),
        (samples(4, 0.001), mse(0.99, 0.9), {"few-pictures"}),
        (samples(40, 0.001, failed=2), mse(0.99, 0.9), {"failed-samples"}),
        (samples(40, None), {}, set()),
    ],
)
def test_warnings(given: list[Sample], summary: dict[str, Stats], expected: set[str]) -> None:
    assert names(check(given, summary, pictures=True)) == expected


def test_residuals_say_nothing_of_labels() -> None:
    assert names(check(samples(40, 0.5), mse(0.99, 0.9), pictures=False)) == set()


def test_a_failed_sample_is_named_with_its_reason() -> None:
    (found,) = check(samples(40, 0.001, failed=1), mse(0.99, 0.9), pictures=True)
    assert "1 of 41" in found.message
    assert "no such file" in found.message


def test_labels_and_captions_that_a_control_reaches_are_no_leakage() -> None:
    near, far = mse(0.1, -0.1)["mse"], mse(0.1, 0.1)["mse"]
    for key in ("top1", "rouge_l"):
        assert "no-better-than-control" in names(check([], {key: near}, pictures=False))
        assert "no-better-than-control" not in names(check([], {key: far}, pictures=False))
    gap = {"nll_gap": near.model_copy(update={"recovery_low": None, "ci_low": 0.0})}
    assert "no-better-than-control" in names(check([], gap, pictures=False))
    assert "no-better-than-control" not in names(check([], gap | {"rouge_l": far}, pictures=False))
