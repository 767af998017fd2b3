"""A victim: a network, the preprocessing it was made for, and what is known of its blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
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
    says that the outputs are known to be scores of classes.
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


def state_sha256(model: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of a model's state, the same on every machine."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
