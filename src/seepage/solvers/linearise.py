"""A residual's first-order model at a point: products with its Jacobian, which is never formed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .frozen import Frozen
from .solve import Problem


class Linearised:
    """Residual, penalty and the slope of half their sum at `x`, and products with their second-order model.

    J v is the derivative of J^T w by w along v, so it runs twice backward: under `Frozen` that costs a forward run,
    where forward mode costs five. One `curvature` costs about one forward and backward run.
    """

    def __init__(self, problem: Problem, x: Float[Tensor, "b n"], residual: Float[Tensor, "b m"] | None = None) -> None:
        """Take the model at `x`. `residual` is what it is there, where it is known without `Frozen`'s rounding."""
        self._x = x.detach().requires_grad_()
        # Fused attention has no second backward.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), Frozen():
            self._residual = problem.residual(self._x)
            self._penalty = problem.penalise(self._x)
            self._slope: Tensor | None = None
            if self._penalty.requires_grad:
                (self._slope,) = torch.autograd.grad(0.5 * self._penalty.sum(), self._x, create_graph=True)
        self.residual = self._residual.detach() if residual is None else residual
        self.penalty = self._penalty.detach()
        self.gradient = self.transposed(self.residual)
        if self._slope is not None:
            self.gradient = self.gradient + self._slope.detach()
        self._twice: tuple[Tensor, Tensor] | None = None

    def forward(self, v: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """Return J v."""
        if self._twice is None:
            seed = torch.zeros_like(self._residual, requires_grad=True)
            (back,) = torch.autograd.grad(self._residual, self._x, seed, create_graph=True)
            self._twice = seed, back
        seed, back = self._twice
        (image,) = torch.autograd.grad(back, seed, v, retain_graph=True)
        return image

    def transposed(self, w: Float[Tensor, "b m"]) -> Float[Tensor, "b n"]:
        """Return J^T w."""
        (image,) = torch.autograd.grad(self._residual, self._x, w, retain_graph=True)
        return image

    def curvature(self, v: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return (J^T J + P / 2) v, P the penalty's second derivative."""
        image = self.transposed(self.forward(v))
        if self._slope is None or not self._slope.requires_grad:
            return image
        (bend,) = torch.autograd.grad(self._slope, self._x, v, retain_graph=True)
        return image + bend
