"""Adam (Kingma & Ba 2015) on the unknowns, with a decaying rate and a penalty that fades."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .contract import Solution
from .solve import DIVERGED, Bound, Problem, State, Variable, drive, start

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-12


@dataclass
class _AdamState(State):
    trial: Tensor
    first: Tensor
    second: Tensor
    initial: Tensor
    step: int = 0


@dataclass(frozen=True)
class Adam:
    """Minimise |residual|^2 + w * penalty by Adam, a step being one forward and backward run.

    `lr` is in the unknowns' units and decays to `lr_end` of itself along a cosine; w goes from `penalty_start` to
    `penalty_end` geometrically. A row ends where its residual norm is at most `tolerance`, where something is not
    finite, or where the residual has grown a millionfold; it keeps its last finite iterate.
    """

    steps: int = 300
    lr: float = 0.05
    schedule: Literal["constant", "cosine"] = "cosine"
    lr_end: float = 0.01
    penalty_start: float = 1.0
    penalty_end: float = 1.0
    tolerance: float = 0.0

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

    def init(self, problem: Problem, x: Float[Tensor, "b n"]) -> _AdamState:
        """Return the state before the first step."""
        state = start(problem, x)
        still = torch.zeros_like(state.x)
        return _AdamState(**vars(state), trial=state.x, first=still, second=still, initial=state.residual)

    def step(self, problem: Problem, state: _AdamState) -> None:
        """Judge the trial point and descend from it."""
        x = state.trial.detach().requires_grad_()
        with torch.enable_grad():
            residual = problem.residual(x)
            loss = residual.square().sum(1) + self._weight(state.step) * problem.penalise(x)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
        self._accept(state, residual.detach(), torch.isfinite(gradient).all(1) & torch.isfinite(loss.detach()))
        run = state.running[:, None]
        state.step += 1
        state.first = torch.where(run, _BETA1 * state.first + (1 - _BETA1) * gradient, state.first)
        state.second = torch.where(run, _BETA2 * state.second + (1 - _BETA2) * gradient.square(), state.second)
        slope = state.first / (1 - _BETA1**state.step)
        spread = (state.second / (1 - _BETA2**state.step)).sqrt() + _EPSILON
        moved = problem.project(x.detach() - self._rate(state.step - 1) * slope / spread)
        state.trial = torch.where(run, moved, state.x)
        state.steps += state.running

    def settle(self, problem: Problem, state: _AdamState) -> None:
        """Judge the last trial point, which no step has looked at."""
        if bool(state.running.any()):
            with torch.no_grad():
                residual = problem.residual(state.trial)
            self._accept(state, residual, torch.ones_like(state.running))

    def _accept(self, state: _AdamState, residual: Tensor, sound: Tensor) -> None:
        norm = residual.norm(dim=1)
        state.passes += state.running
        sound = sound & torch.isfinite(norm)
        state.end(~sound, "failed", lambda row: f"the loss or its gradient is not finite at step {state.step}")
        if state.step == 0:
            state.initial = norm
        blown = norm > DIVERGED * state.initial
        state.end(blown, "failed", lambda row: f"diverged: residual {float(norm[row]):.3g} at step {state.step}")
        good = state.running
        state.x = torch.where(good[:, None], state.trial, state.x)
        state.residual = torch.where(good, norm, state.residual)
        state.end(norm <= self.tolerance, "converged", lambda row: f"residual {float(norm[row]):.3g}")

    def _rate(self, step: int) -> float:
        if self.schedule == "constant":
            return self.lr
        fall = 0.5 * (1 + math.cos(math.pi * step / max(self.steps, 1)))
        return self.lr * (self.lr_end + (1 - self.lr_end) * fall)

    def _weight(self, step: int) -> float:
        if min(self.penalty_start, self.penalty_end) <= 0:
            return self.penalty_end
        done = step / max(self.steps - 1, 1)
        return self.penalty_start * math.exp(done * math.log(self.penalty_end / self.penalty_start))
