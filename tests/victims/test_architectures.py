"""The law of the cut and the segments, at every block boundary of the architectures that people use."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torchvision import models

from seepage.victims import load
from seepage.victims.cut import CutError, cut, law
from seepage.victims.layers import boundaries, default_layers, layers, look
from seepage.victims.segments import TOLERANCE


@dataclass(frozen=True)
class Architecture:
    """A victim with random weights and what is known of it: block boundaries, the blocks' kind, a bypassed module."""

    name: str
    size: int | None
    cuts: int
    blocks: int
    kind: str
    bypassed: str


# Above 100 million parameters two blocks deep; benchmarks/layers.py runs them whole. The smallest pictures they take.
ARCHITECTURES = (
    Architecture("torchvision/resnet18", 32, 11, 8, "post-activation", "layer1.0.conv1"),
    Architecture("torchvision/resnet50", 32, 19, 16, "post-activation", "layer2.0.downsample.0"),
    Architecture("timm/resnetv2_50", 32, 20, 12, "pre-activation", "stages.0.blocks.1.conv2"),
    Architecture("torchvision/wide_resnet50_2", 32, 19, 16, "post-activation", "layer3.2.bn2"),
    Architecture("torchvision/mobilenet_v2", 32, 21, 17, "linear-bottleneck", "features.3.conv.0"),
    Architecture("torchvision/mobilenet_v3_small", 32, 15, 11, "linear-bottleneck", "features.3.block.0"),
    Architecture("torchvision/mobilenet_v3_large", 32, 19, 15, "linear-bottleneck", "features.3.block.1"),
    Architecture("torchvision/efficientnet_b0", 32, 20, 16, "linear-bottleneck", "features.2.1.block.0"),
    Architecture("torchvision/convnext_tiny", 32, 24, 18, "convnext", "features.1.0.block.0"),
    Architecture("torchvision/densenet121", 32, 10, 4, "dense", "features.denseblock1.denselayer2"),
    Architecture("torchvision/regnet_y_400mf", 32, 19, 16, "post-activation", "trunk_output.block2.block2-1.f.a"),
    Architecture("torchvision/vit_b_16", 32, 15, 12, "transformer", "encoder.layers.encoder_layer_0.mlp"),
    Architecture("torchvision/vit_b_32", 64, 15, 12, "transformer", "encoder.layers.encoder_layer_3.ln_2"),
    Architecture("torchvision/swin_t", 32, 18, 12, "transformer", "features.1.0.attn"),
    Architecture("open_clip/RN50", 32, 18, 16, "post-activation", "layer1.0.conv1"),
    Architecture("open_clip/RN101", 32, 35, 33, "post-activation", "layer3.4.bn3"),
    Architecture("open_clip/ViT-B-32", 64, 14, 12, "transformer", "transformer.resblocks.0.attn"),
    Architecture("open_clip/ViT-B-16", 32, 14, 12, "transformer", "transformer.resblocks.5.mlp"),
    Architecture("open_clip/ViT-L-14:layers=2", 28, 4, 2, "transformer", "transformer.resblocks.1.ln_1"),
    Architecture("open_clip/ViT-B-32-SigLIP2-256", None, 16, 12, "transformer", "trunk.blocks.0.attn"),
    Architecture("hf/resnet", 32, 17, 16, "post-activation", "encoder.stages.0.layers.0.shortcut"),
    Architecture("hf/vit", 32, 16, 12, "transformer", "layers.0.attention"),
    Architecture("hf/clip", 64, 15, 12, "transformer", "encoder.layers.0.self_attn"),
    Architecture("hf/siglip", 32, 15, 12, "transformer", "encoder.layers.0.mlp"),
    Architecture("hf/dinov2", 28, 14, 12, "transformer", "encoder.layer.0.attention"),
    Architecture("hf/blip-2:num_hidden_layers=2", 28, 5, 2, "transformer", "encoder.layers.1.mlp"),
    Architecture("hf/llava:num_hidden_layers=2", 28, 5, 2, "transformer", "encoder.layers.0.layer_norm2"),
)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_the_law_holds_at_every_boundary_and_segments_compose(architecture: Architecture) -> None:
    victim = load(f"{architecture.name}@random", size=architecture.size)
    listed = layers(victim)
    assert len(listed) == architecture.cuts
    assert sum(layer.kind == architecture.kind for layer in listed) == architecture.blocks
    assert len({layer.macs_before + layer.macs_after for layer in listed}) == 1
    assert [layer.macs_before for layer in listed] == sorted(layer.macs_before for layer in listed)
    defaults = default_layers(victim)
    assert 2 <= len(defaults) <= 5
    assert set(defaults) <= {layer.name for layer in listed}

    calls = boundaries(victim, look(victim))
    laws = law(victim, [call.site for call in calls])
    assert {call.label for call in calls if laws[call.site].holds} == {layer.name for layer in listed}
    assert all(laws[call.site].shape == (2, *layer.shape) for call, layer in zip(calls, listed))

    split = cut(victim, listed[-1].name)
    images = torch.rand(2, *victim.image_shape, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        features = images
        for segment in split.prefix.segments:
            features = segment.module(features)
        expected = split.prefix(images)
    assert (features - expected).norm() <= TOLERANCE * expected.norm()
    blocks = [segment for segment in split.prefix.segments if segment.kind == architecture.kind]
    assert len(blocks) == architecture.blocks
    with pytest.raises(CutError, match="goes around it"):
        cut(victim, architecture.bypassed)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "vit_b_32", "swin_t"])
def test_multiply_adds_are_those_that_torchvision_publishes(name: str) -> None:
    published = models.get_model_weights(name).DEFAULT.meta["_ops"]
    (layer, *_) = layers(load(f"torchvision/{name}@random"))
    assert (layer.macs_before + layer.macs_after) / 1e9 == pytest.approx(published, rel=5e-3, abs=6e-4)
