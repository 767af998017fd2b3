"""A second solver in float64 where the first ends at its rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from seepage.solvers import Adam, LevenbergMarquardt, Polish

FIRST = LevenbergMarquardt(steps=8, inner=20, gradient_tolerance=0.0)


def conditioned(condition: float, n: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix a row of that condition, its input and output, all exact in float32 but for the output's rounding."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    matrix = (left @ torch.diag(torch.logspace(0, -torch.tensor(condition).log10().item(), n).double()) @ right).float()
    x = torch.randn(2, n, generator=generator)
    return matrix.expand(2, n, n), x, torch.einsum("bmn,bn->bm", matrix.double().expand(2, n, n), x.double())


def missed(x: Tensor, z: tuple[Tensor, Tensor]) -> Tensor:
    matrix, y = (part.to(x) for part in z)
    return torch.einsum("bmn,bn->bm", matrix, x) - y


def relative(found: Tensor, expected: Tensor) -> Tensor:
    return (found - expected).norm(dim=1) / expected.norm(dim=1)


def test_what_float32_leaves_of_an_error_float64_takes():
    matrix, x, y = conditioned(1e3)
    rough = FIRST.solve(missed, torch.zeros_like(x), (matrix, y))
    second = LevenbergMarquardt(steps=6, inner=20, inner_tolerance=1e-10, damping=1e-10, tolerance=1e-12)
    fine = Polish(FIRST, second, floor=1.0).solve(missed, torch.zeros_like(x), (matrix, y))
    assert relative(rough.x, x).min() > 1e-4
    assert relative(fine.x, x).max() < 1e-6
    assert fine.x.dtype == torch.float32
    assert (fine.passes > rough.passes).all()
    assert (fine.residual < rough.residual).all()


def test_a_row_that_ended_elsewhere_is_left_as_it_was():
    matrix, x, y = conditioned(10.0)
    start = torch.stack([torch.zeros_like(x[0]), torch.full_like(x[0], float("nan"))])
    short = Adam(steps=3)
    alone = short.solve(missed, start, (matrix, y))
    for solver in (Polish(short), Polish(FIRST, floor=0.0)):
        found = solver.solve(missed, start, (matrix, y))
        first = solver.first.solve(missed, start, (matrix, y))
        assert torch.equal(found.x, first.x)
        assert found.status == first.status
        assert torch.equal(found.passes, first.passes)
    assert alone.status[1].kind == "failed"


def test_a_second_solver_that_finds_nothing_better_changes_nothing():
    matrix, x, y = conditioned(10.0)
    first = FIRST.solve(missed, torch.zeros_like(x), (matrix, y))
    found = Polish(FIRST, LevenbergMarquardt(steps=0)).solve(missed, torch.zeros_like(x), (matrix, y))
    assert relative(found.x, x).max() < 1e-4
    assert relative(found.x, first.x).max() < 1e-6


def test_bounds_and_several_unknowns_are_handed_on():
    matrix, x, y = conditioned(20.0)
    y = torch.einsum("bmn,bn->bm", matrix.double(), x.abs().double())

    def parted(parts: tuple[Tensor, Tensor], z: tuple[Tensor, Tensor]) -> Tensor:
        return missed(torch.cat(parts, 1), z)

    start = (torch.zeros(2, 3), torch.zeros(2, 5))
    found = Polish(FIRST).solve(parted, start, (matrix, y), lower=(0.0, 0.0))
    joined = torch.cat(found.x, 1)
    assert joined.min() >= 0
    assert relative(joined, x.abs()).max() < 1e-5
