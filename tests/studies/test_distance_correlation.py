"""Distance correlation: known values, an independent computation, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seepage.studies.distance_correlation import distance_correlation


def drawn(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(one: Tensor, other: Tensor) -> float:
    """The ratio of sums over pairs, as Szekely and Rizzo define it, one number at a time."""
    n = len(one)

    def centred(rows: list[list[float]]) -> list[list[float]]:
        a = [[math.dist(p, q) for q in rows] for p in rows]
        by_row = [sum(line) for line in a]
        total = sum(by_row)
        return [
            [
                a[i][j] - by_row[i] / (n - 2) - by_row[j] / (n - 2) + total / ((n - 1) * (n - 2)) if i != j else 0.0
                for j in range(n)
            ]
            for i in range(n)
        ]

    left, right = centred(one.tolist()), centred(other.tolist())
    product = sum(a * b for lines in zip(left, right) for a, b in zip(*lines))
    norms = [math.sqrt(sum(v * v for line in side for v in line)) for side in (left, right)]
    return product / (norms[0] * norms[1])


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(4, 12), seed=st.integers(0, 10**6))
def test_equals_the_definition(rows: int, seed: int) -> None:
    one, other = drawn(rows, 3, seed), drawn(rows, 5, seed + 1)
    other[:, 0] += one[:, 0].square()
    assert float(distance_correlation(one, other)) == pytest.approx(slow(one, other), abs=1e-6)


def test_is_one_for_what_keeps_distances_up_to_a_factor() -> None:
    one = drawn(40, 6, 0)
    turned, _ = torch.linalg.qr(drawn(6, 6, 1))
    assert float(distance_correlation(one, 3 * one @ turned + 7)) == pytest.approx(1.0, abs=1e-6)
    assert float(distance_correlation(one, one)) == pytest.approx(1.0, abs=1e-6)


def test_is_about_zero_for_independent_rows_of_any_dimension_and_not_for_dependent_ones() -> None:
    found = [float(distance_correlation(drawn(60, 3000, seed), drawn(60, 500, 100 + seed))) for seed in range(8)]
    assert abs(sum(found) / len(found)) < 0.02
    one = drawn(300, 2, 0)
    # Dependent, though neither is correlated with the other.
    assert float(distance_correlation(one, one.square())) > 0.1


def test_alike_rows_depend_on_nothing_and_too_few_are_refused() -> None:
    assert float(distance_correlation(drawn(10, 3, 0), torch.ones(10, 4, dtype=torch.float64))) == 0
    with pytest.raises(ValueError, match="at least 4 rows, got 3"):
        distance_correlation(drawn(3, 2, 0), drawn(3, 2, 1))


def test_gradient_is_that_of_differences() -> None:
    one, other = drawn(8, 3, 0), drawn(8, 2, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: distance_correlation(one, rows), (other,))
