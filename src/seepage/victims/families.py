"""Where the blocks of known families end."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

# By the package and class of the network: the modules its blocks end in, in the order they run.
_STAGES = "features.0 features.1.* features.2 features.3.* features.4 features.5.* features.6 features.7.*"
_BLOCKS = {
    "torchvision.AlexNet": "features.*",
    "torchvision.ConvNeXt": _STAGES,
    "torchvision.DenseNet": "features.pool0 features.denseblock1 features.transition1 features.denseblock2 "
    "features.transition2 features.denseblock3 features.transition3 features.denseblock4 features.norm5",
    "torchvision.EfficientNet": "features.0 features.1.* features.2.* features.3.* features.4.* features.5.* "
    "features.6.* features.7.* features.8",
    "torchvision.MobileNetV2": "features.*",
    "torchvision.MobileNetV3": "features.*",
    "torchvision.RegNet": "stem trunk_output.block?.*",
    "torchvision.ResNet": "maxpool layer1.* layer2.* layer3.* layer4.*",
    "torchvision.SwinTransformer": _STAGES,
    "torchvision.VGG": "features.*",
    "torchvision.VisionTransformer": "conv_proj encoder.layers.* encoder.ln",
}


def boundaries(model: nn.Module) -> tuple[str, ...] | None:
    """Return the ends of a known family's blocks in the order they run, None for a family that is not known."""
    kind = type(model)
    patterns = _BLOCKS.get(f"{kind.__module__.partition('.')[0]}.{kind.__name__}")
    return None if patterns is None else expand(model, patterns.split())


def expand(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the modules that patterns such as `layer1.*` name, pattern by pattern, in the order of definition."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    found: dict[str, None] = {}
    for pattern in patterns:
        depth = pattern.count(".")
        found.update({name: None for name in names if name.count(".") == depth and fnmatchcase(name, pattern)})
    return tuple(found)


def spread(names: Sequence[str], count: int = 5) -> tuple[str, ...]:
    """Return about `count` of the names, evenly over their order, first and last among them."""
    if len(names) <= count:
        return tuple(names)
    return tuple(names[round(step * (len(names) - 1) / (count - 1))] for step in range(count))
