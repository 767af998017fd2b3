from __future__ import annotations

import itertools
from typing import Any

import torch

from seepage.solvers import LevenbergMarquardt
from seepage.solvers.cg import cg


def test_a_given_preconditioner_solves_what_it_inverts_and_keeps_bounds() -> None:
    """|D (x - t)|^2 over x in [0, 1], D diagonal over four decades: the answer is t, clamped."""
    stretch = torch.logspace(-2, 2, 40)
    target = torch.linspace(-0.5, 1.5, 40)[None]

    def solved(**options: Any) -> torch.Tensor:
        solver = LevenbergMarquardt(12, 6, 1e-8, 1e-9, **options)
        start = torch.full((1, 40), 0.5)
        found = solver.solve(lambda x, t: stretch * (x - t), start, target, lower=0.0, upper=1.0).x
        assert isinstance(found, torch.Tensor)
        return found

    answer = target.clamp(0, 1)
    assert (solved(preconditioner=lambda v: v / stretch.square()) - answer).abs().max() < 1e-3
    assert (solved() - answer).abs().max() > 0.1


def test_damping_is_felt_in_the_preconditioner_s_metric() -> None:
    draw = torch.Generator().manual_seed(5)
    root = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    matrix = root @ root.mT
    spread = torch.diag(torch.logspace(-2, 1, 6, dtype=torch.float64))
    right = torch.randn(2, 6, generator=draw, dtype=torch.float64)
    damping = torch.tensor([[0.3], [7.0]], dtype=torch.float64)
    found = cg(
        lambda v: v @ matrix, right, steps=30, tolerance=1e-13, preconditioner=lambda v: v @ spread, damping=damping
    )
    for row in range(2):
        wanted = torch.linalg.solve(matrix + damping[row] * torch.linalg.inv(spread), right[row])
        torch.testing.assert_close(found.x[row], wanted)
    bare = cg(lambda v: v @ matrix, right, steps=30, tolerance=1e-13, damping=damping)
    torch.testing.assert_close(
        bare.x[0], torch.linalg.solve(matrix + 0.3 * torch.eye(6, dtype=torch.float64), right[0])
    )


def test_each_row_has_its_own_limit_of_products() -> None:
    matrix = torch.diag(torch.arange(1.0, 9.0))
    found = cg(lambda v: v @ matrix, torch.ones(3, 8), steps=torch.tensor([2, 5, 0]), tolerance=0.0)
    assert found.steps.tolist() == [2, 5, 0]
    assert found.x[2].abs().max() == 0


def test_steps_lengthen_where_the_model_holds() -> None:
    """A linear problem: every model is the truth, so each step gets half as many products again."""
    draw = torch.Generator().manual_seed(6)
    matrix = torch.randn(64, 64, generator=draw, dtype=torch.float64)
    target = torch.randn(1, 64, generator=draw, dtype=torch.float64)

    def spent(steps: int) -> int:
        solver = LevenbergMarquardt(steps, 40, inner_tolerance=0.0, damping=1e-9, first=10)
        zero = torch.zeros(1, 64, dtype=torch.float64)
        return int(solver.solve(lambda x, z: x @ matrix - z, zero, target).passes)

    counts = [spent(steps) for steps in (1, 2, 3, 4)]
    steps = [after - before for before, after in itertools.pairwise(counts)]
    # A linearised step takes three passes beside its products: a model, its bend and a trial.
    assert steps == [15 + 3, 22 + 3, 33 + 3]
