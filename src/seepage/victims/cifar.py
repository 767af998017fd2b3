"""CIFAR ResNets of depth 6n + 2, post-activation and pre-activation, every activation a module of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .families import expand
from .preprocess import Preprocessing, shorter_edge

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The names of CIFAR-10, in the order of every classifier trained on it."""
_WIDTHS = (16, 32, 64)


class Shortcut(nn.Module):
    """The shortcut without weights: the input, else every second pixel of it between channels of zeros.

    Takes "b i h w", gives "b o h' w'" with o >= i. Source: He et al. 2016, Deep Residual Learning, option A.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.behind = outputs - inputs - self.before

    def forward(self, features: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o r s"]:
        if self.stride == 1 and not self.behind:
            return features
        return F.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.behind))


class PostActivationBlock(nn.Module):
    """`relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))`, "b i h w" to "b o h' w'".

    Source: He et al. 2016, Deep Residual Learning, figure 2.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = Shortcut(inputs, outputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, features: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o r s"]:
        inner = self.relu1(self.bn1(self.conv1(features)))
        joined: Tensor = self.relu2(self.shortcut(features) + self.bn2(self.conv2(inner)))
        return joined


class PreActivationBlock(nn.Module):
    """`shortcut(x) + conv2(relu(bn2(conv1(relu(bn1(x))))))`, "b i h w" to "b o h' w'".

    Source: He et al. 2016, Identity Mappings, equation 5; the shortcut takes x itself, also where the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = Shortcut(inputs, outputs, stride)

    def forward(self, features: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o r s"]:
        inner = self.conv1(self.relu1(self.bn1(features)))
        joined: Tensor = self.shortcut(features) + self.conv2(self.relu2(self.bn2(inner)))
        return joined


class CifarResNet(nn.Module):
    """The post-activation network: normalised "b 3 h w" to "b classes".

    `blocks` a stage make a depth of 6 * blocks + 2. The names in its state are those of the published weights.
    Source: He et al. 2016, Deep Residual Learning, section 4.2.
    """

    BLOCKS: ClassVar[str] = "relu layer1.* layer2.* layer3.*"

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.relu = nn.ReLU()
        self.layer1, self.layer2, self.layer3 = _stages(PostActivationBlock, blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(_WIDTHS[-1], classes)
        _initialise(self)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        scores: Tensor = self.linear(self.pool(features).flatten(1))
        return scores


class CifarPreActResNet(nn.Module):
    """The pre-activation network: normalised "b 3 h w" to "b classes"; `bn` and `relu` close its last stage.

    `blocks` a stage make a depth of 6 * blocks + 2. Source: He et al. 2016, Identity Mappings, section 4.
    """

    BLOCKS: ClassVar[str] = "conv1 layer1.* layer2.* layer3.* relu"

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, 1, 1, bias=False)
        self.layer1, self.layer2, self.layer3 = _stages(PreActivationBlock, blocks)
        self.bn = nn.BatchNorm2d(_WIDTHS[-1])
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(_WIDTHS[-1], classes)
        _initialise(self)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        features = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        features = self.relu(self.bn(features))
        scores: Tensor = self.linear(self.pool(features).flatten(1))
        return scores


NETWORKS: Mapping[str, Callable[[], CifarResNet | CifarPreActResNet]] = MappingProxyType(
    {
        "cifar_preact_resnet20": partial(CifarPreActResNet, 3),
        "cifar_preact_resnet56": partial(CifarPreActResNet, 9),
        "cifar_resnet20": partial(CifarResNet, 3),
        "cifar_resnet56": partial(CifarResNet, 9),
    }
)
"""The networks by the names they have in the zoo."""


def preprocessing(size: int | None = None) -> Preprocessing:
    """Return how these networks see a picture: 32 pixels unless told, ImageNet's mean and deviation."""
    size = size or 32
    return shorter_edge(size, size)


def boundaries(model: CifarResNet | CifarPreActResNet) -> tuple[str, ...]:
    """Return the ends of the stem and of every block in the order they run, and of what closes the last stage."""
    return expand(model, model.BLOCKS)


def defaults(model: CifarResNet | CifarPreActResNet) -> tuple[str, ...]:
    """Return the end of the stem and of every stage."""
    blocks = [f"layer{stage}.{len(layer) - 1}" for stage, layer in enumerate(_layers(model), start=1)]
    return (model.BLOCKS.partition(" ")[0], *blocks)


def _layers(model: CifarResNet | CifarPreActResNet) -> tuple[nn.Sequential, ...]:
    return model.layer1, model.layer2, model.layer3


def _stages(block: type[PostActivationBlock | PreActivationBlock], blocks: int) -> tuple[nn.Sequential, ...]:
    stages, inputs = [], _WIDTHS[0]
    for outputs in _WIDTHS:
        strides = [1 if outputs == inputs else 2] + [1] * (blocks - 1)
        widths = [inputs] + [outputs] * (blocks - 1)
        stages.append(nn.Sequential(*(block(width, outputs, stride) for width, stride in zip(widths, strides))))
        inputs = outputs
    return tuple(stages)


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
