"""A block's piecewise linear activations as variables: what each is given, in parts that are never negative."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

RELUS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6)
PIECEWISE: tuple[type[nn.Module], ...] = (*RELUS, nn.PReLU, nn.LeakyReLU)
_CEILINGS: dict[type[nn.Module], float] = {nn.ReLU6: 6.0}


@dataclass(frozen=True)
class SplitCall:
    """One call of an activation, by its place among the block's calls: a = p - n + q, given to it, gives p - slope n.

    p, n, q >= 0. Only an activation with a `ceiling` has q, and its p stays below. `slope` is that of negative inputs,
    zero for a ReLU, one number or one a channel.
    """

    call: int
    ceiling: float | None
    slope: Float[Tensor, "..."] | None

    @property
    def parts(self) -> int:
        """How many variables it has."""
        return 2 if self.ceiling is None else 3

    @property
    def upper(self) -> list[float | None]:
        """What the variables stay below; all are at least zero."""
        return [self.ceiling, None, None][: self.parts]

    def start(self, a: Float[Tensor, "b ..."]) -> list[Tensor]:
        """Return the variables that meet all constraints where `a` is given."""
        above = [] if self.ceiling is None else [(a - self.ceiling).clamp_min(0)]
        return [a.clamp(0, self.ceiling), (-a).clamp_min(0), *above]

    def gives(self, group: tuple[Tensor, ...]) -> Float[Tensor, "b ..."]:
        """Return what the activation gives by its variables."""
        p, n, *_ = group
        return p if self.slope is None else p - self.slope * n

    def missed(self, a: Float[Tensor, "b ..."], group: tuple[Tensor, ...]) -> Float[Tensor, "b k"]:
        """Return a - p + n - q, flat."""
        p, n, *above = group
        return (a - p + n - sum(above)).flatten(1)

    def pairs(self, group: tuple[Tensor, ...]) -> list[tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]]:
        """Return the pairs of which one must be zero in every place: p and n, ceiling - p and q."""
        p, n, *above = (part.flatten(1) for part in group)
        return [(p, n)] if self.ceiling is None else [(p, n), (self.ceiling - p, above[0])]


@dataclass
class Activations:
    """Runs a block, keeps what its activations of `types` are given, and puts `values` in the place of what they give.

    Any other activation stays what it is, and so does one that the block calls as a function.
    """

    types: Collection[type[nn.Module]]
    values: Mapping[int, Tensor] = field(default_factory=dict)
    given: list[Tensor] = field(default_factory=list)
    calls: list[SplitCall] = field(default_factory=list)

    def through(self, block: nn.Module, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return what the block gives."""
        handles = []
        for module in block.modules():
            if type(module) in self.types:
                handles += [module.register_forward_pre_hook(self._enter), module.register_forward_hook(self._leave)]
        try:
            out: Tensor = block(x)
        finally:
            for handle in handles:
                handle.remove()
        return out

    def _enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if args[0].requires_grad:
            slope = _slope(module, args[0])
            self.calls.append(SplitCall(len(self.given), _CEILINGS.get(type(module)), slope))
        self.given.append(args[0])
        # An activation in place must not overwrite what it was given.
        return (args[0].clone(), *args[1:])

    def _leave(self, module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        return self.values.get(len(self.given) - 1)


def activations(block: nn.Module, x: Float[Tensor, "b ..."], types: Collection[type[nn.Module]]) -> Activations:
    """Return the block's run at `x`; `calls` are those that depend on it."""
    run = Activations(types)
    with torch.enable_grad():
        run.through(block, x.detach().requires_grad_())
    return run


def grouped(variables: tuple[Tensor, ...], calls: list[SplitCall]) -> list[tuple[SplitCall, tuple[Tensor, ...]]]:
    """Return each call with its variables out of those of all."""
    groups, first = [], 0
    for split in calls:
        groups.append((split, variables[first : first + split.parts]))
        first += split.parts
    return groups


def _slope(module: nn.Module, a: Tensor) -> Tensor | None:
    if isinstance(module, nn.LeakyReLU):
        return torch.tensor(module.negative_slope, dtype=a.dtype, device=a.device)
    if not isinstance(module, nn.PReLU):
        return None
    weight = module.weight.detach()
    # Channels are the second axis, as PReLU itself has it.
    return weight.view(-1, *[1] * (a.ndim - 2)) if weight.numel() > 1 else weight
