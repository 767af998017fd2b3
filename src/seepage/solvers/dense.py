"""Levenberg-Marquardt with its equations solved exactly, for rows of few unknowns and a bad condition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .contract import Solution
from .solve import Bound, Problem, State, Variable, arrived, drive, measured

_BYTES, _AT_ONCE = 2**28, 64
_TRIES = 6
_SMALLEST = 1e-12


@dataclass
class _DenseState(State):
    off: Tensor
    damping: Tensor


@dataclass(frozen=True)
class DenseMarquardt:
    """Minimise |residual|^2 by steps (J^T J + damping * s) d = -J^T r, J formed and the equations solved in float64.

    s is the mean of J^T J's diagonal. A row of m equations costs m backward runs a step, many at a time, which
    conjugate gradients need as well where the condition is bad, and then do not end at the answer. Memory is some
    8 n (n + m) bytes for each row of n unknowns; rows that have ended are not run again, and many are taken in parts:
    `residual_fn` sees some of the rows of `z`. A step that does not descend is tried again with ten times the damping.
    A row has converged where its residual norm is at most `tolerance`.
    """

    steps: int = 15
    damping: float = 1e-4
    tolerance: float = 1e-6

    def solve(
        self,
        residual_fn: Callable[..., Tensor],
        x0: Variable,
        z: Variable,
        *,
        penalty: Callable[..., Tensor] | None = None,
        lower: Bound = None,
        upper: Bound = None,
    ) -> Solution:
        """Return where descent from `x0` ends. Shapes as in `Solver`; iterates are clamped to the bounds.

        Raises:
            ValueError: a penalty was given.
        """
        if penalty is not None:
            raise ValueError("DenseMarquardt minimises a residual alone and takes no penalty; LevenbergMarquardt does")
        problem, x = Problem.of(residual_fn, x0, z, None, lower, upper)
        return drive(self, problem, x, self.steps)

    def init(self, problem: Problem, x: Float[Tensor, "b n"]) -> _DenseState:
        """Return the state before the first step: the start, judged."""
        state, off = measured(problem, x, self.tolerance)
        return _DenseState(
            **vars(state), off=off, damping=torch.full_like(state.residual, self.damping, dtype=torch.float64)
        )

    def step(self, problem: Problem, state: _DenseState) -> None:
        """Take one step in the rows that run, as many at a time as memory allows."""
        n, m = state.x.shape[1], state.off.shape[1]
        for rows in torch.split(state.running.nonzero().flatten(), max(_BYTES // (8 * n * (n + m)), 1)):
            jacobian = _formed(problem.rows(rows), state.x[rows]).double()
            off = state.off[rows].double()
            square, slope = jacobian.mT @ jacobian, (jacobian.mT @ off[:, :, None])[:, :, 0]
            state.steps[rows] += 1
            state.passes[rows] += 1 + m
            self._advance(problem, state, rows, square, slope)
        arrived(state, self.tolerance)

    def settle(self, problem: Problem, state: _DenseState) -> None:
        """Nothing is left to judge: every step judged its own trial."""

    def _advance(self, problem: Problem, state: _DenseState, rows: Tensor, square: Tensor, slope: Tensor) -> None:
        eye = torch.eye(square.shape[1], dtype=square.dtype, device=square.device)
        scale = square.diagonal(dim1=1, dim2=2).mean(1)
        left = torch.arange(len(rows), device=rows.device)
        for _ in range(_TRIES):
            here = rows[left]
            damped = square[left] + (state.damping[here] * scale[left])[:, None, None] * eye
            factor, broken = torch.linalg.cholesky_ex(damped)
            way = -torch.cholesky_solve(slope[left][:, :, None], factor)[:, :, 0]
            part = problem.rows(here)
            trial = part.project(state.x[here] + way.to(state.x))
            with torch.no_grad():
                off = part.residual(trial)
            norm = off.norm(dim=1)
            state.passes[here] += 1
            lower = (broken == 0) & torch.isfinite(norm) & (norm < state.residual[here])
            kept = here[lower]
            state.x[kept], state.off[kept], state.residual[kept] = trial[lower], off[lower], norm[lower]
            state.damping[here] = torch.where(lower, state.damping[here] / 10, state.damping[here] * 10)
            state.damping.clamp_min_(_SMALLEST)
            left = left[~lower]
            if not len(left):
                return
        lost = torch.zeros_like(state.running)
        lost[rows[left]] = True
        state.end(lost, "stopped", lambda row: f"no step descends from residual {float(state.residual[row]):.3g}")


def _formed(problem: Problem, x: Float[Tensor, "k n"]) -> Float[Tensor, "k m n"]:
    """Return the Jacobian of every row, one of its own rows a backward run, many runs at a time."""
    x = x.detach().requires_grad_()
    # Fused attention has no rule for several backward runs at once.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        off = problem.residual(x)
    units = torch.eye(off.shape[1], dtype=off.dtype, device=off.device)[:, None].expand(-1, len(x), -1)
    back = partial(torch.autograd.grad, off, x, retain_graph=True, is_grads_batched=True)
    return torch.cat([back(some)[0] for some in torch.split(units, _AT_ONCE)]).transpose(0, 1)
