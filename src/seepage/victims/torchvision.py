"""Victims from torchvision's classification models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torchvision import models

from ..registry import register, suggest
from ..types import SeepageError
from .families import boundaries
from .hub import torch_hub_file
from .preprocess import Preprocessing, shorter_edge
from .source import File, Network, Request, Tag
from .victim import UnknownVictimError, WeightsError
from .weights import fit, read_state

# These two warn unless they are told whether to initialise.
_INITIALISED = ("googlenet", "inception_v3")


@register("victim", "torchvision")
@dataclass(frozen=True)
class Torchvision:
    """torchvision's models, with the preprocessing that comes with their weights."""

    about: ClassVar[str] = "torchvision's classification models; weights by their names, e.g. @IMAGENET1K_V2"

    def names(self) -> tuple[str, ...]:
        """Return torchvision's own list."""
        return tuple(models.list_models(module=models))

    def examples(self) -> dict[str, str]:
        """Return two forms of a name."""
        return {
            "torchvision/resnet50@IMAGENET1K_V2": "ResNet-50 with the weights of that name; without one, the DEFAULT",
            "torchvision/vit_b_16@random": "ViT-B/16 with initial weights, no download",
        }

    def build(self, request: Request) -> Network:
        """Build one; without weights named, torchvision's DEFAULT ones."""
        if request.name not in self.names():
            near = suggest(request.name, self.names())
            raise UnknownVictimError(f"torchvision has no classification model {request.name!r}{near}")
        known = models.get_model_weights(request.name)
        chosen, arguments = known.DEFAULT, _arguments(request, known.DEFAULT)
        if isinstance(request.weights, Tag | None):
            chosen = _entry(request, known)
            model = _pretrained(request, chosen)
        else:
            model = models.get_model(request.name, weights=None, **arguments)
            if isinstance(request.weights, File):
                fit(model, read_state(request.weights.path), str(request.weights))
        named = isinstance(request.weights, Tag | None)
        return Network(
            name=f"{request.name}@{chosen.name if named else request.weights}",
            model=model,
            preprocessing=_preprocessing(chosen, request.size),
            boundaries=boundaries(model),
            classes=tuple(chosen.meta["categories"]) if named else None,
            scores=True,
        )


def _entry(request: Request, known: Any) -> Any:
    if request.weights is None or str(request.weights) == "DEFAULT":
        return known.DEFAULT
    entries = {entry.name: entry for entry in known}
    if str(request.weights) not in entries:
        near = suggest(str(request.weights), [*entries, "random", "file.safetensors"])
        raise WeightsError(f"torchvision/{request.name} has no weights {str(request.weights)!r}{near}")
    return entries[str(request.weights)]


def _pretrained(request: Request, entry: Any) -> nn.Module:
    sized = "image_size" in _arguments(request, entry)
    if sized and request.size not in (None, entry.meta["min_size"][0]):
        raise SeepageError(
            f"torchvision/{request.name}@{entry.name} knows positions for {entry.meta['min_size'][0]} pixels alone, "
            f"got size {request.size}; @random and @file take any"
        )
    cached = torch_hub_file(entry.url, f"torchvision/{request.name}@random, or @path/file.safetensors")
    # torchvision unpickles its own cache without asking; a file there that holds more than tensors is refused first.
    read_state(cached)
    model: nn.Module = models.get_model(request.name, weights=entry, progress=False)
    return model


def _arguments(request: Request, entry: Any) -> dict[str, Any]:
    """Return what the constructor needs to know of the input's size, and a word to keep it from warning."""
    arguments: dict[str, Any] = {"init_weights": True} if request.name in _INITIALISED else {}
    if request.name.startswith("vit_"):
        arguments["image_size"] = request.size or entry.transforms().crop_size[0]
    if request.name.startswith("maxvit_"):
        size = request.size or entry.transforms().crop_size[0]
        arguments["input_size"] = (size, size)
    return arguments


def _preprocessing(entry: Any, size: int | None) -> Preprocessing:
    preset = entry.transforms()
    resize, crop = preset.resize_size[0], preset.crop_size[0]
    if size is not None:
        resize, crop = round(resize * size / crop), size
    return shorter_edge(resize, crop, preset.interpolation, tuple(preset.mean), tuple(preset.std))
