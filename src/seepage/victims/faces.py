"""Face recognisers of 112 pixels: IR networks of the ArcFace kind, and MobileFaceNet. Their outputs are embeddings."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as F

from .families import expand, spread
from .preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

SIDE = 112
_HALF = (0.5, 0.5, 0.5)
_UNITS = {50: (3, 4, 14, 3), 152: (3, 8, 36, 3)}
_WIDTHS = (64, 128, 256, 512)
# Of MobileFaceNet's blocks: expansion, channels, how many, stride of the first.
_BLOCKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


class FaceResidual(nn.Module):
    """`shortcut(x) + bn(conv(prelu(conv(bn(x)))))`, "b i h w" to "b o h' w'", without an activation after the sum.

    Source: Deng et al. 2019, ArcFace, section 3.1, "improved residual unit"; the names are those of published weights.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if inputs != outputs:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, features: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o r s"]:
        joined: Tensor = self.shortcut_layer(features) + self.res_layer(features)
        return joined


class FaceResNet(nn.Module):
    """An IR network of 50 or 152 layers: normalised "b 3 112 112" to embeddings "b 512", not yet of unit length.

    The names in its state are those of the published ArcFace and CurricularFace backbones.

    Raises:
        KeyError: another depth.
    """

    BLOCKS: ClassVar[str] = "input_layer body.* output_layer"

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, _WIDTHS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(_WIDTHS[0]), nn.PReLU(_WIDTHS[0])
        )
        units, inputs = [], _WIDTHS[0]
        for outputs, count in zip(_WIDTHS, _UNITS[depth]):
            units.append(FaceResidual(inputs, outputs, 2))
            units += [FaceResidual(outputs, outputs, 1) for _ in range(count - 1)]
            inputs = outputs
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512), nn.Dropout(0.4), nn.Flatten(), nn.Linear(512 * 7 * 7, 512), nn.BatchNorm1d(512)
        )

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 512"]:
        embeddings: Tensor = self.output_layer(self.body(self.input_layer(images)))
        return embeddings


class LinearBottleneck(nn.Module):
    """Expand, filter channel by channel, project without an activation; plus the input where the shape stays.

    "b i h w" to "b o h' w'". Source: Sandler et al. 2018, MobileNetV2, figure 4.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.conv = nn.Sequential(
            _conv(inputs, hidden, 1),
            _conv(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, features: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o r s"]:
        inner: Tensor = self.conv(features)
        return features + inner if self.adds else inner


class MobileFaceNet(nn.Module):
    """MobileFaceNet: normalised "b 3 112 112" to embeddings "b 128", not yet of unit length.

    Names, widths and activations are those of the Apache-2.0 weights of foamliu/MobileFaceNet.
    Source: Chen et al. 2018, MobileFaceNets, table 1.
    """

    BLOCKS: ClassVar[str] = "conv1 dw_conv features.* conv2 gdconv bn"

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 3, 2)
        self.dw_conv = nn.Sequential(
            OrderedDict(
                depthwise=nn.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False),
                bn1=nn.BatchNorm2d(64),
                relu1=nn.ReLU(),
                pointwise=nn.Conv2d(64, 64, 1, bias=False),
                bn2=nn.BatchNorm2d(64),
                relu2=nn.ReLU(),
            )
        )
        blocks, inputs = [], 64
        for expansion, outputs, count, stride in _BLOCKS:
            for index in range(count):
                blocks.append(LinearBottleneck(inputs, outputs, 1 if index else stride, expansion))
                inputs = outputs
        self.features = nn.Sequential(*blocks)
        self.conv2 = _conv(inputs, 512, 1)
        self.gdconv = nn.Sequential(
            OrderedDict(depthwise=nn.Conv2d(512, 512, 7, groups=512, bias=False), bn=nn.BatchNorm2d(512))
        )
        self.conv3 = nn.Conv2d(512, 128, 1)
        self.flatten = nn.Flatten()
        self.bn = nn.BatchNorm1d(128)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 128"]:
        features = self.conv2(self.features(self.dw_conv(self.conv1(images))))
        embeddings: Tensor = self.bn(self.flatten(self.conv3(self.gdconv(features))))
        return embeddings


@dataclass(frozen=True)
class _Padded:
    """The whole picture in a square of `side` pixels; what is left beside it repeats its edge."""

    side: int

    def __call__(self, image: Image.Image) -> Tensor:
        scale = self.side / max(image.size)
        width, height = (max(1, round(scale * length)) for length in image.size)
        # Resized before it is padded: a sliver's square would be huge.
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (self.side - width) // 2, (self.side - height) // 2
        padding = [left, top, self.side - width - left, self.side - height - top]
        padded: Tensor = F.pad(F.pil_to_tensor(resized), padding, padding_mode="edge")
        scaled: Tensor = F.convert_image_dtype(padded, torch.float32)
        return scaled


def arcface_view(size: int | None = None) -> Preprocessing:
    """Return how the IR networks see a picture: 112 pixels, from [0, 1] to [-1, 1]."""
    return _whole(size, _HALF, _HALF)


def mobilefacenet_view(size: int | None = None) -> Preprocessing:
    """Return how MobileFaceNet sees a picture: 112 pixels, ImageNet's mean and deviation."""
    return _whole(size, IMAGENET_MEAN, IMAGENET_STD)


def _whole(size: int | None, mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing:
    side = size or SIDE
    words = f"resize the longer edge to {side} (bilinear), pad to {side}x{side} with the edge's pixels"
    return Preprocessing(_Padded(side), (3, side, side), words, mean, std)


def boundaries(model: FaceResNet | MobileFaceNet) -> tuple[str, ...]:
    """Return the ends of the stem, of every block and of the head, in the order they run."""
    return expand(model, model.BLOCKS)


def defaults(model: FaceResNet | MobileFaceNet) -> tuple[str, ...]:
    """Return about five of the blocks, without the head: what it gives is the embedding itself."""
    return spread(boundaries(model)[:-1])


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )
