"""Levenberg-Marquardt without a Jacobian: Gauss-Newton steps by CG, damped by how well the last one did."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .cg import Operator, cg
from .contract import Solution
from .linearise import Linearised
from .solve import Bound, Problem, State, Variable, arrived, drive, start

_LARGEST_DAMPING = 1e8
_SMALLEST_DAMPING = 1e-12
_HALVINGS = 3
_FEWEST_PRODUCTS, _LENGTHENED = 5, 1.5


@dataclass
class _MarquardtState(State):
    value: Tensor
    off: Tensor
    damping: Tensor
    growth: Tensor
    reach: Tensor
    scale: Tensor | None = None
    slope: Tensor | None = None


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Minimise |residual|^2 + penalty by damped Gauss-Newton steps (Marquardt 1963; damping after Nielsen 1999).

    Each of `steps` solves (J^T J + damping * s * M^-1) d = -J^T r by at most `inner` CG products to `inner_tolerance`.
    M is the preconditioner, and damping is felt in its metric: a step is short where M says that steps are short. s is
    the row's own curvature along its first downhill step M J^T r. Unknowns on a bound that descent would cross are
    held, and the step is projected. `preconditioner="diagonal"` estimates the diagonal of J^T J, M's inverse, from
    `probes` random signs (Bekas et al. 2007; damping by it is Marquardt's own); a function is M itself, mapping "b n"
    to "b n" row by row, symmetric and positive. With `first` the first step gets so many products, half as many again
    whenever a step kept over three quarters of what its model promised, a third fewer where it kept under a quarter:
    far from the answer a model is not worth solving to its end. A row has converged where its residual norm is at most
    `tolerance`, or its gradient at most `gradient_tolerance` of the first one: a least-squares fit that cannot reach
    zero. A pass is one forward run, with or without its backward; a product with J^T J is one.
    """

    steps: int = 12
    inner: int = 100
    inner_tolerance: float = 1e-3
    damping: float = 1e-3
    preconditioner: Literal["none", "diagonal"] | Operator = "none"
    probes: int = 8
    tolerance: float = 0.0
    gradient_tolerance: float = 1e-6
    first: int = 0

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

    def init(self, problem: Problem, x: Float[Tensor, "b n"]) -> _MarquardtState:
        """Return the state before the first step: the start, judged."""
        state = start(problem, x)
        value, norm, off = _value(problem, state.x)
        state.passes += state.running
        state.end(~torch.isfinite(value), "failed", lambda row: "the loss is not finite at the start")
        state.residual = torch.where(torch.isfinite(value), norm, math.inf)
        arrived(state, self.tolerance)
        damping = torch.full_like(value, self.damping)
        reach = torch.full_like(value, min(self.first or self.inner, self.inner))
        growth = torch.full_like(value, 2.0)
        return _MarquardtState(**vars(state), value=value, off=off, damping=damping, growth=growth, reach=reach)

    def step(self, problem: Problem, state: _MarquardtState) -> None:
        """Take one damped Gauss-Newton step in the rows that run."""
        # The last digits are those of the operations that a leak is made by.
        model = Linearised(problem, state.x, state.off)
        state.passes += state.running
        held = problem.held(state.x, model.gradient)
        downhill = torch.where(held, 0.0, -model.gradient)
        state.end(~torch.isfinite(downhill).all(1), "failed", lambda row: "the gradient is not finite")
        slope = downhill.norm(dim=1)
        preconditioner = self._preconditioner(model, held, state)
        if state.slope is None or state.scale is None:
            state.slope, state.scale = slope, _curvature_along(model, downhill, preconditioner)
            state.passes += state.running
        flat = slope <= self.gradient_tolerance * state.slope
        state.end(flat, "converged", lambda row: f"stationary at residual {float(state.residual[row]):.3g}")
        run = state.running
        if not bool(run.any()):
            return
        state.steps += run
        solved = cg(
            lambda v: torch.where(held, 0.0, model.curvature(v)),
            torch.where(run[:, None], downhill, 0.0),
            steps=state.reach.long(),
            tolerance=self.inner_tolerance,
            preconditioner=preconditioner,
            damping=(state.damping * state.scale)[:, None],
        )
        state.passes += solved.steps
        moved = problem.project(state.x + solved.x) - state.x
        bend = torch.nan_to_num(model.curvature(moved))
        state.passes += run
        along = torch.nan_to_num((moved * model.gradient).sum(1))
        self._advance(problem, state, moved, along, (moved * bend).sum(1))
        arrived(state, self.tolerance)

    def settle(self, problem: Problem, state: _MarquardtState) -> None:
        """Nothing is left to judge: every step judged its own trial."""

    def _advance(self, problem: Problem, state: _MarquardtState, moved: Tensor, along: Tensor, bend: Tensor) -> None:
        """Accept the step, or a half of it, in the rows where it descends; damp by the gain ratio of the whole."""
        searching, length, ratio = state.running, torch.ones_like(along), torch.zeros_like(along)
        for halving in range(_HALVINGS + 1):
            trial = state.x + length[:, None] * moved
            value, norm, off = _value(problem, trial)
            state.passes += searching
            lower = searching & torch.isfinite(value) & (value < state.value)
            if halving == 0:
                promised = -(2 * along + bend)
                kept = (state.value - value) / promised
                ratio = torch.where(searching & torch.isfinite(kept) & (promised > 0), kept, -math.inf)
            state.x = torch.where(lower[:, None], trial, state.x)
            state.value = torch.where(lower, value, state.value)
            state.off = torch.where(lower[:, None], off, state.off)
            state.residual = torch.where(lower, norm, state.residual)
            searching, length = searching & ~lower, length / 2
            if not bool(searching.any()):
                break
        if self.first:
            longer = torch.where(ratio > 0.75, _LENGTHENED, torch.where(ratio < 0.25, 1 / _LENGTHENED, 1.0))
            state.reach = (state.reach * longer).clamp(min(_FEWEST_PRODUCTS, self.inner), self.inner)
        good = ratio > 0
        shrink = (1 - (2 * ratio.clamp(0, 1) - 1) ** 3).clamp_min(1 / 3)
        state.damping = (state.damping * torch.where(good, shrink, state.growth)).clamp_min(_SMALLEST_DAMPING)
        state.growth = torch.where(good, 2.0, 2 * state.growth)
        stuck = state.damping > _LARGEST_DAMPING
        state.end(stuck, "stopped", lambda row: f"no step descends from residual {float(state.residual[row]):.3g}")

    def _preconditioner(self, model: Linearised, held: Tensor, state: State) -> Operator | None:
        if self.preconditioner == "none":
            return None
        if callable(self.preconditioner):
            given = self.preconditioner
            # Masked on both sides it stays symmetric, and held unknowns stay where they are.
            return lambda v: torch.where(held, 0.0, given(torch.where(held, 0.0, v)))
        generator = torch.Generator().manual_seed(0)
        total = torch.zeros_like(state.x)
        for _ in range(self.probes):
            # One draw for all rows, so that a row's result does not depend on its batch.
            signs = torch.randint(0, 2, (1, model.residual.shape[1]), generator=generator) * 2 - 1
            signs = signs.to(model.residual).expand_as(model.residual)
            total += model.transposed(signs).square()
        state.passes += self.probes * state.running
        diagonal = total / self.probes
        # A floor, because few probes may miss an unknown's curvature altogether.
        diagonal = diagonal + 1e-3 * diagonal.mean(1, keepdim=True).clamp_min(torch.finfo(diagonal.dtype).tiny)
        return lambda v: torch.where(held, 0.0, v / diagonal)


def _value(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        off = problem.residual(x)
        norm = off.norm(dim=1)
        return norm.square() + problem.penalise(x), norm, off


def _curvature_along(model: Linearised, downhill: Tensor, preconditioner: Operator | None) -> Tensor:
    """The curvature along the first step, a unit being what the preconditioner calls one."""
    step = downhill if preconditioner is None else preconditioner(downhill)
    length = (step * downhill).sum(1).clamp_min(torch.finfo(downhill.dtype).tiny).sqrt()
    unit = step / length[:, None]
    scale = (unit * model.curvature(unit)).sum(1)
    return torch.where(torch.isfinite(scale) & (scale > 0), scale, 1.0)
