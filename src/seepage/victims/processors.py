"""transformers' image processors as preprocessing: run as they are, their normalisation measured and taken out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .preprocess import Preprocessing, shorter_edge

FILES = ("preprocessor_config.json", "processor_config.json")
# The processor of a type, by how its name begins; ImageNet's resize and crop for all others.
_BY_TYPE = {
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "blip": "BlipImageProcessor",
    "instructblip": "BlipImageProcessor",
    "vit": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "beit": "BeitImageProcessor",
    "dinov3": "DINOv3ViTImageProcessor",
}


@dataclass(frozen=True)
class _Denormalised:
    """A processor whose output is brought back to RGB in [0, 1]."""

    processor: Any
    low: Tensor
    span: Tensor
    bgr: bool

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = _run(self.processor, image)
        plain = ((pixels - self.low) / self.span).clamp(0, 1)
        return plain.flip(0) if self.bgr else plain


def of_folder(folder: Path | None, size: int | None) -> Preprocessing | None:
    """Return what a checkpoint's image-processor config says; None without one, or where it gives no one picture."""
    if folder is None or not any((folder / name).is_file() for name in FILES):
        return None
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return _preprocessing(processor, size)


def of_type(vision: Any, size: int | None) -> Preprocessing:
    """Return the preprocessing of a model type: CLIP's, SigLIP's, ViT's, ..., else ImageNet's."""
    import transformers

    kind = next((name for start, name in _BY_TYPE.items() if vision.model_type.startswith(start)), None)
    own = getattr(vision, "image_size", None)
    if not isinstance(own, int) or vision.model_type.startswith("dinov2"):
        own = 224
    side = size or own
    if kind is not None:
        found = _preprocessing(getattr(transformers, kind)(), side)
        if found is not None:
            return found
    return shorter_edge(round(256 * side / 224), side)


def _preprocessing(processor: Any, size: int | None) -> Preprocessing | None:
    if size is not None:
        _resize(processor, size)
    black, white = (_run(processor, Image.new("RGB", (64, 64), (value,) * 3)) for value in (0, 255))
    if black.ndim != 3 or black.shape[0] != 3:
        return None
    low, high = black.mean((1, 2), keepdim=True), white.mean((1, 2), keepdim=True)
    span = high - low
    bgr = bool(getattr(processor, "do_flip_channel_order", False))
    mean, std = (-low / span).flatten(), (1 / span).flatten()
    if bgr:
        mean, std = mean.flip(0), std.flip(0)
    _, height, width = black.shape
    return Preprocessing(
        _Denormalised(processor, low, span, bgr),
        (3, height, width),
        f"transformers' {type(processor).__name__} to {height}x{width}",
        tuple(mean.tolist()),
        tuple(std.tolist()),
        bgr,
    )


def _run(processor: Any, image: Image.Image) -> Tensor:
    pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"]
    return pixels[0].to(torch.float32)


def _resize(processor: Any, size: int) -> None:
    """Set a processor's input to a square of `size`, the share that its crop keeps unchanged."""
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    frame = _entries(crop or processor.size)
    before = min(frame.values())
    for attribute in ("size", "crop_size"):
        entries = getattr(processor, attribute, None)
        if entries is not None:
            scaled = {key: round(value * size / before) for key, value in _entries(entries).items()}
            setattr(processor, attribute, type(entries)(**scaled))


def _entries(sizes: Any) -> dict[str, int]:
    return {key: value for key, value in dict(sizes).items() if value is not None}
