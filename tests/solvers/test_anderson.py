"""Fixed points known by other means, and blocks like those that the solver is for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from seepage.solvers.anderson import Anderson


def linear(gains: list[float], n: int = 60) -> tuple[Tensor, Tensor]:
    """One matrix a row, of spectral norm `gains`, and a right side."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(len(gains), n, n, generator=generator, dtype=torch.float64)
    norms = torch.linalg.matrix_norm(matrix, 2)
    matrix = matrix * (torch.tensor(gains, dtype=torch.float64) / norms)[:, None, None]
    return matrix, torch.randn(len(gains), n, generator=generator, dtype=torch.float64)


def missed(x: Tensor, z: tuple[Tensor, Tensor]) -> Tensor:
    matrix, y = z
    return x + torch.einsum("bmn,bn->bm", matrix, x) - y


def relative(found: Tensor, expected: Tensor) -> Tensor:
    return (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)


class Block(nn.Module):
    """y = x + F(x), F a bottleneck with a spectral norm of about `gain`."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(24, 6, 3, 3, generator=generator), torch.randn(6, 24, 1, 1, generator=generator)]
        self.weights = [weight / torch.linalg.matrix_norm(weight.flatten(1), 2) for weight in weights]
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.conv2d(x, self.weights[0], padding=1).relu()
        return x + self.gain * nn.functional.conv2d(hidden, self.weights[1])


@pytest.mark.parametrize("gain", [0.1, 0.5, 0.9])
def test_linear_fixed_points_equal_the_direct_solution(gain):
    matrix, y = linear([gain] * 3)
    solution = Anderson(steps=100, tolerance=1e-10).solve(missed, y, (matrix, y))
    direct = torch.linalg.solve(matrix + torch.eye(60, dtype=torch.float64), y)
    assert relative(solution.x, direct).max() < 1e-9
    assert [status.kind for status in solution.status] == ["converged"] * 3
    assert torch.allclose(solution.residual, missed(solution.x, (matrix, y)).norm(dim=1))


def test_a_symmetric_expansion_converges_where_the_plain_iteration_diverges():
    n = 40
    eigenvalues = torch.linspace(0, 3.4, n, dtype=torch.float64)
    matrix, y = torch.diag(eigenvalues)[None], torch.ones(1, n, dtype=torch.float64)
    plain = y
    for _ in range(60):
        plain = plain - missed(plain, (matrix, y))
    solution = Anderson(steps=60).solve(missed, y, (matrix, y))
    assert plain.norm() > 1e6
    assert relative(solution.x, y / (1 + eigenvalues)).max() < 1e-5


@pytest.mark.parametrize("gain", [0.3, 1.0])
def test_residual_blocks_come_back_in_about_twenty_passes(gain):
    block = Block(gain)
    x = torch.randn(4, 6, 10, 10, generator=torch.Generator().manual_seed(2))
    y = block(x)
    assert relative(y, x).min() > 0.05, "the start must be wrong"
    solution = Anderson(tolerance=1e-7).solve(lambda a, b: block(a) - b, y, y)
    assert relative(solution.x, x).max() < 1e-6
    assert solution.passes.max() <= 23


def test_rows_are_solved_apart():
    matrix, y = linear([0.2, 0.9, 0.5])
    solver = Anderson(steps=12)
    together = solver.solve(missed, y, (matrix, y))
    alone = [solver.solve(missed, y[i : i + 1], (matrix[i : i + 1], y[i : i + 1])) for i in range(3)]
    assert torch.allclose(together.x, torch.cat([one.x for one in alone]), rtol=1e-9)
    assert together.passes.tolist() == [int(one.passes) for one in alone]
    assert together.passes[0] < together.passes[1]


def test_a_broken_row_fails_with_a_sentence_and_leaves_the_others_alone():
    matrix, y = linear([0.2, 0.2])
    z = (matrix, torch.stack([y[0], torch.full_like(y[1], float("nan"))]))
    solution = Anderson().solve(missed, torch.zeros_like(y), z)
    assert [status.kind for status in solution.status] == ["converged", "failed"]
    assert solution.status[1].message == "not finite after 1 passes"
    direct = torch.linalg.solve(matrix[0] + torch.eye(60, dtype=torch.float64), y[0])
    assert relative(solution.x[:1], direct[None]).max() < 1e-5
    assert torch.isfinite(solution.x).all()


def test_what_cannot_be_solved_is_given_up_and_says_so():
    y = torch.ones(1, 5)
    stalled = Anderson(steps=500, patience=10).solve(lambda x, z: torch.ones_like(x), y, y)
    assert stalled.status[0].kind == "stopped"
    assert "stalled" in stalled.status[0].message
    assert stalled.passes.item() <= 12
    short = Anderson(steps=2).solve(missed, linear([0.9])[1], linear([0.9]))
    assert short.status[0].kind == "stopped"
    assert short.passes.item() == 3


def test_iterates_stay_between_the_bounds():
    y = torch.tensor([[-1.0, 0.3, 5.0]])
    solution = Anderson().solve(lambda x, z: 1.5 * x - z, torch.zeros(1, 3), y, lower=0.0, upper=2.0)
    assert solution.x.min() >= 0
    assert solution.x.max() <= 2


def test_what_it_cannot_take_is_refused():
    y = torch.ones(1, 4)
    with pytest.raises(ValueError, match="takes no penalty"):
        Anderson().solve(lambda x, z: x - z, y, y, penalty=lambda x: x.sum(1))
    with pytest.raises(ValueError, match="residual has 2 numbers a row, the unknown 4"):
        Anderson().solve(lambda x, z: (x - z)[:, :2], y, y)
