"""Several cuts by one pass give what each cut gives alone."""

from __future__ import annotations

import pytest
import torch

from seepage import victims
from seepage.victims.cut import cut
from seepage.victims.several import several


def test_one_pass_gives_what_each_prefix_gives_and_stops_at_the_deepest() -> None:
    victim = victims.load("torchvision/resnet18@random", size=32)
    layers = ("layer3", "relu", "layer1.0", "layer1")
    splits = [cut(victim, layer) for layer in layers]
    images = torch.rand(2, 3, 32, 32)
    runs: list[str] = []
    for name in ("conv1", "layer3", "layer4"):
        module = victim.model.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: runs.append(name))
    extract = several(splits)
    runs.clear()
    found = extract(images, layers)
    assert runs == ["conv1", "layer3"]
    for split in splits:
        assert torch.allclose(found[split.layer], split.leak(images).features, atol=1e-6), split.layer
    runs.clear()
    assert set(extract(images, ["layer1"])) == {"layer1"}
    assert runs == ["conv1"]


def test_cuts_of_two_victims_are_refused() -> None:
    names = ("torchvision/resnet18@random", "torchvision/resnet18@random:1")
    splits = [cut(victims.load(name, size=32), layer) for name, layer in zip(names, ("layer1", "layer2"))]
    with pytest.raises(ValueError, match="one loaded victim"):
        several(splits)
