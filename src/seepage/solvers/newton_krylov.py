"""Newton's method for as many equations as unknowns: each step solved by GMRES, from products with J alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .contract import Solution
from .gmres import gmres
from .linearise import Linearised
from .solve import Bound, Problem, State, Variable, arrived, drive, measured

# How exactly a step is solved: loosely while its model holds for a short way only.
_LOOSE, _EXACT, _NEAR = 0.1, 1e-3, 1e-3
_HALVINGS = 6
# GMRES keeps its directions: so many rows are solved at once as these bytes hold.
_BYTES = 2**29


@dataclass
class _NewtonState(State):
    off: Tensor
    marked: Tensor
    since: Tensor


@dataclass(frozen=True)
class NewtonKrylov:
    """Solve residual_fn(x, z) = 0 by x <- x + t d, J d = -residual (Brown & Saad 1990).

    J is square and never formed: each of `steps` takes at most `inner` products with it, none with its transpose, by
    GMRES. Levenberg-Marquardt's normal equations have the square of J's condition, and where x + F(x) has a J whose
    eigenvalues stay away from zero this takes far fewer products. t is halved until the residual falls. A row has
    converged where its residual norm is at most `tolerance`, and is given up where no step descends, or where
    `patience` steps did not halve its residual, or where it has taken `passes` (0: no limit, which the last step may
    overrun by what it takes). Rows that have ended are not run again: `residual_fn` sees some of the rows of `z`. A
    pass is one run, with or without its backward; a product is one.
    """

    steps: int = 20
    inner: int = 100
    tolerance: float = 1e-6
    patience: int = 4
    passes: int = 0

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
            raise ValueError("NewtonKrylov solves residual = 0 and takes no penalty; LevenbergMarquardt and Adam do")
        problem, x = Problem.of(residual_fn, x0, z, None, lower, upper)
        return drive(self, problem, x, self.steps)

    def init(self, problem: Problem, x: Float[Tensor, "b n"]) -> _NewtonState:
        """Return the state before the first step: the start, judged."""
        state, off = measured(problem, x, self.tolerance)
        if off.shape != state.x.shape:
            raise ValueError(f"residual has {off.shape[1]} numbers a row, the unknown {state.x.shape[1]}")
        return _NewtonState(**vars(state), off=off, marked=state.residual.clone(), since=torch.zeros_like(state.steps))

    def step(self, problem: Problem, state: _NewtonState) -> None:
        """Take one step in the rows that run."""
        at_once = max(_BYTES // (state.x.element_size() * state.x.shape[1] * (self.inner + 2)), 1)
        for rows in torch.split(state.running.nonzero().flatten(), at_once):
            part, off = problem.rows(rows), state.off[rows]
            model = Linearised(part, state.x[rows], off)
            exactly = torch.where(state.residual[rows] > _NEAR, _LOOSE, _EXACT)
            solved = gmres(model.forward, -off, steps=self.inner, tolerance=exactly)
            state.steps[rows] += 1
            state.passes[rows] += 1 + solved.steps
            self._advance(part, state, rows, solved.x)
        halved = state.residual <= 0.5 * state.marked
        state.marked = torch.where(halved, state.residual, state.marked)
        state.since = torch.where(halved, 0, state.since + 1)
        arrived(state, self.tolerance)
        stalled = state.since >= self.patience
        state.end(stalled, "stopped", lambda row: f"stalled at residual {float(state.residual[row]):.3g}")
        if self.passes:
            spent = state.passes >= self.passes
            state.end(spent, "stopped", lambda row: f"residual {float(state.residual[row]):.3g}, all passes taken")

    def settle(self, problem: Problem, state: _NewtonState) -> None:
        """Nothing is left to judge: every step judged its own trial."""

    def _advance(self, part: Problem, state: _NewtonState, rows: Tensor, way: Float[Tensor, "k n"]) -> None:
        """Go the way, or a half of it and so on, in the rows where that descends."""
        searching, length = torch.ones(len(rows), dtype=torch.bool, device=way.device), 1.0
        for _ in range(_HALVINGS + 1):
            trial = part.project(state.x[rows] + length * way)
            with torch.no_grad():
                off = part.residual(trial)
            norm = off.norm(dim=1)
            state.passes[rows] += searching
            lower = searching & torch.isfinite(norm) & (norm < state.residual[rows])
            kept = rows[lower]
            state.x[kept], state.off[kept], state.residual[kept] = trial[lower], off[lower], norm[lower]
            searching, length = searching & ~lower, length / 2
            if not bool(searching.any()):
                return
        lost = torch.zeros_like(state.running)
        lost[rows[searching]] = True
        state.end(lost, "stopped", lambda row: f"no step descends from residual {float(state.residual[row]):.3g}")
