"""Networks that differ in one factor each: how they halve the resolution, activation, first weights, skip.

A victim's name is `module/factor_networks:POOLING-ACTIVATION-WEIGHTS-SKIP`, of a network in `DESIGNS`; `@random:SEED`
draws its weights, `@FILE` loads trained ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seepage.victims.cifar import CLASSES, Shortcut

WIDTHS = (16, 16, 32, 32)
HALVED = 2
"""The block that doubles the channels and, with any pooling but `none`, halves the resolution."""

ACTIVATIONS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {
        "relu": lambda width: nn.ReLU(),
        "leaky_relu": lambda width: nn.LeakyReLU(0.1),
        "prelu": nn.PReLU,
        "gelu": lambda width: nn.GELU(),
        "silu": lambda width: nn.SiLU(),
        "tanh": lambda width: nn.Tanh(),
    }
)
WEIGHTS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "kaiming": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
        "xavier": nn.init.xavier_normal_,
        "orthogonal": nn.init.orthogonal_,
        "normal": partial(nn.init.normal_, std=0.01),
    }
)
POOLING: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "none": nn.Identity,
        "stride": nn.Identity,
        "average": lambda: nn.AvgPool2d(2),
        "max": lambda: nn.MaxPool2d(2),
    }
)


@dataclass(frozen=True)
class Design:
    """One network: each field is a factor, and the defaults are what the others are compared with."""

    pooling: str = "stride"
    activation: str = "relu"
    weights: str = "kaiming"
    skip: float = 1.0

    @property
    def name(self) -> str:
        """What the victim's function is called."""
        return f"{self.pooling}-{self.activation}-{self.weights}-{self.skip:g}"


class Stem(nn.Module):
    """Pictures in [0, 1], shifted and scaled to about unit size, through one convolution."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        self.act = ACTIVATIONS[design.activation](WIDTHS[0])

    def forward(self, images: Tensor) -> Tensor:
        scaled = (images - 0.45) / 0.25
        activated: Tensor = self.act(self.norm(self.conv(scaled)))
        return activated


class Block(nn.Module):
    """`act(skip * S(x) + F(x))` with two convolutions in F; a skip of 0 is a plain network's block of equal size.

    S pads new channels with zeros and, with `stride`, takes every second pixel; other pooling comes before both.
    """

    def __init__(self, design: Design, inputs: int, outputs: int, halves: bool) -> None:
        super().__init__()
        stride = 2 if halves and design.pooling == "stride" else 1
        self.pool = POOLING[design.pooling]() if halves else nn.Identity()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.act1 = ACTIVATIONS[design.activation](outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = Shortcut(inputs, outputs, stride)
        self.act2 = ACTIVATIONS[design.activation](outputs)
        self.scale = design.skip

    def forward(self, features: Tensor) -> Tensor:
        pooled = self.pool(features)
        inner = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(pooled)))))
        if self.scale:
            inner = self.scale * self.shortcut(pooled) + inner
        activated: Tensor = self.act2(inner)
        return activated


class FactorNetwork(nn.Module):
    """A stem and four blocks, nine convolutions in all, then the mean over pixels and ten scores.

    With the statistics that batch normalisation starts with, random weights are not normalised at all.
    """

    image_shape = (3, 32, 32)
    classes = CLASSES
    num_classes = len(CLASSES)

    def __init__(self, design: Design) -> None:
        super().__init__()
        inputs = (WIDTHS[0], *WIDTHS)
        blocks = [Block(design, *pair, place == HALVED) for place, pair in enumerate(zip(inputs, WIDTHS))]
        self.stages = nn.Sequential(Stem(design), *blocks)
        self.head = nn.Linear(WIDTHS[-1], len(CLASSES))
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    WEIGHTS[design.weights](module.weight)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(F.adaptive_avg_pool2d(self.stages(images), 1).flatten(1))
        return scores


BASE = Design()
FACTORS: Mapping[str, tuple[Design, ...]] = MappingProxyType(
    {
        "skip": tuple(replace(BASE, skip=skip) for skip in (0.0, 0.25, 0.5, 1.0)),
        "activation": tuple(replace(BASE, activation=name) for name in ACTIVATIONS),
        "pooling": tuple(replace(BASE, pooling=name) for name in ("none", "stride", "average", "max")),
        "weights": tuple(replace(BASE, weights=name) for name in WEIGHTS),
    }
)
"""What is compared with what: the networks of a factor differ in it alone."""
DESIGNS: Mapping[str, Design] = MappingProxyType({one.name: one for group in FACTORS.values() for one in group})


def __getattr__(name: str) -> Callable[[], FactorNetwork]:
    """Return the function that builds the network of this name."""
    if name not in DESIGNS:
        raise AttributeError(name)
    return partial(FactorNetwork, DESIGNS[name])
