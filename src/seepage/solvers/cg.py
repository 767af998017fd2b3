"""Conjugate gradients, every row of a batch its own system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Inverted:
    """What CG found: `x`, the residual's norm relative to the right side's, and the products spent on each row."""

    x: Float[Tensor, "b n"]
    residual: Float[Tensor, "b"]
    steps: Int[Tensor, "b"]


@torch.no_grad()
def cg(
    operator: Operator,
    right: Float[Tensor, "b n"],
    *,
    steps: int | Int[Tensor, "b"],
    tolerance: float | Float[Tensor, "b"] = 1e-6,
    preconditioner: Operator | None = None,
    damping: Float[Tensor, "b 1"] | None = None,
) -> Inverted:
    """Solve `operator(x) + damping * M^-1 x = right` row by row from zero (Hestenes & Stiefel 1952).

    `operator` is linear, symmetric and positive and maps "b n" to "b n" without mixing rows; so is M, the
    `preconditioner`, which approximates its inverse (without one it is the identity). M^-1 is never needed: what it
    makes of each direction is known by the recurrence that made the direction. `steps` is a limit for all rows or one a
    row. A row rests once its residual is at most `tolerance` of the right side, where it meets no positive curvature,
    or where something is not finite: it then keeps the last point that was sound.
    """
    x, r = torch.zeros_like(right), right.clone()
    scale = right.norm(dim=1)
    tolerance = torch.as_tensor(tolerance, dtype=right.dtype, device=right.device)
    y = r if preconditioner is None else preconditioner(r)
    direction, dual, fit = y.clone(), r.clone(), (r * y).sum(1)
    spent = torch.zeros(len(right), dtype=torch.long, device=right.device)
    run = torch.isfinite(fit) & (scale > tolerance * scale)
    limit = torch.as_tensor(steps, device=right.device).expand(len(right))
    while bool((run := run & (spent < limit)).any()):
        image = operator(direction)
        if damping is not None:
            image = image + damping * dual
        spent += run
        curvature = (direction * image).sum(1)
        run = run & torch.isfinite(curvature) & (curvature > 0)
        length = torch.where(run, fit / torch.where(run, curvature, 1.0), 0.0)[:, None]
        # A row at rest may hold what is not finite: it must not enter even with length zero.
        x = torch.where(run[:, None], x + length * direction, x)
        r = torch.where(run[:, None], r - length * image, r)
        y = r if preconditioner is None else preconditioner(r)
        fresh = (r * y).sum(1)
        run = run & torch.isfinite(fresh) & (fresh > 0) & (r.norm(dim=1) > tolerance * scale)
        turn = (fresh / fit)[:, None]
        direction = torch.where(run[:, None], y + turn * direction, direction)
        dual = torch.where(run[:, None], r + turn * dual, dual)
        fit = torch.where(run, fresh, fit)
    return Inverted(x, r.norm(dim=1) / scale.clamp_min(torch.finfo(right.dtype).tiny), spent)
