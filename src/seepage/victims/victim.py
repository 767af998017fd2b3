"""A victim: a network, the preprocessing it was made for, and what is known of its blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from torch import Tensor, nn

from ..types import SeepageError


class UnknownVictimError(SeepageError):
    """No victim goes by this name; the message names the nearest."""


class WeightsError(SeepageError):
    """Weights that cannot be had, do not fit, or hold NaN; the message says which and what to type instead."""


@dataclass(frozen=True)
class Victim:
    """A network under audit. `model(normalise(images))` is what it computes, a tensor, from RGB in [0, 1].

    `name` is the full normal SOURCE/NAME@WEIGHTS, `model` the network in eval mode without gradients on its weights,
    `image_shape` its input (3, h, w). `picture` resizes and crops a picture as the victim does, to "3 h w" in [0, 1];
    `preprocessing` says the same in words. `boundaries` are the ends of its blocks in the order they run and `defaults`
    about five of them, None where the family is not known; `classes` names its outputs where they are known; `scores`
    says that the outputs are known to be scores of classes. Where a trained defense is part of it, `undefended` is the
    network without, whose answers are those to keep, and `seen` are the beginnings of the SHA-256 of the pictures that
    the defense was trained on.
    """

    name: str
    model: nn.Module
    normalise: nn.Module
    image_shape: tuple[int, int, int]
    picture: Callable[[Image.Image], Tensor]
    preprocessing: str
    weights_sha256: str
    boundaries: tuple[str, ...] | None = None
    defaults: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    scores: bool = False
    undefended: nn.Module | None = None
    seen: tuple[str, ...] = ()
