"""L-BFGS (Liu & Nocedal 1989): descent with curvature learnt from the last steps, every row its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .contract import Solution
from .solve import Bound, Problem, State, Variable, drive, start

_SUFFICIENT = 1e-4
# A pair whose curvature is this far below that of its lengths would blow up the step.
_LEAST_CURVATURE = 1e-10


@dataclass
class _LBFGSState(State):
    value: Tensor
    gradient: Tensor
    slope: Tensor | None = None
    moves: list[Tensor] = field(default_factory=list)
    changes: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class LBFGS:
    """Minimise |residual|^2 + penalty by limited-memory BFGS, a pass being one forward and backward run.

    Each row has its own last `history` pairs of steps and gradient changes, left out where the curvature along the step
    is not positive, and its own line search: the step is halved, at most `halvings` times, until the loss falls by a
    fraction of what its slope promises. Unknowns on a bound that descent would cross are held, and trial points are
    projected. Where no length descends, the row forgets its pairs and tries the gradient; where that fails too, it has
    ended. Converged as in `LevenbergMarquardt`. Rows at rest cost runs, not passes.
    """

    steps: int = 300
    history: int = 10
    halvings: int = 12
    tolerance: float = 0.0
    gradient_tolerance: float = 1e-6

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
        """Return where descent from `x0` ends. Shapes as in `Solver`; never raises for what a row does."""
        problem, x = Problem.of(residual_fn, x0, z, penalty, lower, upper)
        return drive(self, problem, x, self.steps)

    def init(self, problem: Problem, x: Float[Tensor, "b n"]) -> _LBFGSState:
        """Return the state before the first step: the start, judged."""
        state = start(problem, x)
        value, norm, gradient = _judged(problem, state.x)
        state.passes += state.running
        sound = torch.isfinite(value) & torch.isfinite(gradient).all(1)
        state.end(~sound, "failed", lambda row: "the loss or its gradient is not finite at the start")
        state.residual = torch.where(sound, norm, math.inf)
        self._rest(state)
        return _LBFGSState(**vars(state), value=value, gradient=torch.where(sound[:, None], gradient, 0.0))

    def step(self, problem: Problem, state: _LBFGSState) -> None:
        """Move each running row along its own quasi-Newton direction as far as its loss falls."""
        held = problem.held(state.x, state.gradient)
        downhill = torch.where(held, 0.0, -state.gradient)
        slope = downhill.norm(dim=1)
        if state.slope is None:
            state.slope = slope
        flat = slope <= self.gradient_tolerance * state.slope
        state.end(flat, "converged", lambda row: f"stationary at residual {float(state.residual[row]):.3g}")
        state.steps += state.running
        way = torch.where(held, 0.0, self._direction(state, downhill))
        # Held unknowns bend the quasi-Newton direction: it must still descend.
        astray = (way * state.gradient).sum(1) >= 0
        way = torch.where(astray[:, None], self._first(state, downhill), way)
        before, gradient = state.x, state.gradient
        moved = self._search(problem, state, way, state.running)
        lost = state.running & ~moved
        if bool(lost.any()):
            for weights in state.weights:
                weights[lost] = 0.0
            moved |= self._search(problem, state, self._first(state, downhill), lost)
        # One pair a step for all rows, so that a row's memory does not depend on its batch.
        self._remember(state, state.x - before, state.gradient - gradient)
        stuck = state.running & ~moved
        state.end(stuck, "stopped", lambda row: f"no step descends from residual {float(state.residual[row]):.3g}")
        self._rest(state)

    def settle(self, problem: Problem, state: _LBFGSState) -> None:
        """Nothing is left to judge: every step judged its own trial."""

    def _direction(self, state: _LBFGSState, downhill: Tensor) -> Tensor:
        """Return the product of each row's inverse curvature with its downhill, by the two loops."""
        if not state.moves:
            return self._first(state, downhill)
        way, shares = downhill, []
        for move, change, weight in zip(reversed(state.moves), reversed(state.changes), reversed(state.weights)):
            share = weight * (move * way).sum(1)
            way = way - share[:, None] * change
            shares.append(share)
        way = self._scale(state, downhill)[:, None] * way
        for move, change, weight, share in zip(state.moves, state.changes, state.weights, reversed(shares)):
            way = way + (share - weight * (change * way).sum(1))[:, None] * move
        sound: Tensor = torch.where(torch.isfinite(way), way, 0.0)
        return sound

    def _scale(self, state: _LBFGSState, downhill: Tensor) -> Float[Tensor, "b"]:
        """Return the inverse curvature along each row's last sound step, that of the first step where it has none."""
        scale: Tensor = self._first(state, downhill).norm(dim=1) / downhill.norm(dim=1).clamp_min(_tiny(downhill))
        for change, weight in zip(state.changes, state.weights):
            own = 1 / (weight * change.square().sum(1)).clamp_min(_tiny(change))
            scale = torch.where(weight > 0, own, scale)
        return scale

    def _first(self, state: _LBFGSState, downhill: Tensor) -> Tensor:
        """Return the gradient step that would bring a loss of constant slope to zero, at most of the iterate's size."""
        slope = downhill.norm(dim=1).clamp_min(_tiny(downhill))
        length = torch.minimum(state.value.clamp_min(0) / slope, 1 + state.x.norm(dim=1))
        step: Tensor = (length / slope)[:, None] * downhill
        return step

    def _search(self, problem: Problem, state: _LBFGSState, way: Tensor, rows: Bool[Tensor, "b"]) -> Bool[Tensor, "b"]:
        """Halve each row's step until its loss falls enough; return which rows moved."""
        before, gradient = state.x, state.gradient
        searching, length = rows.clone(), torch.ones_like(state.value)
        for _ in range(self.halvings + 1):
            if not bool(searching.any()):
                break
            trial = torch.where(searching[:, None], problem.project(before + length[:, None] * way), state.x)
            value, norm, slope = _judged(problem, trial)
            state.passes += searching
            promised = (gradient * (trial - before)).sum(1)
            sound = torch.isfinite(value) & torch.isfinite(slope).all(1)
            good = searching & sound & (promised < 0) & (value <= state.value + _SUFFICIENT * promised)
            state.x = torch.where(good[:, None], trial, state.x)
            state.gradient = torch.where(good[:, None], slope, state.gradient)
            state.value = torch.where(good, value, state.value)
            state.residual = torch.where(good, norm, state.residual)
            searching, length = searching & ~good, length / 2
        return rows & ~searching

    def _remember(self, state: _LBFGSState, move: Tensor, change: Tensor) -> None:
        curvature = (move * change).sum(1)
        sound = curvature > _LEAST_CURVATURE * move.norm(dim=1) * change.norm(dim=1)
        weight = torch.where(sound, 1 / torch.where(sound, curvature, 1.0), 0.0)
        state.moves = [*state.moves, move][-self.history :]
        state.changes = [*state.changes, change][-self.history :]
        state.weights = [*state.weights, weight][-self.history :]

    def _rest(self, state: State) -> None:
        near = state.residual <= self.tolerance
        state.end(near, "converged", lambda row: f"residual {float(state.residual[row]):.3g}")


def _judged(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, residual norm and the loss's gradient."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        residual = problem.residual(x)
        loss = residual.square().sum(1) + problem.penalise(x)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), residual.detach().norm(dim=1), gradient


def _tiny(x: Tensor) -> float:
    return float(torch.finfo(x.dtype).tiny)
