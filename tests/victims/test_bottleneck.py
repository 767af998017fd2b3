"""A bottleneck behind a layer: what it computes, where it lies, its file, and the victim that the file names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from seepage import victims
from seepage.types import SeepageError
from seepage.victims.bottleneck import Bottleneck, Plan, Said, inserted, read, write
from seepage.victims.cut import cut
from seepage.victims.layers import default_layers, layers

VICTIM = """
import torch
from torch import nn

def small():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )

small.image_shape = (3, 12, 12)
"""


def filled(plan: Plan) -> Bottleneck:
    """A bottleneck with numbers in it, its standardisation included."""
    bottleneck = Bottleneck(plan).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, value in bottleneck.state_dict().items():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.3 + ("spread" in name) * 2)
    return bottleneck


@pytest.fixture
def base(tmp_path: Path) -> str:
    """The name of a small victim."""
    (tmp_path / "small.py").write_text(VICTIM)
    return f"module/{tmp_path / 'small.py'}:small"


def said(base: str, plan: Plan, **other: object) -> Said:
    facts: dict[str, object] = {
        "victim": base,
        "weights_sha256": victims.load(base).weights_sha256,
        "layer": "1",
        "size": None,
        "plan": plan,
        "defense": {"kind": "nopeek"},
        "seen": ("0123456789ab",),
    }
    return Said(**{**facts, **other})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(6, 5, 4), (5, 5, 6), (9, 6), (6,)])
def test_every_layout_is_narrowed_at_its_channels_and_comes_back_in_its_shape(shape: tuple[int, ...]) -> None:
    plan = Plan(shape, width=2, hidden=3)
    bottleneck = filled(plan)
    features = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    sent = bottleneck.encoder(features)
    axis = 1 if shape == (6, 5, 4) else len(shape)
    expected = list(features.shape)
    expected[axis] = 2
    assert list(sent.shape) == expected
    assert tuple(sent.shape[1:]) == plan.sent_shape
    assert bottleneck(features).shape == features.shape
    # Rows do not meet, and one channel is standardised by its own two numbers.
    assert torch.allclose(bottleneck.encoder(features[1:2]), sent[1:2], atol=1e-6)
    half = bottleneck.encoder
    moved = features.movedim(axis, -1) * half.spread + half.mean
    plain = Bottleneck(plan).encoder
    plain.steps = half.steps
    assert torch.allclose(half(moved.movedim(-1, axis)), plain(features), atol=1e-5)


def test_inserted_bottleneck_is_run_behind_the_layer_and_the_model_it_is_put_into_stays(base: str) -> None:
    model = victims.load(base).model
    bottleneck = filled(Plan((8, 12, 12), 2, 4))
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    before = model(images)
    defended = inserted(model, "1", bottleneck)
    assert isinstance(model, nn.Sequential)
    expected = model[2:](bottleneck(model[:2](images)))
    assert torch.equal(defended(images), expected)
    assert torch.equal(model(images), before)
    assert not torch.allclose(before, expected)
    shared = {weight.data_ptr() for weight in defended.parameters()}
    assert {weight.data_ptr() for weight in model.parameters()} <= shared
    assert not any(weight.requires_grad for weight in defended.parameters())


def test_layer_that_returns_more_than_features_keeps_the_rest_and_answers_for_itself() -> None:
    class Pair(nn.Module):
        words = "what a victim may ask its block for"

        def forward(self, x: Tensor, *, scale: float) -> tuple[Tensor, str]:
            return x * scale, "beside"

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Pair()

        def forward(self, x: Tensor) -> tuple[Tensor, str, str]:
            found, beside = self.block(x, scale=2.0)
            return found, beside, self.block.words

    bottleneck = filled(Plan((5, 6), 2, 3))
    x = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(4))
    found, beside, words = inserted(Model(), "block", bottleneck)(x)
    assert torch.equal(found, bottleneck(2 * x))
    assert (beside, words) == ("beside", Pair.words)


def test_what_is_written_loads_bit_for_bit_as_a_victim_that_is_cut_at_what_is_sent(base: str, tmp_path: Path) -> None:
    plan = Plan((8, 12, 12), 2, 4)
    bottleneck, path = filled(plan), tmp_path / "kept @ home" / "defense.safetensors"
    write(path, bottleneck, said(base, plan))
    back, told = read(path)
    assert told == said(base, plan)
    assert {name: value.tolist() for name, value in back.state_dict().items()} == {
        name: value.tolist() for name, value in bottleneck.state_dict().items()
    }
    bare, victim = victims.load(base), victims.load(f"defended/{path}")
    assert victim.name == f"defended/{path}"
    assert victim.seen == ("0123456789ab",)
    assert victim.weights_sha256 != bare.weights_sha256
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    assert torch.equal(victim.model(images), inserted(bare.model, "1", bottleneck)(images))
    assert victim.undefended is not None
    assert torch.equal(victim.undefended(images), bare.model(images))
    assert default_layers(victim) == ("1.encoder",)
    split = cut(victim, "1.encoder")  # which checks the law of the cut
    leak = split.leak(images)
    assert torch.equal(leak.features, bottleneck.encoder(cut(bare, "1").leak(images).features))
    assert torch.allclose(split.finish(leak), victim.model(images), atol=1e-6)
    row = next(row for row in layers(victim, every=True) if row.name == "1.encoder")
    assert row.bytes["fp32"] == 4 * 2 * 12 * 12
    assert len(split.prefix.segments) >= 2


def test_known_boundaries_take_the_bottleneck_in(tmp_path: Path) -> None:
    plan = Plan((16, 32, 32), 4, 8)
    bare = victims.load("zoo/cifar_resnet20@random")
    path = tmp_path / "d.safetensors"
    write(
        path,
        filled(plan),
        said("zoo/cifar_resnet20@random:0", plan, layer="layer1.2", weights_sha256=bare.weights_sha256),
    )
    victim = victims.load(f"defended/{path}")
    assert bare.boundaries is not None
    assert victim.boundaries is not None
    place = victim.boundaries.index("layer1.2.inner")
    assert victim.boundaries[place : place + 3] == ("layer1.2.inner", "layer1.2.encoder", "layer1.2")
    assert tuple(name for name in victim.boundaries if name in bare.boundaries) == bare.boundaries
    kinds = {segment.name: segment.kind for segment in cut(victim, "layer1.2.encoder").prefix.segments}
    assert kinds["layer1.1"] == kinds["layer1.2.inner"] == "post-activation"
    assert victim.scores


def test_bad_files_are_one_line(base: str, tmp_path: Path) -> None:
    plan = Plan((8, 12, 12), 2, 4)
    good = tmp_path / "good.safetensors"
    write(good, filled(plan), said(base, plan))

    def wrong(name: str, told: Plan = plan, **other: object) -> str:
        write(tmp_path / f"{name}.safetensors", filled(plan), said(base, told, **other))
        return f"defended/{tmp_path / name}.safetensors"

    cases = {
        f"defended/{tmp_path / 'none.safetensors'}": "no file",
        wrong("weights", weights_sha256="0" * 64): "train a defense of these",
        wrong("layer", layer="nine"): "has no layer 'nine'",
        wrong("gone", victim="module/gone.py:small"): "cannot be had: no file gone.py",
        wrong("twice", victim="defended/other.safetensors"): "which is defended already",
        wrong("plan", Plan((8, 12, 12), 3, 4)): "is damaged",
        f"defended/{good}@random": "brings its weights",
    }
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    cases[f"defended/{tmp_path / 'plain.safetensors'}"] = "is no trained defense"
    cut_short = good.read_bytes()
    (tmp_path / "short.safetensors").write_bytes(cut_short[:-10])
    cases[f"defended/{tmp_path / 'short.safetensors'}"] = "cannot be read"
    save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", {"seepage-defense": json.dumps({"plan": 3})})
    cases[f"defended/{tmp_path / 'odd.safetensors'}"] = "is damaged"
    for name, message in cases.items():
        with pytest.raises(SeepageError) as caught:
            victims.load(name)
        assert message in str(caught.value), name
        assert "\n" not in str(caught.value)
    with pytest.raises(SeepageError, match="was trained at the victim's own size, got a size of 20"):
        victims.load(f"defended/{good}", size=20)
