"""From a picture to a network's input: resize and crop as its makers did, normalise inside the prefix."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


class Normalise(nn.Module):
    """Map RGB in [0, 1] to (x - mean) / std, channel by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return (images - self.mean) / self.std


@dataclass(frozen=True)
class Preprocessing:
    """How a network's pictures are made: resized to `resize`, then cropped to the centre.

    `resize` is the shorter edge, or (height, width) where the picture is stretched; `crop` is the input's (height,
    width). `on_tensors` resizes the bytes as a tensor, as transformers does, rather than as a PIL image.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    interpolation: InterpolationMode = InterpolationMode.BILINEAR
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    on_tensors: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The input's (3, h, w)."""
        return (3, *self.crop)

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """Return the network's view of a picture, RGB in [0, 1], before normalisation."""
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        source = F.pil_to_tensor(rgb) if self.on_tensors else rgb
        size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        resized = F.resize(source, size, interpolation=self.interpolation, antialias=True)
        cropped = F.center_crop(resized, list(self.crop))
        pixels = cropped if self.on_tensors else F.pil_to_tensor(cropped)
        scaled: Tensor = F.convert_image_dtype(pixels, torch.float32)
        return scaled

    def normaliser(self) -> nn.Module:
        """Return the module from RGB in [0, 1] to what the network takes."""
        identity = all(m == 0 for m in self.mean) and all(s == 1 for s in self.std)
        return nn.Identity() if identity else Normalise(self.mean, self.std)

    def at(self, size: int | None) -> Preprocessing:
        """Return the same with a square input of `size` pixels, the share that the crop keeps unchanged."""
        if size is None:
            return self
        crop = (size, size)
        if isinstance(self.resize, int):
            return dataclasses.replace(self, resize=round(self.resize * size / min(self.crop)), crop=crop)
        height, width = self.resize
        stretched = (round(height * size / self.crop[0]), round(width * size / self.crop[1]))
        return dataclasses.replace(self, resize=stretched, crop=crop)

    def words(self) -> str:
        """Say it in one line."""
        if isinstance(self.resize, int):
            resize = f"resize the shorter edge to {self.resize}"
        else:
            resize = f"resize to {self.resize[0]}x{self.resize[1]}"
        mean, std = (" ".join(format(value, ".4g") for value in values) for values in (self.mean, self.std))
        crop = f"crop the centre {self.crop[0]}x{self.crop[1]}"
        return f"{resize} ({self.interpolation.value}, antialiased), {crop}, mean {mean}, std {std}"
