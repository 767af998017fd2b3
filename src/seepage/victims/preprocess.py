"""From a picture to a network's input: resized and cropped by its library's own transform, normalised in the prefix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from ..types import SeepageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ZEROS, ONES = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
# The shorter edge becomes a few hundred pixels, the longer one grows with it: beyond this a sliver would fill memory.
_MAX_ASPECT = 200


class Normalise(nn.Module):
    """Map RGB in [0, 1] to (x - mean) / std, channel by channel, then to BGR where the network wants that."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], bgr: bool = False) -> None:
        super().__init__()
        self.bgr = bgr
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        normal = (images - self.mean) / self.std
        return normal.flip(1) if self.bgr else normal


@dataclass(frozen=True)
class Preprocessing:
    """How a network sees a picture. Called with one, it returns "3 h w" in [0, 1], before normalisation.

    `transform` takes an RGB picture, `words` say what it does.
    """

    transform: Callable[[Image.Image], Tensor]
    image_shape: tuple[int, int, int]
    words: str
    mean: tuple[float, ...] = ZEROS
    std: tuple[float, ...] = ONES
    bgr: bool = False

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """Return the network's view of a picture.

        Raises:
            SeepageError: the picture is a sliver.
        """
        if max(image.size) > _MAX_ASPECT * min(image.size):
            raise SeepageError(
                f"a picture of {image.width}x{image.height} is over {_MAX_ASPECT} times as long as wide; crop it first"
            )
        return self.transform(image if image.mode == "RGB" else image.convert("RGB"))

    def normaliser(self) -> nn.Module:
        """Return the module from RGB in [0, 1] to what the network takes."""
        if self.mean == ZEROS and self.std == ONES and not self.bgr:
            return nn.Identity()
        return Normalise(self.mean, self.std, self.bgr)

    def describe(self) -> str:
        """Say it in one line."""
        mean, std = (" ".join(format(value, ".4g") for value in values) for values in (self.mean, self.std))
        return f"{self.words}; mean {mean}, std {std}"


def shorter_edge(
    resize: int,
    crop: int,
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Preprocessing:
    """Return torchvision's preset: the shorter edge to `resize` pixels, then the central square of `crop`."""
    return Preprocessing(
        ImageClassification(
            crop_size=crop, resize_size=resize, mean=ZEROS, std=ONES, interpolation=interpolation, antialias=True
        ),
        (3, crop, crop),
        f"resize the shorter edge to {resize} ({interpolation.value}), crop the central {crop}x{crop}",
        mean,
        std,
    )
