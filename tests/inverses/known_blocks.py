"""Blocks with weights drawn from a seed, inputs to know, and how far a found one is from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seepage.solvers import Solution
from seepage.types import Segment


def segment(module: nn.Module, in_shape: tuple[int, ...], kind: str | None = None) -> Segment:
    module = module.eval().requires_grad_(False)
    with torch.no_grad():
        out_shape = tuple(module(torch.zeros(1, *in_shape)).shape[1:])
    return Segment("block", kind, module, in_shape, out_shape)


def seeded(module: nn.Module, seed: int = 0, gain: float = 1.0, bias: float = 0.0) -> nn.Module:
    """The module with weights, and statistics of its norms, drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.weight.data = (
                gain * torch.randn(part.weight.shape, generator=generator) / part.weight[0].numel() ** 0.5
            )
            if part.bias is not None:
                part.bias.data = 0.2 * torch.randn(part.bias.shape, generator=generator)
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = 0.3 * torch.randn(part.running_mean.shape, generator=generator)
            part.running_var = 0.5 + torch.rand(part.running_var.shape, generator=generator)
            part.bias.data = bias + 0.5 * torch.randn(part.bias.shape, generator=generator)
    return module


def noise(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(found: Solution | Tensor, expected: Tensor) -> Tensor:
    x = found.x if isinstance(found, Solution) else found
    assert isinstance(x, Tensor)
    return (x - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
