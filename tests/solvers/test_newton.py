"""Newton's steps by GMRES, on square systems whose answers are known by other means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seepage.solvers import DenseMarquardt, LevenbergMarquardt, NewtonKrylov, gmres


def system(seed: int = 0, n: int = 40, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Matrices without symmetry, of eigenvalues away from zero, and right sides."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.eye(n, dtype=torch.float64) + 0.1 * torch.randn(
        batch, n, n, generator=generator, dtype=torch.float64
    )
    return matrix, torch.randn(batch, n, generator=generator, dtype=torch.float64)


def bent(x: Tensor, z: tuple[Tensor, Tensor]) -> Tensor:
    """x + 0.8 sin(M x) - y: several branches, one of which x = 0 leads to."""
    matrix, y = z
    return x + 0.8 * torch.sin(torch.einsum("bmn,bn->bm", matrix, x)) - y


def test_gmres_equals_the_direct_solution_and_leaves_what_it_says():
    matrix, right = system()
    found = gmres(lambda v: torch.einsum("bmn,bn->bm", matrix, v), right, steps=40, tolerance=1e-12)
    direct = torch.linalg.solve(matrix, right)
    assert torch.allclose(found.x, direct, atol=1e-9)
    short = gmres(lambda v: torch.einsum("bmn,bn->bm", matrix, v), right, steps=7, tolerance=1e-12)
    missed = (torch.einsum("bmn,bn->bm", matrix, short.x) - right).norm(dim=1) / right.norm(dim=1)
    assert torch.allclose(missed, short.residual, rtol=1e-8)
    assert short.steps.tolist() == [7, 7, 7]
    assert bool((short.residual > found.residual).all())


def test_gmres_keeps_rows_apart_and_solves_rows_of_zeros():
    matrix, right = system()
    right[1] = 0
    both = gmres(lambda v: torch.einsum("bmn,bn->bm", matrix, v), right, steps=40, tolerance=1e-6)
    alone = gmres(lambda v: torch.einsum("bmn,bn->bm", matrix[:1], v), right[:1], steps=40, tolerance=1e-6)
    assert torch.allclose(both.x[0], alone.x[0], rtol=1e-12, atol=1e-14)
    assert both.steps[0] == alone.steps[0]
    assert not both.x[1].any()
    assert both.residual[1] == 0
    assert both.steps[1] == 0


def test_gmres_says_what_breaks_and_keeps_the_rest():
    matrix, right = system()
    matrix[1] = float("nan")
    found = gmres(lambda v: torch.einsum("bmn,bn->bm", matrix, v), right, steps=40, tolerance=1e-10)
    direct = torch.linalg.solve(matrix[[0, 2]], right[[0, 2]])
    assert torch.allclose(found.x[[0, 2]], direct, atol=1e-7)
    assert not found.x[1].any()
    assert found.residual[1] == float("inf")


def test_rows_are_taken_in_parts_where_memory_is_small(monkeypatch):
    matrix, y = system(n=10)
    whole = NewtonKrylov().solve(bent, y, (0.1 * matrix, y))
    monkeypatch.setattr("seepage.solvers.newton_krylov._BYTES", 1)
    parts = NewtonKrylov().solve(bent, y, (0.1 * matrix, y))
    assert torch.allclose(whole.x, parts.x, atol=1e-12)
    assert whole.passes.tolist() == parts.passes.tolist()


def test_gmres_ends_where_nothing_new_is_to_be_had():
    """The identity is solved by one direction; the second is zero and takes no part."""
    _, right = system(n=6)
    found = gmres(lambda v: 2 * v, right, steps=5)
    assert torch.allclose(found.x, right / 2)


def test_a_known_input_comes_back():
    generator = torch.Generator().manual_seed(1)
    matrix = 0.1 * torch.randn(4, 30, 30, generator=generator, dtype=torch.float64)
    truth = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    y = bent(truth, (matrix, torch.zeros_like(truth)))
    found = NewtonKrylov(tolerance=1e-10).solve(bent, y, (matrix, y))
    assert [status.kind for status in found.status] == ["converged"] * 4
    assert torch.allclose(found.x, truth, atol=1e-7)
    assert bool((found.residual <= 1e-10).all())


def test_newton_needs_fewer_products_than_normal_equations():
    """A Jacobian of condition 1,000 whose eigenvalues lie in two clusters: GMRES needs few products, CG many."""
    generator = torch.Generator().manual_seed(2)
    q = torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64)).Q
    values = torch.cat([1 + 1e-3 * torch.rand(100, generator=generator), 1e-3 + 1e-6 * torch.rand(100)]).double()
    matrix = (q * values) @ q.T
    truth = torch.randn(1, 200, generator=generator, dtype=torch.float64)

    def residual(x: Tensor, y: Tensor) -> Tensor:
        return x @ matrix.T - y

    y = truth @ matrix.T
    newton = NewtonKrylov(steps=10, inner=50, tolerance=1e-9).solve(residual, torch.zeros_like(truth), y)
    marquardt = LevenbergMarquardt(10, 50, tolerance=1e-9).solve(residual, torch.zeros_like(truth), y)
    assert newton.status[0].kind == "converged"
    assert torch.allclose(newton.x, truth, atol=1e-5)
    assert int(newton.passes[0]) < 0.5 * int(marquardt.passes[0])


def test_rows_are_apart_and_what_goes_wrong_in_one_is_its_status():
    solver = NewtonKrylov()
    matrix, _ = system(n=10, batch=4)
    truth = torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    y = bent(truth, (0.1 * matrix, torch.zeros_like(truth)))
    start = y.clone()
    start[1] = float("nan")
    y[2] = float("inf")
    found = solver.solve(bent, start, (0.1 * matrix, y))
    assert [status.kind for status in found.status] == ["converged", "failed", "failed", "converged"]
    alone = solver.solve(bent, start[3:], (0.1 * matrix[3:], y[3:]))
    assert torch.allclose(found.x[3:], alone.x, atol=1e-12)
    assert found.passes[3] == alone.passes[0]
    assert torch.isfinite(found.x).all()


def test_what_has_no_answer_is_given_up():
    found = NewtonKrylov().solve(lambda x, y: x.square() + y, torch.ones(1, 3), torch.ones(1, 3))
    assert found.status[0].kind == "stopped"
    assert found.residual[0] >= 3**0.5 - 1e-4


def test_bounds_hold():
    matrix, y = system(n=10)
    found = NewtonKrylov().solve(bent, torch.zeros_like(y), (matrix, y), lower=-0.1, upper=0.1)
    assert float(found.x.abs().max()) <= 0.1


def test_what_cannot_be_solved_so_is_refused():
    matrix, y = system(n=10)
    with pytest.raises(ValueError, match="residual has 20 numbers a row, the unknown 10"):
        NewtonKrylov().solve(lambda x, z: torch.cat([bent(x, z)] * 2, 1), y, (matrix, y))
    with pytest.raises(ValueError, match="takes no penalty"):
        NewtonKrylov().solve(bent, y, (matrix, y), penalty=lambda x: x.square().sum(1))


def test_passes_are_a_limit():
    matrix, y = system(n=40)
    limited = NewtonKrylov(steps=50, inner=5, tolerance=0.0, patience=50, passes=20)
    found = limited.solve(bent, torch.zeros_like(y), (matrix, y))
    assert [status.message.endswith("all passes taken") for status in found.status] == [True] * 3
    assert int(found.passes.max()) <= 20 + 1 + 5 + 7


def test_a_bad_condition_is_for_exact_equations():
    """Condition 1e6 spread evenly: GMRES's few products leave much of it, the exact equations nothing."""
    generator = torch.Generator().manual_seed(3)
    q, p = (torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    matrix = (q * torch.logspace(0, -6, 64, dtype=torch.float64)) @ p
    truth = torch.randn(2, 64, generator=generator, dtype=torch.float64)

    def residual(x: Tensor, y: Tensor) -> Tensor:
        return x @ matrix.T - y

    y = truth @ matrix.T
    rough = NewtonKrylov(steps=3, inner=10, tolerance=1e-12).solve(residual, torch.zeros_like(truth), y)
    exact = DenseMarquardt(steps=30, tolerance=1e-12).solve(residual, torch.zeros_like(truth), y)
    assert [status.kind for status in rough.status] == ["stopped"] * 2
    assert [status.kind for status in exact.status] == ["converged"] * 2
    assert torch.allclose(exact.x, truth, atol=1e-5)
    assert not torch.allclose(rough.x, truth, atol=1e-1)


def test_exact_steps_find_the_least_squares_of_more_equations(monkeypatch):
    """Taken in parts of one row, they end where numpy's solver does, and say that they did not reach zero."""
    monkeypatch.setattr("seepage.solvers.dense._BYTES", 1)
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(3, 9, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    found = DenseMarquardt().solve(lambda x, z: torch.einsum("bmn,bn->bm", z[0], x) - z[1], y[:, :4] * 0, (matrix, y))
    direct = torch.linalg.lstsq(matrix, y[..., None]).solution[..., 0]
    assert torch.allclose(found.x, direct, atol=1e-6)
    assert [status.kind for status in found.status] == ["stopped"] * 3


def test_exact_steps_keep_rows_apart_and_within_bounds():
    matrix, _ = system(n=10, batch=4)
    truth = torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    y = bent(truth, (0.1 * matrix, torch.zeros_like(truth)))
    start = y.clone()
    start[1] = float("nan")
    y[2] = float("inf")
    solver = DenseMarquardt(steps=30)
    found = solver.solve(bent, start, (0.1 * matrix, y))
    assert [status.kind for status in found.status] == ["converged", "failed", "failed", "converged"]
    alone = solver.solve(bent, start[3:], (0.1 * matrix[3:], y[3:]))
    assert torch.allclose(found.x[3:], alone.x, atol=1e-10)
    bounded = solver.solve(bent, torch.zeros_like(y[:1]), (matrix[:1], y[:1]), lower=-0.1, upper=0.1)
    assert float(bounded.x.abs().max()) <= 0.1
    with pytest.raises(ValueError, match="takes no penalty"):
        solver.solve(bent, y, (matrix, y), penalty=lambda x: x.square().sum(1))
