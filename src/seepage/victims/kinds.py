"""Which kind of block a module is: by its type where it is known, else by how its output came about."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

# package.file.Class; libraries that are not installed need not be.
_TYPES = {
    "post-activation": """
        torchvision.resnet.BasicBlock torchvision.resnet.Bottleneck torchvision.regnet.ResBottleneckBlock
        timm.resnet.BasicBlock timm.resnet.Bottleneck timm.resnetv2.Bottleneck timm.regnet.Bottleneck
        transformers.modeling_resnet.ResNetBasicLayer transformers.modeling_resnet.ResNetBottleNeckLayer
        open_clip.modified_resnet.Bottleneck seepage.cifar.PostActivationBlock
    """,
    "pre-activation": """
        timm.resnetv2.PreActBasic timm.resnetv2.PreActBottleneck timm.regnet.PreBottleneck
        seepage.cifar.PreActivationBlock
    """,
    "face-residual": "seepage.faces.FaceResidual",
    "linear-bottleneck": """
        torchvision.mobilenetv2.InvertedResidual torchvision.mobilenetv3.InvertedResidual
        torchvision.efficientnet.MBConv torchvision.efficientnet.FusedMBConv torchvision.mnasnet._InvertedResidual
        timm._efficientnet_blocks.InvertedResidual timm._efficientnet_blocks.DepthwiseSeparableConv
        timm._efficientnet_blocks.EdgeResidual timm._efficientnet_blocks.CondConvResidual
        timm._efficientnet_blocks.UniversalInvertedResidual seepage.faces.LinearBottleneck
    """,
    "convnext": "torchvision.convnext.CNBlock timm.convnext.ConvNeXtBlock transformers.modeling_convnext.ConvNextLayer",
    "transformer": """
        torchvision.vision_transformer.EncoderBlock torchvision.swin_transformer.SwinTransformerBlock
        torchvision.swin_transformer.SwinTransformerBlockV2 timm.vision_transformer.Block
        timm.vision_transformer.ResPostBlock timm.vision_transformer.ParallelScalingBlock timm.eva.EvaBlock
        timm.swin_transformer.SwinTransformerBlock timm.swin_transformer_v2.SwinTransformerV2Block
        transformers.modeling_vit.ViTLayer transformers.modeling_dinov2.Dinov2Layer
        transformers.modeling_clip.CLIPEncoderLayer transformers.modeling_siglip.SiglipEncoderLayer
        transformers.modeling_blip_2.Blip2EncoderLayer open_clip.transformer.ResidualAttentionBlock
        open_clip.transformer.CustomResidualAttentionBlock torch.transformer.TransformerEncoderLayer
    """,
    "dense": """
        torchvision.densenet._DenseLayer torchvision.densenet._DenseBlock timm.densenet.DenseLayer
        timm.densenet.DenseBlock
    """,
    "downsample": """
        torchvision.densenet._Transition torchvision.swin_transformer.PatchMerging
        torchvision.swin_transformer.PatchMergingV2 timm.densenet.DenseTransition timm.convnext.Downsample
        timm.swin_transformer.PatchMerging timm.swin_transformer_v2.PatchMerging
    """,
    "conv": """
        torchvision.misc.Conv2dNormActivation timm.conv_bn_act.ConvNormAct timm._efficientnet_blocks.ConvBnAct
        transformers.modeling_resnet.ResNetConvLayer
    """,
    "head": "timm.classifier.ClassifierHead timm.classifier.NormMlpClassifierHead",
    "pool": "timm.adaptive_avgmax_pool.SelectAdaptivePool2d open_clip.modified_resnet.AttentionPool2d",
}
_BY_TYPE = {name: kind for kind, names in _TYPES.items() for name in names.split()}
_POOLS = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.FractionalMaxPool2d,
    nn.LPPool2d,
)
_ADDS = ("pre-activation", "face-residual")
RESIDUAL = (
    "post-activation",
    "pre-activation",
    "face-residual",
    "linear-bottleneck",
    "convnext",
    "transformer",
    "dense",
)
"""The kinds that are blocks of their own; the others are steps between them."""


@dataclass(frozen=True)
class Ending:
    """How a module's output came about, read backwards from it.

    `activation` is the operation that was applied last, if that is one, `joins` what two branches met in before it,
    `identity` whether one of the branches is the module's input as it came.
    """

    activation: str | None = None
    joins: str | None = None
    identity: bool = False


def kind_of(module: nn.Module, ending: Ending | None = None, *, reshapes: bool = False) -> str | None:
    """Return a module's kind of block, None where it is none of them.

    `reshapes` says that its output has another shape than its input: what adds to a projection is no `x + F(x)`.
    """
    kind = next((_BY_TYPE[name] for name in map(_name, type(module).__mro__) if name in _BY_TYPE), None)
    if kind is None and ending is not None and ending.joins is not None:
        kind = _by_structure(module, ending, reshapes)
    if kind is None:
        kind = _plain(module)
    return "downsample" if kind in _ADDS and reshapes else kind


def _name(cls: type) -> str:
    parts = cls.__module__.split(".")
    return f"{parts[0]}.{parts[-1]}.{cls.__name__}"


def _by_structure(module: nn.Module, ending: Ending, reshapes: bool) -> str | None:
    if ending.activation is not None:
        return "post-activation" if (ending.activation, ending.joins) == ("relu", "add") else None
    if ending.joins == "cat":
        return "dense" if ending.identity else None
    if not ending.identity:
        return "downsample" if reshapes else None
    parts = list(module.modules())
    if any("attention" in type(part).__name__.lower() for part in parts):
        return "transformer"
    if any(isinstance(part, nn.Conv2d) and part.groups == part.in_channels > 1 for part in parts):
        return "linear-bottleneck"
    return "pre-activation"


def _plain(module: nn.Module) -> str | None:
    if isinstance(module, nn.Sequential):
        return _sequence([_plain(part) for part in module], module)
    if isinstance(module, nn.Conv2d):
        return "conv"
    if isinstance(module, nn.Linear):
        return "head"
    return "pool" if isinstance(module, _POOLS) else None


def _sequence(kinds: list[str | None], module: nn.Sequential) -> str | None:
    """A convolution with a norm and an activation after it, or layers that end in a linear one."""
    if kinds.count("conv") == 1 and kinds[0] == "conv" and not any(kinds[1:]):
        return "conv" if all(next(part.children(), None) is None for part in module) else None
    return "head" if kinds and kinds[-1] == "head" else None
