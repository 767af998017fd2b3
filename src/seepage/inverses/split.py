"""The paper's own problem: the block's activations split into variables of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import register
from ..solvers import Adam
from ..types import Segment, Solution
from .rule import Target, misfit

_CEILINGS: dict[type[nn.Module], float | None] = {nn.ReLU: None, nn.ReLU6: 6.0}
# What a solve costs beside its steps: finding the activations, judging the last iterate twice.
_OVERHEAD = 3


@register("inverse", "split")
@dataclass(frozen=True)
class Split:
    """Minimise |y - block(x; p)|^2 + weight (sum |a - p + n|^2 + sum <p, n>^2) over x and p, n >= 0 by Adam.

    a is what a ReLU of the block is given, p what it is taken to give. With one ReLU between W1 and W2 this is
    |y - S(x) - W2 p|^2 under W1 x = p - n and <p, n> = 0, both as penalties (Arif et al. 2025; weight and rate are
    those of the authors' scripts). Every ReLU has its own p and n; a ReLU6 has q >= 0 too, with a = p - n + q,
    p <= 6 and <6 - p, q> = 0. All start where x's start puts them. A block without ReLU modules is plain least squares.
    """

    weight: float = 100.0
    lr: float = 0.01

    def invert(self, segment: Segment, target: Target, passes: int) -> Solution:
        """Return the block's input; the target's prior is not used. Shapes as in `Target`."""
        seen = _activations_of(segment.module, target.start)
        calls = [_Split(call, ceiling) for call, ceiling in seen.ceilings.items()]
        parts, low, high = [target.start], [target.lower], [target.upper]
        for split in calls:
            variables = split.start(seen.given[split.call].detach())
            parts += variables
            low += [0.0] * len(variables)
            high += [split.ceiling, None, None][: len(variables)]

        def residual(x: tuple[Tensor, ...], y: Tensor) -> Tensor:
            groups = _grouped(x[1:], calls)
            run = _Activations({split.call: group[0] for split, group in groups})
            rows = [(run.through(segment.module, x[0]) - y).flatten(1)]
            for split, group in groups:
                rows += [self.weight**0.5 * row for row in split.violations(run.given[split.call], group)]
            return torch.cat(rows, 1)

        adam = Adam(max(passes - _OVERHEAD, 0), self.lr, "constant")
        found = adam.solve(residual, tuple(parts), target.features, lower=tuple(low), upper=tuple(high))
        x = found.x[0]
        with torch.no_grad():
            norm = misfit(segment)(x, (target.features, target.size)).norm(dim=1)
        return Solution(x, norm, found.status, found.steps, found.passes + _OVERHEAD - 1)


@dataclass(frozen=True)
class _Split:
    """One activation, by its place among the block's calls, and its ceiling."""

    call: int
    ceiling: float | None

    def start(self, a: Tensor) -> list[Tensor]:
        """Return p and n, for a ReLU6 q too, that meet all constraints."""
        above = [] if self.ceiling is None else [(a - self.ceiling).clamp_min(0)]
        return [a.clamp(0, self.ceiling), (-a).clamp_min(0), *above]

    def violations(self, a: Tensor, group: tuple[Tensor, ...]) -> list[Tensor]:
        """Return by how much the constraints are missed, "b k" each."""
        p, n, *above = group
        missed = [(a - p + n - sum(above)).flatten(1), (p * n).flatten(1).sum(1, keepdim=True)]
        if self.ceiling is not None:
            missed += [((self.ceiling - p) * above[0]).flatten(1).sum(1, keepdim=True)]
        return missed


@dataclass
class _Activations:
    """Runs a block, keeps what its ReLUs are given, and puts `values` in the place of what they give."""

    values: Mapping[int, Tensor] = field(default_factory=dict)
    given: list[Tensor] = field(default_factory=list)
    ceilings: dict[int, float | None] = field(default_factory=dict)

    def through(self, block: nn.Module, x: Tensor) -> Tensor:
        """Return what the block gives."""
        handles = []
        for module in block.modules():
            if type(module) in _CEILINGS:
                handles += [module.register_forward_pre_hook(self._enter), module.register_forward_hook(self._leave)]
        try:
            out: Tensor = block(x)
        finally:
            for handle in handles:
                handle.remove()
        return out

    def _enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if args[0].requires_grad:
            self.ceilings[len(self.given)] = _CEILINGS[type(module)]
        self.given.append(args[0])
        # An activation in place must not overwrite what it was given.
        return (args[0].clone(), *args[1:])

    def _leave(self, module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        return self.values.get(len(self.given) - 1)


def _activations_of(block: nn.Module, x: Tensor) -> _Activations:
    """Return the block's run at `x`; `ceilings` names the calls that depend on it."""
    run = _Activations()
    with torch.enable_grad():
        run.through(block, x.detach().requires_grad_())
    return run


def _grouped(variables: tuple[Tensor, ...], calls: list[_Split]) -> list[tuple[_Split, tuple[Tensor, ...]]]:
    groups, first = [], 0
    for split in calls:
        size = 2 if split.ceiling is None else 3
        groups.append((split, variables[first : first + size]))
        first += size
    return groups
