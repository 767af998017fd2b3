"""Two solvers in turn: one in the unknowns' own precision, one in float64 where the first ended at its rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..types import Status
from .contract import Solution, Solver
from .levenberg_marquardt import LevenbergMarquardt
from .solve import Bound, Variable


@dataclass(frozen=True)
class Polish:
    """Solve by `first`, then take rows that stopped at a residual of at most `floor` further by `second` in float64.

    An answer's error is the residual times the condition: a residual at float32's rounding leaves errors of 1e-3 where
    the condition is 1e4. Rows that have converged are left, and so are those whose residual is above the floor: they
    ended elsewhere, and more digits would not help.
    `residual_fn` and the penalty must compute in the type of what they are given. What is returned has the type of the
    start; a row that `second` does not improve stays as `first` left it.
    """

    first: Solver
    second: Solver = field(default_factory=lambda: LevenbergMarquardt(4, 30, inner_tolerance=1e-6, damping=1e-8))
    floor: float = 1e-3

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
        """Return where the second solver ends, the first where that is better. Shapes as in `Solver`."""
        found = self.first.solve(residual_fn, x0, z, penalty=penalty, lower=lower, upper=upper)  # type: ignore[arg-type]
        near = torch.isfinite(found.residual) & (found.residual <= self.floor)
        near &= torch.tensor([status.kind == "stopped" for status in found.status], device=near.device)
        rows = near.nonzero().flatten()
        if not len(rows):
            return found
        start, given = _rows(found.x, rows), _rows(z, rows)
        finer = self.second.solve(
            residual_fn,
            _double(start),
            _double(given),
            penalty=penalty,
            lower=lower,  # type: ignore[arg-type]
            upper=upper,  # type: ignore[arg-type]
        )
        return _merged(found, finer, rows)


def _merged(first: Solution, second: Solution, rows: Tensor) -> Solution:
    better = second.residual < first.residual[rows].double()
    residual, steps, passes = first.residual.clone(), first.steps.clone(), first.passes.clone()
    residual[rows] = torch.where(better, second.residual.to(residual), residual[rows])
    steps[rows] += second.steps
    passes[rows] += second.passes
    status: list[Status] = list(first.status)
    for row, one, kept in zip(rows.tolist(), second.status, better.tolist(), strict=True):
        if kept:
            status[row] = one
    x = tuple(_put(old, new, rows, better) for old, new in zip(_parts(first.x), _parts(second.x), strict=True))
    whole = x[0] if isinstance(first.x, Tensor) else x
    return replace(first, x=whole, residual=residual, status=tuple(status), steps=steps, passes=passes)


def _put(old: Tensor, new: Tensor, rows: Tensor, better: Tensor) -> Tensor:
    changed = old.clone()
    kept = better.view(-1, *[1] * (old.ndim - 1))
    changed[rows] = torch.where(kept, new.to(old), old[rows])
    return changed


def _parts(x: Variable) -> tuple[Tensor, ...]:
    return (x,) if isinstance(x, Tensor) else x


def _rows(x: Variable, rows: Tensor) -> Variable:
    return x[rows] if isinstance(x, Tensor) else tuple(part[rows] for part in x)


def _double(x: Variable) -> Variable:
    return x.double() if isinstance(x, Tensor) else tuple(part.double() for part in x)
