"""Where the blocks of known families end."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

_STAGES = "features.0 features.1.* features.2 features.3.* features.4 features.5.* features.6 features.7.*"
# By the package and class of the network: the modules its blocks end in, in the order they run. `a|b` are taken as
# they come, so that a stage's down-sampling stands before its blocks.
_BLOCKS = {
    "torchvision.AlexNet": "features.*",
    "torchvision.ConvNeXt": _STAGES,
    "torchvision.DenseNet": "features.pool0 features.denseblock1 features.transition1 features.denseblock2 "
    "features.transition2 features.denseblock3 features.transition3 features.denseblock4 features.norm5",
    "torchvision.EfficientNet": "features.0 features.1.* features.2.* features.3.* features.4.* features.5.* "
    "features.6.* features.7.* features.8",
    "torchvision.GoogLeNet": "maxpool1 maxpool2 inception3? maxpool3 inception4? maxpool4 inception5?",
    "torchvision.Inception3": "maxpool1 maxpool2 Mixed_5? Mixed_6? Mixed_7?",
    "torchvision.MaxVit": "stem blocks.*.layers.*",
    "torchvision.MNASNet": "layers.*",
    "torchvision.MobileNetV2": "features.*",
    "torchvision.MobileNetV3": "features.*",
    "torchvision.RegNet": "stem trunk_output.block?.*",
    "torchvision.ResNet": "maxpool layer?.*",
    "torchvision.ShuffleNetV2": "maxpool stage?.* conv5",
    "torchvision.SqueezeNet": "features.*",
    "torchvision.SwinTransformer": _STAGES,
    "torchvision.VGG": "features.*",
    "torchvision.VisionTransformer": "conv_proj encoder.layers.* encoder.ln",
    "timm.ConvNeXt": "stem stages.*.downsample|stages.*.blocks.*",
    "timm.DenseNet": "features.pool0 features.denseblock1 features.transition1 features.denseblock2 "
    "features.transition2 features.denseblock3 features.transition3 features.denseblock4 features.norm5",
    "timm.EfficientNet": "bn1 blocks.*.* bn2",
    "timm.Eva": "patch_embed blocks.*",
    "timm.MlpMixer": "stem blocks.* norm",
    "timm.MobileNetV3": "bn1 blocks.*.*",
    "timm.RegNet": "stem s?.*",
    "timm.ResNet": "maxpool layer?.*",
    "timm.ResNetV2": "stem stages.*.blocks.* norm",
    "timm.SwinTransformer": "patch_embed layers.*.downsample|layers.*.blocks.* norm",
    "timm.SwinTransformerV2": "patch_embed layers.*.downsample|layers.*.blocks.* norm",
    "timm.VisionTransformer": "patch_embed norm_pre blocks.* norm",
    "open_clip.ModifiedResNet": "avgpool layer?.*",
    "open_clip.VisionTransformer": "ln_pre transformer.resblocks.* ln_post",
}
# transformers names the parts of its towers alike: the first of these that finds blocks is taken.
_TOWERS = (
    "embedder embeddings encoder.stages.*.downsampling_layer.1|encoder.stages.*.layers.* layernorm",
    "embeddings encoder.layers.*.downsample|encoder.layers.*.blocks.* layernorm",
    "embeddings pre_layrnorm encoder.layers.* post_layernorm",
    "embeddings encoder.layer.* layernorm",
    "embeddings layers.* layernorm",
    "embeddings model.layer.* norm",
)


def boundaries(model: nn.Module) -> tuple[str, ...] | None:
    """Return the ends of a known family's blocks in the order they run, None for a family that is not known."""
    kind = type(model)
    package = kind.__module__.partition(".")[0]
    patterns = _BLOCKS.get(f"{package}.{kind.__name__}")
    if patterns is not None:
        return expand(model, patterns)
    if package == "open_clip" and isinstance(trunk := getattr(model, "trunk", None), nn.Module):
        inner = boundaries(trunk)
        return None if inner is None else tuple(f"trunk.{name}" for name in inner)
    if package == "transformers":
        return _tower(model)
    if package == "timm":
        return _timm_stages(model)
    return None


def expand(model: nn.Module, patterns: str) -> tuple[str, ...]:
    """Return the modules that patterns such as `layer1.*` name, pattern by pattern, in the order of definition."""
    modules = model.named_modules(remove_duplicate=False)
    # A list is no step; a stage that does not down-sample has a placeholder where the others do.
    names = [
        name
        for name, module in modules
        if name and not isinstance(module, nn.ModuleList) and not (isinstance(module, nn.Identity) and "down" in name)
    ]
    found: dict[str, None] = {}
    for group in patterns.split():
        for name in names:
            if any(_matches(name, pattern) for pattern in group.split("|")):
                found[name] = None
    return tuple(found)


def _matches(name: str, pattern: str) -> bool:
    return name.count(".") == pattern.count(".") and fnmatchcase(name, pattern)


def _tower(model: nn.Module) -> tuple[str, ...] | None:
    """Look for the blocks in the model and in the one child that holds them, as classifiers wrap a bare model."""
    wrapped = [f"{name}." for name, child in model.named_children() if type(child).__name__.endswith("Model")]
    for prefix in ("", *wrapped):
        inner = model.get_submodule(prefix[:-1])
        for patterns in _TOWERS:
            found = expand(inner, patterns)
            if any(part.isdecimal() for name in found for part in name.split(".")):
                return tuple(prefix + name for name in found)
    return None


def _timm_stages(model: nn.Module) -> tuple[str, ...] | None:
    """Return the ends of the stages that timm itself knows of a network."""
    info = getattr(model, "feature_info", None)
    if not isinstance(info, list):
        return None
    modules = dict(model.named_modules(remove_duplicate=False))
    names = [str(stage["module"]) for stage in info if stage.get("module") in modules]
    return tuple(dict.fromkeys(names)) or None


def spread(names: Sequence[str], count: int = 5) -> tuple[str, ...]:
    """Return about `count` of the names, evenly over their order, first and last among them."""
    if len(names) <= count:
        return tuple(names)
    return tuple(names[round(step * (len(names) - 1) / (count - 1))] for step in range(count))
