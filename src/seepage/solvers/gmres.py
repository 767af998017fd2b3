"""GMRES, every row of a batch its own system."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .cg import Inverted, Operator

_LOOK = 5


@torch.no_grad()
def gmres(
    operator: Operator, right: Float[Tensor, "b n"], *, steps: int, tolerance: float | Float[Tensor, "b"] = 1e-3
) -> Inverted:
    """Solve `operator(x) = right` row by row from zero (Saad & Schultz 1986), without restart.

    `operator` is linear and maps "b n" to "b n" without mixing rows; it need be neither symmetric nor positive. All of
    at most `steps` + 1 directions are kept. A row's residual never grows; the row rests once it is at most `tolerance`
    of the right side, looked at every few steps. Rows of zeros are solved by zeros.
    """
    b, n = right.shape
    steps = min(steps, n)
    limit = torch.as_tensor(tolerance, dtype=torch.float64, device=right.device).expand(b)
    tiny = torch.finfo(right.dtype).tiny
    scale = right.norm(dim=1)
    basis = right.new_zeros(b, steps + 1, n)
    basis[:, 0] = right / scale.clamp_min(tiny)[:, None]
    hessenberg = torch.zeros(b, steps + 1, steps, dtype=torch.float64, device=right.device)
    weights, left = hessenberg.new_zeros(b, steps), hessenberg.new_ones(b)
    count = torch.zeros(b, dtype=torch.long, device=right.device)
    run = scale > 0
    for spent in range(1, steps + 1):
        if not bool(run.any()):
            break
        image = operator(basis[:, spent - 1])
        known = basis[:, :spent]
        # Twice is enough: once leaves what float32 rounded.
        for _ in range(2):
            along = (known @ image[:, :, None])[:, :, 0]
            image = image - (along[:, None] @ known)[:, 0]
            hessenberg[:, :spent, spent - 1] += along
        size = image.norm(dim=1)
        hessenberg[:, spent, spent - 1] = size
        basis[:, spent] = torch.where(size[:, None] > tiny, image / size.clamp_min(tiny)[:, None], 0.0)
        count += run
        if spent % _LOOK == 0 or spent == steps:
            found, missed = _least(hessenberg[:, : spent + 1, :spent])
            weights[:, :spent] = torch.where(run[:, None], found, weights[:, :spent])
            left = torch.where(run, missed, left)
            run = run & (left > limit)
    x = scale[:, None] * (weights.to(right)[:, None] @ basis[:, :steps])[:, 0]
    sound = torch.isfinite(x).all(1) & torch.isfinite(left)
    residual = torch.where(scale > 0, left.to(right), 0.0)
    return Inverted(torch.where(sound[:, None], x, 0.0), torch.where(sound, residual, math.inf), count)


def _least(hessenberg: Float[Tensor, "b rows k"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b"]]:
    """Return the weights that leave least of the first unit vector, and what they leave."""
    q, r = torch.linalg.qr(torch.nan_to_num(hessenberg, posinf=0.0, neginf=0.0))
    diagonal = r.diagonal(dim1=1, dim2=2)
    # A row that has nothing left adds columns of zeros, which take no part.
    floor = diagonal.abs().amax(1, keepdim=True) * torch.finfo(r.dtype).eps
    idle = diagonal.abs() <= floor
    r = r + torch.diag_embed(torch.where(idle, 1.0, 0.0))
    right = torch.where(idle, 0.0, q[:, 0])
    weights = torch.linalg.solve_triangular(r, right[:, :, None], upper=True)[:, :, 0]
    missed = (hessenberg @ weights[:, :, None])[:, :, 0]
    missed[:, 0] -= 1
    return weights, missed.norm(dim=1)
