"""Least squares under equality constraints and bounds: multipliers outside, Levenberg-Marquardt inside."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .contract import Solution
from .levenberg_marquardt import LevenbergMarquardt
from .solve import Bound, Problem, State, Variable, drive, start

Parts = tuple[Tensor, Tensor]
# What a Levenberg-Marquardt step costs beside its CG products, and a round beside its steps.
STEP, ROUND = 7, 2
_HEAVIEST = 1e8
# Multipliers that run away belong to constraints that cannot be met; beyond this the weight has to do.
_FARTHEST = 1e6


@dataclass
class _MultiplierState(State):
    multipliers: Tensor | None
    weight: Tensor
    violation: Tensor


@dataclass(frozen=True)
class AugmentedLagrangian:
    """Minimise |f(x)|^2 subject to c(x) = 0 between bounds (Hestenes 1969; Powell 1969; Birgin & Martinez 2014).

    Each of `rounds` minimises |f|^2 + w |c + u|^2 by at most `steps` bounded Levenberg-Marquardt steps of `inner` CG
    products, then adds c to u, the multipliers over 2w. Where |c| did not fall to `shrink` of the round before, w, at
    first `weight`, grows by `growth` and u shrinks by it. Every row has multipliers and a weight of its own. A row has
    converged where both |f| and |c| are at most `tolerance`; where only |c| is, it goes on as long as |f| falls.
    """

    rounds: int = 12
    steps: int = 4
    inner: int = 40
    weight: float = 1.0
    growth: float = 10.0
    shrink: float = 0.5
    tolerance: float = 1e-6

    @property
    def budget(self) -> int:
        """Each row is run at most so often."""
        return self.rounds * (self.steps * (self.inner + STEP) + ROUND) + 1

    def solve(
        self,
        parts_fn: Callable[..., Parts],
        x0: Variable,
        z: Variable,
        *,
        lower: Bound = None,
        upper: Bound = None,
    ) -> Solution:
        """Return where the multipliers lead from `x0`; `parts_fn` maps x, z to f, "b m", and c, "b k".

        Otherwise as `Solver`. The solution's residual is |f|; |c| is in the status of each row.
        """
        problem, x = Problem.of(lambda x, z: torch.cat(parts_fn(x, z), 1), x0, z, None, lower, upper)
        return drive(_Rounds(self, parts_fn), problem, x, self.rounds)


@dataclass(frozen=True)
class _Rounds:
    """The outer loop on one problem."""

    solver: AugmentedLagrangian
    parts_fn: Callable[..., Parts]

    def init(self, problem: Problem, x: Float[Tensor, "b n"]) -> _MultiplierState:
        """Return the state before the first round: the start, judged."""
        state = start(problem, x)
        far = torch.full_like(state.residual, math.inf)
        weight = torch.full_like(far, self.solver.weight)
        found = _MultiplierState(**vars(state), multipliers=None, weight=weight, violation=far)
        self._judge(problem, found, self._parts(problem, found.x))
        return found

    def step(self, problem: Problem, state: _MultiplierState) -> None:
        """Minimise with the multipliers as they are, in the rows that run, then move them."""
        rows = state.running.nonzero().flatten()
        assert state.multipliers is not None
        weight, shift = state.weight[rows, None].sqrt(), state.multipliers[rows]
        z = problem.z[rows] if isinstance(problem.z, Tensor) else tuple(part[rows] for part in problem.z)

        def lifted(x: Tensor, z: Variable) -> Tensor:
            f, c = self.parts_fn(problem.unpack(x), z)
            return torch.cat([f, weight * (c + shift)], 1)

        inner = LevenbergMarquardt(self.solver.steps, self.solver.inner, gradient_tolerance=1e-4)
        bounds = [None if bound is None else bound[rows] for bound in (problem.lower, problem.upper)]
        found = inner.solve(lifted, state.x[rows], z, lower=bounds[0], upper=bounds[1])
        state.steps[rows] += found.steps
        state.passes[rows] += found.passes
        assert isinstance(found.x, Tensor)
        state.x = state.x.index_copy(0, rows, found.x)
        broken = torch.zeros_like(state.running)
        broken[rows] = torch.tensor([status.kind == "failed" for status in found.status], device=rows.device)
        said = dict(zip(rows.tolist(), found.status, strict=True))
        state.end(broken, "failed", lambda row: said[row].message)
        self._judge(problem, state, self._parts(problem, state.x))

    def settle(self, problem: Problem, state: _MultiplierState) -> None:
        """Say of rows that ran out of rounds how far they got."""
        state.end(state.running, "stopped", lambda row: _standing(state, row))

    @torch.no_grad()
    def _parts(self, problem: Problem, x: Tensor) -> Parts:
        return self.parts_fn(problem.unpack(x), problem.z)

    def _judge(self, problem: Problem, state: _MultiplierState, parts: Parts) -> None:
        f, c = parts
        run, residual, violation = state.running, f.norm(dim=1), c.norm(dim=1)
        state.passes += run
        state.end(~torch.isfinite(residual + violation), "failed", lambda row: "the loss is not finite")
        stalled = (violation <= self.solver.tolerance) & (residual > 0.9 * state.residual)
        state.residual = torch.where(run, residual, state.residual)
        before, state.violation = state.violation, torch.where(run, violation, state.violation)
        solved = (state.residual <= self.solver.tolerance) & (state.violation <= self.solver.tolerance)
        state.end(solved, "converged", lambda row: _standing(state, row))
        state.end(stalled, "stopped", lambda row: "stationary: " + _standing(state, row))
        if state.multipliers is None:
            state.multipliers = torch.zeros_like(c)
            return
        moved = (state.multipliers + c).clamp(-_FARTHEST, _FARTHEST)
        slow = state.running & (violation > self.solver.shrink * before) & (state.weight < _HEAVIEST)
        growth = torch.where(slow, self.solver.growth, 1.0)
        state.weight = state.weight * growth
        state.multipliers = torch.where(state.running[:, None], moved / growth[:, None], state.multipliers)


def _standing(state: _MultiplierState, row: int) -> str:
    return f"residual {float(state.residual[row]):.3g}, constraints missed by {float(state.violation[row]):.3g}"
