"""Problems with known answers, solved by other means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear, nnls
from torch import Tensor, nn

from seepage.solvers import LBFGS, Adam, LevenbergMarquardt, Problem, cg
from seepage.solvers.linearise import Linearised

EXACT = LevenbergMarquardt(steps=40, inner=40, inner_tolerance=1e-10, tolerance=1e-9, gradient_tolerance=1e-10)
QUASI = LBFGS(steps=300, gradient_tolerance=1e-9, tolerance=1e-9)
SOLVERS = [EXACT, Adam(steps=1500, lr=0.1), QUASI]
NAMES = ["levenberg-marquardt", "adam", "l-bfgs"]


def linear(seed: int, rows: int = 20, columns: int = 8, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(batch, rows, columns, generator=generator, dtype=torch.float64)
    return matrix, torch.randn(batch, rows, generator=generator, dtype=torch.float64)


def misfit(x: Tensor, z: tuple[Tensor, Tensor]) -> Tensor:
    matrix, y = z
    return torch.einsum("bmn,bn->bm", matrix, x) - y


def rosenbrock(x: Tensor, z: Tensor) -> Tensor:
    return torch.stack([10 * (x[:, 1] - x[:, 0] ** 2), z - x[:, 0]], 1)


@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_least_squares_equals_the_direct_solution(solver, seed):
    matrix, y = linear(seed)
    solution = solver.solve(misfit, torch.zeros(3, 8, dtype=torch.float64), (matrix, y))
    direct = torch.linalg.lstsq(matrix, y[..., None]).solution[..., 0]
    assert torch.allclose(solution.x, direct, atol=1e-6)
    assert torch.allclose(solution.residual, misfit(direct, (matrix, y)).norm(dim=1), atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_nonnegative_least_squares_equals_scipy(solver, seed):
    matrix, y = linear(seed)
    solution = solver.solve(misfit, torch.ones(3, 8, dtype=torch.float64), (matrix, y), lower=0.0)
    expected = np.stack([nnls(a.numpy(), b.numpy())[0] for a, b in zip(matrix, y)])
    assert np.allclose(solution.x.numpy(), expected, atol=1e-5)
    assert (expected == 0).any(), "the bound must matter"


@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
def test_bounded_least_squares_equals_scipy(solver):
    matrix, y = linear(7)
    low = torch.full((8,), -0.1, dtype=torch.float64)
    solution = solver.solve(misfit, torch.zeros(3, 8, dtype=torch.float64), (matrix, y), lower=low, upper=0.15)
    expected = np.stack([lsq_linear(a.numpy(), b.numpy(), (-0.1, 0.15), tol=1e-12).x for a, b in zip(matrix, y)])
    assert np.allclose(solution.x.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("solver", [EXACT, Adam(steps=2500, lr=0.1), QUASI], ids=NAMES)
def test_rosenbrock_valley_is_walked_to_its_end(solver):
    x0 = torch.tensor([[-1.2, 1.0], [0.5, 1.0]], dtype=torch.float64)
    solution = solver.solve(rosenbrock, x0, torch.tensor([1.0, 1.2], dtype=torch.float64))
    assert torch.allclose(solution.x, torch.tensor([[1.0, 1.0], [1.2, 1.44]], dtype=torch.float64), atol=1e-2)


@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
def test_unknowns_may_be_a_tuple_with_bounds_of_their_own(solver):
    matrix, y = linear(3)

    def split(x: tuple[Tensor, Tensor], z: tuple[Tensor, Tensor]) -> Tensor:
        free, positive = x
        return misfit(torch.cat([free.flatten(1), positive], 1), z)

    x0 = (torch.zeros(3, 2, 2, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64))
    solution = solver.solve(split, x0, (matrix, y), lower=(None, 0.0))
    low = [-np.inf] * 4 + [0.0] * 4
    expected = np.stack([lsq_linear(a.numpy(), b.numpy(), (low, np.inf), tol=1e-12).x for a, b in zip(matrix, y)])
    free, positive = solution.x
    assert free.shape == (3, 2, 2)
    assert np.allclose(torch.cat([free.flatten(1), positive], 1).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
def test_quadratic_penalty_gives_ridge_regression(solver):
    matrix, y = linear(5, rows=6)
    solution = solver.solve(
        misfit, torch.zeros(3, 8, dtype=torch.float64), (matrix, y), penalty=lambda x: 0.5 * x.square().sum(1)
    )
    gram = matrix.mT @ matrix + 0.5 * torch.eye(8, dtype=torch.float64)
    expected = torch.linalg.solve(gram, (matrix.mT @ y[..., None])[..., 0])
    assert torch.allclose(solution.x, expected, atol=1e-5)


def test_penalty_fades_geometrically():
    annealed = Adam(steps=3000, lr=0.05, penalty_start=1e2, penalty_end=1e-9)
    matrix, y = linear(5)
    x0 = torch.zeros(3, 8, dtype=torch.float64)
    solution = annealed.solve(misfit, x0, (matrix, y), penalty=lambda x: x.square().sum(1))
    assert torch.allclose(solution.x, torch.linalg.lstsq(matrix, y[..., None]).solution[..., 0], atol=1e-3)
    assert annealed._weight(0) == pytest.approx(1e2)
    assert annealed._weight(2999) == pytest.approx(1e-9)
    assert annealed._weight(1) / annealed._weight(0) == pytest.approx(annealed._weight(2) / annealed._weight(1))


def hostile(x: Tensor, z: Tensor) -> Tensor:
    return torch.log(x) - z


@pytest.mark.parametrize("solver", [EXACT, Adam(steps=300, lr=0.1, tolerance=1e-3), QUASI], ids=NAMES)
def test_a_failing_row_says_why_and_leaves_the_others_alone(solver):
    x0 = torch.tensor([[1.0], [-1.0], [float("nan")], [2.0]], dtype=torch.float64)
    z = torch.tensor([[0.5], [0.5], [0.5], [float("inf")]], dtype=torch.float64)
    solution = solver.solve(hostile, x0, z)
    alone = solver.solve(hostile, x0[:1], z[:1])
    assert [status.kind for status in solution.status] == ["converged", "failed", "failed", "failed"]
    assert all("finite" in status.message for status in solution.status[1:])
    assert torch.isfinite(solution.x).all()
    assert solution.x[0].item() == pytest.approx(np.exp(0.5), rel=1e-2)
    assert torch.equal(solution.x[0], alone.x[0])
    assert torch.isinf(solution.residual[1:]).all()


def test_a_diverging_row_fails_and_keeps_a_finite_iterate():
    steep = Adam(steps=20, lr=30.0, schedule="constant")
    solution = steep.solve(lambda x, z: torch.exp(x.abs() * z), torch.full((2, 1), 0.1), torch.tensor([[1.0], [0.0]]))
    assert solution.status[0].kind == "failed"
    assert "diverged" in solution.status[0].message
    assert torch.isfinite(solution.x).all()
    assert solution.status[1].kind == "stopped"


@pytest.mark.parametrize("solver", [EXACT, Adam(steps=50, lr=0.1), QUASI], ids=NAMES)
def test_a_row_alone_gives_what_it_gives_in_a_batch(solver):
    matrix, y = linear(11, batch=4)
    x0 = torch.zeros(4, 8, dtype=torch.float64)
    together = solver.solve(misfit, x0, (matrix, y), lower=-0.2)
    for row in range(4):
        alone = solver.solve(misfit, x0[row : row + 1], (matrix[row : row + 1], y[row : row + 1]), lower=-0.2)
        assert torch.allclose(alone.x[0], together.x[row], atol=1e-12)
        assert alone.passes[0] == together.passes[row]
        assert alone.steps[0] == together.steps[row]
        assert alone.status[0] == together.status[row]


@pytest.mark.parametrize("solver", [EXACT, Adam(steps=50, lr=0.01), QUASI], ids=NAMES)
def test_passes_are_no_fewer_than_the_runs_of_the_residual(solver):
    runs = 0

    def counted(x: Tensor, z: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        return rosenbrock(x, z)

    solution = solver.solve(counted, torch.tensor([[-1.2, 1.0]], dtype=torch.float64), torch.ones(1))
    # A product with the Jacobian is counted as a pass and runs the residual's derivatives alone.
    assert int(solution.passes[0]) >= runs
    assert int(solution.steps[0]) >= 10


def test_a_start_at_the_answer_converges_without_a_step():
    solution = EXACT.solve(rosenbrock, torch.ones(1, 2, dtype=torch.float64), torch.ones(1))
    assert solution.status[0].kind == "converged"
    assert int(solution.steps[0]) == 0


def test_diagonal_preconditioner_solves_a_badly_scaled_problem_in_fewer_passes():
    matrix, _ = linear(2, rows=40, columns=20)
    matrix = matrix * torch.logspace(0, 3, 20, dtype=torch.float64)
    y = matrix.sum(2)
    passes = []
    for name in ("none", "diagonal"):
        solver = LevenbergMarquardt(
            steps=10,
            inner=60,
            inner_tolerance=1e-8,
            damping=1e-10,
            preconditioner=name,
            gradient_tolerance=0.0,
            tolerance=1e-5,
        )
        solution = solver.solve(misfit, torch.zeros(3, 20, dtype=torch.float64), (matrix, y))
        passes.append(int(solution.passes.max()))
        if name == "diagonal":
            assert torch.allclose(solution.x, torch.ones_like(solution.x), atol=1e-4)
    assert passes[1] < 0.8 * passes[0]


def test_cg_equals_the_direct_solution_and_freezes_rows():
    matrix, y = linear(1, rows=30, columns=12)
    gram, right = matrix.mT @ matrix, torch.einsum("bmn,bm->bn", matrix, y)
    right[1] = 0
    found = cg(lambda v: torch.einsum("bij,bj->bi", gram, v), right, steps=50, tolerance=1e-12)
    assert torch.allclose(found.x, torch.linalg.solve(gram, right), atol=1e-9)
    assert found.steps.tolist()[1] == 0
    assert max(found.steps.tolist()) <= 14


def test_cg_rests_at_negative_curvature_and_at_what_is_not_finite():
    right = torch.ones(2, 3, dtype=torch.float64)
    found = cg(lambda v: torch.stack([-v[0], v[1] * float("nan")]), right, steps=10)
    assert torch.equal(found.x, torch.zeros_like(right))


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(len(x), 1, 4, 3)
        return nn.functional.scaled_dot_product_attention(tokens, 2 * tokens, tokens.tanh())


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, w):
        return w * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize("function", [Attention(), NoForwardMode.apply], ids=["attention", "no forward mode"])
def test_products_equal_the_dense_jacobian(function):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    problem, flat = Problem.of(lambda x, z: function(x), x, (), lambda x: x.pow(4).sum(1))
    model = Linearised(problem, flat)
    v = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    for row in range(2):
        point = x[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(lambda p: function(p).flatten(), point).reshape(-1, 12)
        assert torch.allclose(model.forward(v)[row], jacobian @ v[row])
        expected = jacobian.T @ (jacobian @ v[row]) + 6 * x[row] ** 2 * v[row]
        assert torch.allclose(model.curvature(v)[row], expected)
        assert torch.allclose(model.gradient[row], jacobian.T @ model.residual[row] + 2 * x[row] ** 3)
