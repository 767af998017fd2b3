"""Victims from timm; the tag in a name (`resnet50.a1_in1k`) names the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from ..registry import register, suggest
from .families import boundaries
from .hub import hugging_face_file, torch_hub_file
from .preprocess import Preprocessing
from .source import File, Network, Random, Request, Tag
from .victim import UnknownVictimError, WeightsError
from .weights import fit, read_state
from .zoo import imagenet_classes

_FILES = ("model.safetensors", "pytorch_model.bin")


@register("victim", "timm")
@dataclass(frozen=True)
class Timm:
    """timm's models with their own data configuration."""

    about: ClassVar[str] = "timm's models; the tag in the name is the weights, e.g. resnet50.a1_in1k"

    def names(self) -> tuple[str, ...]:
        """Return timm's list of architectures."""
        import timm

        return tuple(timm.list_models())

    def examples(self) -> dict[str, str]:
        """Return two forms of a name."""
        return {
            "timm/resnet50.a1_in1k": "ResNet-50 with the weights of that tag; without one, timm's default",
            "timm/resnetv2_50@random": "a pre-activation ResNet-50 with initial weights, no download",
        }

    def build(self, request: Request) -> Network:
        """Build one; without weights named, those of the tag, else timm's default tag."""
        import timm

        name = _full_name(request)
        known = timm.get_pretrained_cfg(name)
        arguments: dict[str, Any] = {}
        if request.size is not None and known.fixed_input_size:
            arguments["img_size"] = request.size
        own = isinstance(request.weights, Tag | None)
        if own:
            arguments["pretrained_cfg_overlay"] = _overlay(name, known)
        model: nn.Module = timm.create_model(name, pretrained=own, **arguments)
        if isinstance(request.weights, File):
            fit(model, read_state(request.weights.path), str(request.weights))
        return Network(
            name=name if own else f"{name}@{request.weights}",
            model=model,
            preprocessing=_preprocessing(model, request.size),
            boundaries=boundaries(model),
            classes=_classes(model) if own else None,
            scores=getattr(model, "num_classes", 0) > 0,
        )


def _full_name(request: Request) -> str:
    """Return architecture and tag; weights given as `@TAG` are the tag too."""
    import timm

    architecture, _, tag = request.name.partition(".")
    if not timm.is_model(architecture):
        near = suggest(architecture, timm.list_models())
        raise UnknownVictimError(f"timm has no model {architecture!r}{near}")
    if isinstance(request.weights, Tag):
        if tag not in ("", request.weights.name):
            raise WeightsError(f"timm/{request.name} names the weights {tag!r} and {request.weights.name!r}; type one")
        tag = request.weights.name
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise WeightsError(f"timm/{architecture} has no weights {tag!r}{suggest(tag, [*tags, 'random'])}")
    if not tag and isinstance(request.weights, File | Random):
        default = timm.get_pretrained_cfg(architecture)
        return f"{architecture}.{default.tag}" if default.tag else str(architecture)
    if not tags:
        raise WeightsError(f"timm has no weights for {architecture}; type @random or @path/file.safetensors")
    return f"{architecture}.{tag or timm.get_pretrained_cfg(architecture).tag}"


def _overlay(name: str, known: Any) -> dict[str, Any]:
    """Fetch the weights of a tag ahead of timm, which would ask the hub again and again."""
    instead = f"timm/{name}@random or timm/{name}@path/file.safetensors"
    if known.hf_hub_id:
        files = (known.hf_hub_filename,) if known.hf_hub_filename else _FILES
        path = hugging_face_file(known.hf_hub_id, files, instead)
        read_state(path)
        # Only the publishers' own files need the network's own reader; the hub's are state dicts.
        return {"file": str(path), "custom_load": False}
    if known.url:
        return {"file": str(torch_hub_file(known.url, instead))}
    raise WeightsError(f"timm has no address for the weights of {name}; type {instead}")


def _preprocessing(model: nn.Module, size: int | None) -> Preprocessing:
    """Take timm's own evaluation transform, its normalisation left out."""
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(model)
    if size is not None:
        config["input_size"] = (3, size, size)
    _, height, width = config["input_size"]
    crop = f"{config['crop_mode']} crop of {config['crop_pct']:.4g}"
    transform = create_transform(**config, normalize=False)
    return Preprocessing(
        _Scaled(transform),
        (3, height, width),
        f"timm's {crop} ({config['interpolation']}) to {height}x{width}",
        tuple(config["mean"]),
        tuple(config["std"]),
    )


@dataclass(frozen=True)
class _Scaled:
    """A transform to bytes, then to [0, 1]."""

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(image).to(torch.float32) / 255


def _classes(model: nn.Module) -> tuple[str, ...] | None:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if subset is None:
        return None
    if subset == "imagenet-1k":
        return imagenet_classes()
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(info.num_classes()))
