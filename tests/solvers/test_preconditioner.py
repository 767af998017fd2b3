from __future__ import annotations

from typing import Any

import torch

from seepage.solvers import LevenbergMarquardt


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
