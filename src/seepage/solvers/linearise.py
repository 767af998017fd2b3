"""A residual's first-order model at a point: products with its Jacobian, which is never formed."""

from __future__ import annotations

import importlib
import warnings

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .solve import Problem


class Linearised:
    """Residual, penalty and the slope of half their sum at `x`, and products with their second-order model.

    Jacobian-vector products run forward mode where every operation has it, else twice backward. One `curvature` costs
    about one forward and backward run.
    """

    def __init__(self, problem: Problem, x: Float[Tensor, "b n"]) -> None:
        self._problem = problem
        self._x = x.detach().requires_grad_()
        # Fused attention has neither forward mode nor a second backward.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._residual = problem.residual(self._x)
            self._penalty = problem.penalise(self._x)
            self._slope: Tensor | None = None
            if self._penalty.requires_grad:
                (self._slope,) = torch.autograd.grad(0.5 * self._penalty.sum(), self._x, create_graph=True)
        self.residual = self._residual.detach()
        self.penalty = self._penalty.detach()
        self.gradient = self.transposed(self.residual)
        if self._slope is not None:
            self.gradient = self.gradient + self._slope.detach()
        self._twice: tuple[Tensor, Tensor] | None = None

    def forward(self, v: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """Return J v."""
        if self._twice is None:
            try:
                _quiet_forward_mode()
                with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                    pushed: Tensor = torch.func.jvp(self._problem.residual, (self._x.detach(),), (v,))[1]
                return pushed
            except (NotImplementedError, RuntimeError):
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


def _quiet_forward_mode() -> None:
    """Import what forward mode imports on first use, without the warning that torch gives about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")
