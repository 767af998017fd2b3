"""What every solver shares: unknowns as flat rows, bounds, and the loop that steps until every sample has ended."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..types import Shape, Status
from .contract import Solution

Variable = Tensor | tuple[Tensor, ...]
Bound = float | Tensor | tuple[float | Tensor | None, ...] | None
DIVERGED = 1e6


@dataclass(frozen=True)
class Problem:
    """Minimise |residual_fn(x, z)|^2 + penalty(x) between bounds, each row of the batch apart.

    Solvers see the unknowns as one flat row a sample, "b n", whatever tensors they are made of.
    """

    residual_fn: Callable[..., Tensor]
    z: Variable
    penalty: Callable[..., Tensor] | None
    shapes: tuple[Shape, ...]
    single: bool
    lower: Float[Tensor, "#b n"] | None
    upper: Float[Tensor, "#b n"] | None

    @staticmethod
    def of(
        residual_fn: Callable[..., Tensor],
        x0: Variable,
        z: Variable,
        penalty: Callable[..., Tensor] | None = None,
        lower: Bound = None,
        upper: Bound = None,
    ) -> tuple[Problem, Float[Tensor, "b n"]]:
        """Return the problem and its start as flat rows, moved between the bounds."""
        parts = (x0,) if isinstance(x0, Tensor) else x0
        shapes = tuple(tuple(part.shape[1:]) for part in parts)
        low, high = (_flat_bound(bound, parts, fill) for bound, fill in ((lower, -math.inf), (upper, math.inf)))
        problem = Problem(residual_fn, z, penalty, shapes, isinstance(x0, Tensor), low, high)
        return problem, problem.project(torch.cat([part.detach().flatten(1) for part in parts], 1))

    def rows(self, index: Int[Tensor, "k"]) -> Problem:
        """Return the same problem for some of its rows."""

        def some(bound: Tensor | None) -> Tensor | None:
            return bound if bound is None or len(bound) == 1 else bound[index]

        z = self.z[index] if isinstance(self.z, Tensor) else tuple(part[index] for part in self.z)
        return replace(self, z=z, lower=some(self.lower), upper=some(self.upper))

    def unpack(self, x: Float[Tensor, "b n"]) -> Variable:
        """Return flat rows as the tensor or tuple that the caller's functions take."""
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = tuple(p.reshape(len(x), *shape) for p, shape in zip(torch.split(x, sizes, 1), self.shapes, strict=True))
        return parts[0] if self.single else parts

    def residual(self, x: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """Return what is left to explain, flat."""
        return self.residual_fn(self.unpack(x), self.z).reshape(len(x), -1)

    def penalise(self, x: Float[Tensor, "b n"]) -> Float[Tensor, "b"]:
        """Return the penalty, zero where there is none."""
        return x.new_zeros(len(x)) if self.penalty is None else self.penalty(self.unpack(x))

    def project(self, x: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return the nearest point between the bounds."""
        if self.lower is not None:
            x = torch.maximum(x, self.lower)
        return x if self.upper is None else torch.minimum(x, self.upper)

    def held(self, x: Float[Tensor, "b n"], gradient: Float[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
        """Return which unknowns sit on a bound that descent would push them through."""
        at = torch.zeros_like(x, dtype=torch.bool)
        if self.lower is not None:
            at |= (x <= self.lower) & (gradient > 0)
        if self.upper is not None:
            at |= (x >= self.upper) & (gradient < 0)
        return at


@dataclass
class State:
    """Where each row stands: `x` its last finite iterate, `residual` the norm there, `status` None while it runs."""

    x: Float[Tensor, "b n"]
    residual: Float[Tensor, "b"]
    status: list[Status | None]
    steps: Int[Tensor, "b"]
    passes: Int[Tensor, "b"]

    @property
    def running(self) -> Bool[Tensor, "b"]:
        """Which rows have not ended."""
        return torch.tensor([status is None for status in self.status], device=self.x.device)

    def end(self, rows: Bool[Tensor, "b"], kind: str, sentence: Callable[[int], str]) -> None:
        """End those of `rows` that still run, each with its sentence."""
        for row in rows.nonzero().flatten().tolist():
            if self.status[row] is None:
                self.status[row] = Status(kind, sentence(row))  # type: ignore[arg-type]


S = TypeVar("S", bound=State)


@runtime_checkable
class Method(Protocol[S]):
    """One way to solve: it makes a state, advances it, and settles it once no more steps are to come."""

    def init(self, problem: Problem, x: Float[Tensor, "b n"]) -> S: ...
    def step(self, problem: Problem, state: S) -> None: ...
    def settle(self, problem: Problem, state: S) -> None: ...


def drive(method: Method[S], problem: Problem, x: Float[Tensor, "b n"], steps: int) -> Solution:
    """Step until every row has ended or `steps` are spent; rows that run on then are `stopped`."""
    state = method.init(problem, x)
    for _ in range(steps):
        if not bool(state.running.any()):
            break
        method.step(problem, state)
    method.settle(problem, state)
    state.end(state.running, "stopped", lambda row: f"residual {float(state.residual[row]):.3g} after {steps} steps")
    ended = tuple(status for status in state.status if status is not None)
    return Solution(problem.unpack(state.x), state.residual, ended, state.steps, state.passes)


def start(problem: Problem, x: Float[Tensor, "b n"]) -> State:
    """Return the state before the first step. Rows that are not finite have failed; they rest at zero meanwhile."""
    finite = torch.isfinite(x).all(1)
    x = problem.project(torch.where(finite[:, None], x, 0.0))
    zeros = torch.zeros(len(x), dtype=torch.long, device=x.device)
    state = State(x, x.new_full((len(x),), math.inf), [None] * len(x), zeros.clone(), zeros.clone())
    state.end(~finite, "failed", lambda row: "the start is not finite")
    return state


def measured(problem: Problem, x: Float[Tensor, "b n"], tolerance: float) -> tuple[State, Float[Tensor, "b m"]]:
    """Return the state before the first step with its residual's norm judged, and the residual; it cost a pass."""
    state = start(problem, x)
    with torch.no_grad():
        off = problem.residual(state.x)
    norm = off.norm(dim=1)
    state.passes += state.running
    state.end(~torch.isfinite(norm), "failed", lambda row: "the residual is not finite at the start")
    state.residual = torch.where(torch.isfinite(norm), norm, math.inf)
    arrived(state, tolerance)
    return state, off


def arrived(state: State, tolerance: float) -> None:
    """End the rows whose residual is at most `tolerance`: they have converged."""
    near = state.residual <= tolerance
    state.end(near, "converged", lambda row: f"residual {float(state.residual[row]):.3g}")


def _flat_bound(bound: Bound, parts: tuple[Tensor, ...], fill: float) -> Tensor | None:
    if bound is None:
        return None
    each = bound if isinstance(bound, tuple) else (bound,) * len(parts)
    rows = [
        torch.as_tensor(fill if b is None else b, dtype=part.dtype, device=part.device).expand(part.shape).flatten(1)
        for b, part in zip(each, parts, strict=True)
    ]
    return torch.cat(rows, 1)
