"""What a source of victims is: it turns a name and a choice of weights into a network with its preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from torch import nn

from .preprocess import Preprocessing


@dataclass(frozen=True)
class Random:
    """`@random[:SEED]`: initial weights, drawn under a seed."""

    seed: int = 0

    def __str__(self) -> str:
        return f"random:{self.seed}"


@dataclass(frozen=True)
class File:
    """`@file.safetensors`: a state dict on disk."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Tag:
    """`@NAME`: weights that the library knows by this name."""

    name: str

    def __str__(self) -> str:
        return self.name


Weights = Random | File | Tag | None


@dataclass(frozen=True)
class Request:
    """A victim as it was asked for. No weights: the source's own; no size: the network's own."""

    name: str
    weights: Weights = None
    size: int | None = None


@dataclass(frozen=True)
class Network:
    """A network as a source builds it, weights loaded. `name` is NAME[@WEIGHTS] in full, without the source.

    `scores` says that its outputs are scores of classes, named or not. Where a trained defense is part of it,
    `undefended` is the network without, and `seen` are the beginnings of the SHA-256 of the pictures it was trained on.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    boundaries: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    defaults: tuple[str, ...] | None = None
    scores: bool = False
    undefended: nn.Module | None = None
    seen: tuple[str, ...] = ()


class Source(Protocol):
    """A frozen dataclass without fields, registered as `@register("victim", "SOURCE")`."""

    about: ClassVar[str]

    def names(self) -> tuple[str, ...]:
        """Return the names it knows by heart; there may be others (a path, a hub id)."""
        ...

    def build(self, request: Request) -> Network:
        """Return the network. Called with a seeded generator of its own, so that initial weights are repeatable.

        Raises:
            UnknownVictimError: it has no such name.
            WeightsError: the weights cannot be had or do not fit.
        """
        ...


@runtime_checkable
class Exemplary(Protocol):
    """A source that also says what to type."""

    def examples(self) -> dict[str, str]:
        """Return whole victim names, as one types them, each with a sentence."""
        ...
