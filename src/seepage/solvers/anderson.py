"""Anderson acceleration: roots of residuals shaped like their unknown, from forward runs alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from .contract import Solution
from .solve import DIVERGED, Bound, Problem, State, Variable, drive, start


@dataclass
class _AndersonState(State):
    trial: Tensor
    initial: Tensor
    marked: Tensor
    since: Tensor
    points: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Anderson:
    """Solve residual_fn(x, z) = 0 by x <- x - residual_fn(x, z), accelerated (Anderson 1965; Walker & Ni 2011).

    Meant for y = x + F(x): with the residual x + F(x) - y it needs no derivative of F, and F need be no contraction.
    Each step is one forward run, mixes the last `history` differences and costs their inner products; `ridge` is the
    relative Tikhonov weight of that small problem. A row has converged where its residual norm is at most `tolerance`
    of the norm of its iterate, and is given up where `patience` steps did not halve its residual. It keeps the iterate
    of least residual.
    """

    steps: int = 60
    history: int = 8
    tolerance: float = 1e-6
    patience: int = 15
    ridge: float = 1e-12

    @torch.no_grad()
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
        """Return each row's iterate of least residual. Shapes as in `Solver`; iterates are clamped to the bounds.

        Raises:
            ValueError: a penalty was given, or the residual has not as many numbers as the unknown.
        """
        if penalty is not None:
            raise ValueError("Anderson solves residual = 0 and takes no penalty; LevenbergMarquardt and Adam do")
        problem, x = Problem.of(residual_fn, x0, z, None, lower, upper)
        return drive(self, problem, x, self.steps)

    def init(self, problem: Problem, x: Float[Tensor, "b n"]) -> _AndersonState:
        """Return the state before the first step."""
        state = start(problem, x)
        far = torch.full_like(state.residual, math.inf)
        return _AndersonState(
            **vars(state), trial=state.x, initial=far, marked=far.clone(), since=torch.zeros_like(state.steps)
        )

    def step(self, problem: Problem, state: _AndersonState) -> None:
        """Judge the trial point, then mix the next one from the points before it."""
        residual = problem.residual(state.trial)
        if residual.shape != state.trial.shape:
            raise ValueError(f"residual has {residual.shape[1]} numbers a row, the unknown {state.trial.shape[1]}")
        self._judge(state, residual)
        state.steps += state.running
        state.points = [*state.points, state.trial][-self.history - 1 :]
        state.residuals = [*state.residuals, residual][-self.history - 1 :]
        mixed = problem.project(self._mix(state.points, state.residuals))
        state.trial = torch.where(state.running[:, None], mixed, state.x)

    def settle(self, problem: Problem, state: _AndersonState) -> None:
        """Judge the last trial point, which no step has looked at."""
        if bool(state.running.any()):
            self._judge(state, problem.residual(state.trial))

    def _judge(self, state: _AndersonState, residual: Tensor) -> None:
        norm = residual.norm(dim=1)
        state.passes += state.running
        state.end(~torch.isfinite(norm), "failed", lambda row: f"not finite after {int(state.passes[row])} passes")
        state.initial = torch.where(torch.isfinite(state.initial), state.initial, norm)
        best = state.running & (norm < state.residual)
        state.x = torch.where(best[:, None], state.trial, state.x)
        state.residual = torch.where(best, norm, state.residual)
        near = state.residual <= self.tolerance * state.x.norm(dim=1)
        state.end(near, "converged", lambda row: f"residual {float(state.residual[row]):.3g}")
        state.end(norm > DIVERGED * state.initial, "failed", lambda row: f"diverged: residual {float(norm[row]):.3g}")
        halved = state.residual <= 0.5 * state.marked
        state.marked = torch.where(halved, state.residual, state.marked)
        state.since = torch.where(halved, 0, state.since + 1)
        stalled = state.since >= self.patience
        state.end(stalled, "stopped", lambda row: f"stalled at residual {float(state.residual[row]):.3g}")

    def _mix(self, points: list[Tensor], residuals: list[Tensor]) -> Tensor:
        x, r = points[-1], residuals[-1]
        if len(points) == 1:
            return x - r
        dx = torch.stack([x - past for past in points[:-1]], 2)  # b n m
        dr = torch.stack([r - past for past in residuals[:-1]], 2)
        gram = (dr.mT @ dr).double()
        right = (dr.mT @ r[:, :, None]).double()
        size = gram.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(torch.double).tiny).sqrt()
        scaled = gram / (size[:, :, None] * size[:, None]) + self.ridge * torch.eye(len(points) - 1).to(gram)
        # A row at rest repeats itself, and a broken one is not finite: neither must stop the others' solve.
        weights, _ = torch.linalg.solve_ex(torch.nan_to_num(scaled), torch.nan_to_num(right / size[:, :, None]))
        weights = (weights / size[:, :, None]).to(x)
        mixed: Tensor = x - r - ((dx - dr) @ weights)[:, :, 0]
        return mixed
