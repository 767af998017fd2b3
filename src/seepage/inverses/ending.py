"""How a block ends: the activation whose output is the block's output, and a max-pooling behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_CEILINGS: dict[type[nn.Module], float | None] = {nn.ReLU: None, nn.ReLU6: 6.0}
# Outputs this near to a kink, relative to all, are taken for outputs at it.
_NEAR = 1e-3


@dataclass(frozen=True)
class Ending:
    """A block that gives pool(clamp(z, 0, ceiling)), the pooling being one of maxima, or nothing.

    `call` counts the calls of the block's activations; `pool` is None where nothing stands behind the activation.
    """

    block: nn.Module
    call: int
    ceiling: float | None
    pool: nn.MaxPool2d | None

    def before(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return z, what the last activation is given."""
        return _run(self.block, x)[1][self.call][1]

    def missed(
        self, z: Float[Tensor, "b ..."], y: Float[Tensor, "b ..."], roofs: Float[Tensor, "b ..."] | None
    ) -> Float[Tensor, "b m"]:
        """Return by how much z fails to explain what the block gave; `roofs` are those of y.

        An output strictly between the activation's kinks is an equation, z = y. At a kink it is an inequality: z <= 0
        where y = 0, z >= ceiling where y is that. Under a pooling the equation holds for the largest z of each window,
        and no z exceeds the smallest output among its windows.
        """
        if self.pool is None or roofs is None:
            return self._kinked(z, y).flatten(1)
        maxima = self._kinked(pooled(self.pool, z), y)
        return torch.cat([maxima.flatten(1), (z - roofs).clamp_min(0).flatten(1)], 1)

    def roofs(self, z: Float[Tensor, "b ..."], y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."] | None:
        """Return what each z cannot exceed, given what the block gave: None without a pooling."""
        if self.pool is None:
            return None
        found = roofs(self.pool, z, y)
        return found if self.ceiling is None else torch.where(found < self.ceiling, found, torch.inf)

    def _kinked(self, z: Tensor, y: Tensor) -> Tensor:
        # What a walk recovered is a rounding away from the kinks: an equation there would pull dead outputs to zero.
        near = _NEAR * y.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (y.ndim - 1))
        missed = torch.where(y > near, z - y, z.clamp_min(0) - y.clamp_min(0))
        if self.ceiling is None:
            return missed
        over = z.clamp_max(self.ceiling) - y.clamp_max(self.ceiling)
        return torch.where(y < self.ceiling - near, missed, over)


def ending(block: nn.Module, x: Float[Tensor, "b ..."]) -> Ending | None:
    """Return how a block ends, None where it does not end in a ReLU module, seen in a run at `x`."""
    with torch.no_grad():
        out, seen, pools = _run(block, x)
        for call, (module, _, gave) in reversed(list(enumerate(seen))):
            ceiling = _CEILINGS[type(module)]
            if _same(gave, out):
                return Ending(block, call, ceiling, None)
            for pool in pools:
                # An indices-giving pooling hands on more than maxima.
                if not pool.return_indices and _same(pooled(pool, gave), out):
                    return Ending(block, call, ceiling, pool)
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _run(block: nn.Module, x: Tensor) -> tuple[Tensor, list[tuple[nn.Module, Tensor, Tensor]], list[nn.MaxPool2d]]:
    """Return what a block gives, each call of an activation with what that was given and gave, and its poolings."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    pools: list[nn.MaxPool2d] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append((module, args[0], args[0]))
        # An activation in place must not overwrite what it was given.
        return (args[0].clone(), *args[1:])

    def leave(module: nn.Module, args: Any, out: Tensor) -> None:
        seen[-1] = (module, seen[-1][1], out)

    def note(module: nn.Module, args: Any, out: Any) -> None:
        assert isinstance(module, nn.MaxPool2d)
        pools.append(module)

    handles = []
    for part in block.modules():
        if type(part) in _CEILINGS:
            handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
        elif type(part) is nn.MaxPool2d:
            handles += [part.register_forward_hook(note)]
    try:
        # The block may change its input in place, and that is not its own.
        out: Tensor = block(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    return out, seen, pools


def pooled(pool: nn.MaxPool2d, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c r s"]:
    """Return the maxima of a pooling's windows, without its hooks."""
    maxima: Tensor = F.max_pool2d(z, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    return maxima


def roofs(pool: nn.MaxPool2d, z: Float[Tensor, "b c h w"], y: Float[Tensor, "b c r s"]) -> Float[Tensor, "b c h w"]:
    """Return for each z the smallest output among the windows that it lies in, infinity where it lies in none."""
    found = torch.full_like(z, torch.inf).flatten(2)
    kernel, stride, padding, dilation = (
        _pair(given) for given in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    rows, columns = z.shape[2:]
    down, right = y.shape[2:]
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            r = torch.arange(down, device=z.device) * stride[0] - padding[0] + i * dilation[0]
            c = torch.arange(right, device=z.device) * stride[1] - padding[1] + j * dilation[1]
            inside_r, inside_c = (r >= 0) & (r < rows), (c >= 0) & (c < columns)
            at = (r[inside_r, None] * columns + c[inside_c]).flatten()
            seen = y[:, :, inside_r][:, :, :, inside_c].flatten(2)
            # For one offset into the window no two windows meet in one place.
            found[:, :, at] = torch.minimum(found[:, :, at], seen)
    return found.view_as(z)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
