"""Multinomial logistic regression, its ridge chosen on examples that it was not fitted to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

_RIDGES = (10.0, 1.0, 0.1, 0.01, 0.001, 0.0001)
_UNHELD = 0.01
_TRIED = 1.25  # evaluations a step: a line search now and then tries twice


@dataclass(frozen=True)
class Regression:
    """Scores W x + b; `ridge` is the one they were fitted with."""

    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, "k"]
    ridge: float


@dataclass(frozen=True)
class LogisticRegression:
    """Minimise the mean of -log p(label | x) plus ridge/2 |W|^2 over W and b, by L-BFGS of at most `iterations` steps.

    A `ridge` of 0 means the one of six, from 10 down to 1e-4, that gives the lowest loss on held-out examples; each is
    fitted from where the last one ended, down to the first that does worse. Where there is nothing to choose on, 0.01.
    """

    ridge: float = 0.0
    iterations: int = 100

    def fit(
        self,
        x: Float[Tensor, "n d"],
        labels: Int[Tensor, "n"],
        classes: int,
        held: tuple[Float[Tensor, "m d"], Int[Tensor, "m"]] | None = None,
    ) -> Regression:
        """Return the scores of `classes` classes that fit `labels` best."""
        weight = torch.zeros(classes, x.shape[1], device=x.device, dtype=x.dtype, requires_grad=True)
        bias = torch.zeros(classes, device=x.device, dtype=x.dtype, requires_grad=True)
        best, least = None, math.inf
        for ridge in self._tried(held is not None):
            self._descend(weight, bias, x, labels, ridge)
            found = Regression(weight.detach().clone(), bias.detach().clone(), ridge)
            loss = 0.0 if held is None else float(cross_entropy(held[0] @ found.weight.T + found.bias, held[1]))
            if best is not None and not loss < least:
                break
            best, least = found, loss
        assert best is not None
        return best

    def evaluations(self, held: bool) -> float:
        """Return how often the loss and its gradient are asked for, at most."""
        return _TRIED * self.iterations * len(self._tried(held))

    def _tried(self, held: bool) -> tuple[float, ...]:
        if self.ridge > 0:
            return (self.ridge,)
        return _RIDGES if held else (_UNHELD,)

    def _descend(self, weight: Tensor, bias: Tensor, x: Tensor, labels: Tensor, ridge: float) -> None:
        solver = torch.optim.LBFGS(
            [weight, bias],
            max_iter=self.iterations,
            tolerance_grad=1e-6,
            tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            solver.zero_grad()
            with torch.enable_grad():
                loss = cross_entropy(x @ weight.T + bias, labels) + 0.5 * ridge * weight.square().sum()
                torch.autograd.backward(loss)
            return loss

        solver.step(closure)  # type: ignore[no-untyped-call]
