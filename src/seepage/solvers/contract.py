"""What a solver is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from ..types import Status


@dataclass(frozen=True)
class Solution:
    """Where a solver stopped: `x` a tensor or tuple of them, the residual's norm a sample, status, steps, passes."""

    x: Tensor | tuple[Tensor, ...]
    residual: Float[Tensor, "b"]
    status: tuple[Status, ...]
    steps: Int[Tensor, "b"]
    passes: Int[Tensor, "b"]


@runtime_checkable
class Solver(Protocol):
    """Minimise |residual_fn(x, z)|^2 over x for each sample of a batch apart."""

    def solve(
        self,
        residual_fn: Callable[..., Tensor],
        x0: Tensor | tuple[Tensor, ...],
        z: Tensor | tuple[Tensor, ...],
        *,
        penalty: Callable[..., Tensor] | None = None,
        lower: float | Tensor | None = None,
        upper: float | Tensor | None = None,
    ) -> Solution: ...
