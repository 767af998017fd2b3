"""What holds for every victim, whatever its source: names, weights, hashes, and the state of the world around."""

from __future__ import annotations

import hashlib
import pickle
import random
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from seepage import registry, victims
from seepage.seeding import state_sha256
from seepage.types import SeepageError
from seepage.victims.cut import cut
from seepage.victims.source import Network, Request
from seepage.victims.weights import read_state, seeded

RESNET = "torchvision/resnet18"


@pytest.fixture(scope="module")
def resnet() -> victims.Victim:
    return victims.load(f"{RESNET}@random")


def test_a_victim_is_ready_to_be_attacked(resnet: victims.Victim) -> None:
    assert not resnet.model.training
    assert not any(weight.requires_grad for weight in resnet.model.parameters())
    assert resnet.image_shape == (3, 224, 224)
    assert resnet.name == f"{RESNET}@random:0"
    modules = dict(resnet.model.named_modules())
    assert resnet.boundaries is not None
    assert set(resnet.boundaries) <= modules.keys()
    assert resnet.boundaries[0] == "maxpool"
    assert resnet.boundaries[-1] == "layer4.1"
    assert resnet.defaults is not None
    assert len(resnet.defaults) == 5
    assert set(resnet.defaults) <= set(resnet.boundaries)


def test_loading_leaves_the_global_generators_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    victims.load(f"{RESNET}@random:3")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_a_constructor_may_draw_from_any_generator_and_is_not_noticed() -> None:
    draws = []
    for _ in range(2):
        context = seeded(5)
        # Taken here, because the run-time type checks of these tests draw from `random` themselves.
        before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        with context:
            draws.append((random.random(), np.random.rand(), float(torch.rand(()))))  # noqa: NPY002
        assert random.getstate() == before[0]
        assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), before[2])
    assert draws[0] == draws[1]


def test_the_seed_decides_the_weights_and_nothing_else(resnet: victims.Victim) -> None:
    torch.rand(3)
    again = victims.load(f"{RESNET}@random:0")
    other = victims.load(f"{RESNET}@random:1")
    assert again.weights_sha256 == resnet.weights_sha256
    assert other.weights_sha256 != resnet.weights_sha256
    assert torch.equal(again.model.conv1.weight, resnet.model.conv1.weight)


def test_the_hash_is_over_names_types_shapes_and_bytes() -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
        model.bias.fill_(3.0)
    expected = hashlib.sha256(
        b"bias\0torch.float32\0(1,)\0" + np.array([3.0], "<f4").tobytes()
        + b"weight\0torch.float32\0(1, 2)\0" + np.array([1.0, 2.0], "<f4").tobytes()
    ).hexdigest()  # fmt: skip
    assert state_sha256(model) == expected


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("torchvison/resnet18", "'torchvision'"),
        ("resnet18", "'torchvision/resnet18'"),
        ("torchvision/resnet19", "'resnet18'"),
        ("timm/resnet_18", "'resnet18'"),
        ("open_clip/ViT-B-33", "'ViT-B-32'"),
        ("hf/dinov", "'dinov2'"),
        ("zoo/mobilenet", "'mobilenet_v2'"),
        ("torchvision/", "SOURCE/NAME[@WEIGHTS]"),
        ("torchvision/resnet18@", "SOURCE/NAME[@WEIGHTS]"),
        ("module/nowhere", "module/path/to/file.py:function"),
        ("", "SOURCE/NAME[@WEIGHTS]"),
    ],
)
def test_an_unknown_victim_gets_one_line_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(victims.UnknownVictimError) as caught:
        victims.load(name)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (f"{RESNET}@IMAGENET1K_V3", "'IMAGENET1K_V1'"),
        ("timm/resnet18@a1_in2k", "'a1_in1k'"),
        ("timm/resnet18.a1_in2k", "'a1_in1k'"),
        ("timm/resnet18.a1_in1k@a2_in1k", "type one"),
        ("open_clip/RN50@opnai", "@openai"),
        ("open_clip/RN50", "@openai"),
        ("zoo/mobilenet_v2@IMAGENET1K_V2", "'IMAGENET1K_V1'"),
        ("hf/vit", "@random"),
        ("hf/vit@main", "@random"),
        (f"{RESNET}@random:-1", "whole number"),
        (f"{RESNET}@random:x", "whole number"),
        (f"{RESNET}@missing.safetensors", "no weights file missing.safetensors"),
    ],
)
def test_unknown_weights_get_one_line_with_what_to_type(name: str, hint: str) -> None:
    with pytest.raises(victims.WeightsError) as caught:
        victims.load(name)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_weights_is_what_the_victim_holds(resnet: victims.Victim, tmp_path: Path) -> None:
    state = resnet.model.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.th"
    )
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    plain = victims.load(f"{RESNET}@{tmp_path}/w.safetensors")
    wrapped = victims.load(f"{RESNET}@{tmp_path}/w.th")
    halved = victims.load(f"{RESNET}@{tmp_path}/half.safetensors")
    assert plain.weights_sha256 == wrapped.weights_sha256 == resnet.weights_sha256
    assert plain.name == f"{RESNET}@{tmp_path}/w.safetensors"
    assert halved.model.conv1.weight.dtype == torch.float32
    assert torch.equal(halved.model.conv1.weight, half["conv1.weight"].float())


def test_a_mismatch_is_counted_and_its_first_named(resnet: victims.Victim, tmp_path: Path) -> None:
    state = dict(resnet.model.state_dict())
    del state["conv1.weight"], state["bn1.weight"]
    state["fc.weight"] = torch.zeros(10, 512)
    state["extra.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(victims.WeightsError) as caught:
        victims.load(f"{RESNET}@{tmp_path}/w.safetensors")
    text = str(caught.value)
    assert "2 of 122 tensors missing (first conv1.weight)" in text
    assert "1 unexpected (first extra.weight)" in text
    assert "1 of another shape (first fc.weight: (10, 512), expected (1000, 512))" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_cannot_be_cut(resnet: victims.Victim, tmp_path: Path, value: float) -> None:
    state = {name: tensor.clone() for name, tensor in resnet.model.state_dict().items()}
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    save_file(state, tmp_path / "w.safetensors")
    victim = victims.load(f"{RESNET}@{tmp_path}/w.safetensors")
    with pytest.raises(victims.WeightsError, match=r"layer2\.0\.conv1\.weight holds 1 NaN or infinite"):
        cut(victim, "layer1")


class Payload:
    """What a hostile checkpoint does when it is unpickled without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, suffix: str) -> None:
    bare = tmp_path / f"bare{suffix}"
    bare.write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=4))  # torch warns of this protocol
    with pytest.raises(victims.WeightsError, match="could run code"):
        victims.load(f"{RESNET}@{bare}")
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / f"w{suffix}")
    with pytest.raises(victims.WeightsError, match="could run code"):
        victims.load(f"{RESNET}@{tmp_path}/w{suffix}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 torn"])
def test_a_damaged_file_is_one_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(victims.WeightsError) as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(victims.WeightsError, match="holds a list; expected a state dict"):
        read_state(tmp_path / "list.pt")
    with pytest.raises(victims.WeightsError, match="holds no tensors"):
        read_state(tmp_path / "empty.pt")


def test_torchvisions_own_weights_are_taken_from_its_cache(
    resnet: victims.Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(resnet.model.state_dict(), folder / "resnet18-f37072fd.pth")
    own = victims.load(RESNET)
    assert own.name == f"{RESNET}@IMAGENET1K_V1"
    assert own.weights_sha256 == resnet.weights_sha256
    assert own.classes == tuple(models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
    torch.save(Payload(tmp_path / "ran"), folder / "resnet18-f37072fd.pth")
    with pytest.raises(victims.WeightsError, match="could run code"):
        victims.load(RESNET)
    assert not (tmp_path / "ran").exists()


def test_a_size_changes_the_input_where_the_network_takes_it() -> None:
    small = victims.load("torchvision/mobilenet_v3_small@random", size=96)
    assert small.image_shape == (3, 96, 96)
    assert "96x96" in small.preprocessing
    vit = victims.load("timm/test_vit@random", size=64)
    with torch.no_grad():
        assert vit.model(vit.normalise(torch.rand(1, 3, 64, 64))).shape == (1, 1000)


def test_a_size_that_the_network_does_not_take_is_one_line() -> None:
    with pytest.raises(SeepageError, match="above 0"):
        victims.load(f"{RESNET}@random", size=0)
    with pytest.raises(SeepageError, match="does not take pictures of 8x8"):
        victims.load("torchvision/vit_b_32@random", size=8)
    with pytest.raises(SeepageError, match="does not take pictures of 2x2"):
        victims.load("torchvision/alexnet@random", size=2)


def test_a_file_may_lie_at_home(resnet: victims.Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(resnet.model.state_dict(), tmp_path / "w.safetensors")
    assert victims.load(f"{RESNET}@~/w.safetensors").weights_sha256 == resnet.weights_sha256


def test_a_plug_in_needs_no_examples() -> None:
    @registry.register("victim", "bare")
    @dataclass(frozen=True)
    class Bare:
        about: ClassVar[str] = "a source of nothing"

        def names(self) -> tuple[str, ...]:
            return ()

        def build(self, request: Request) -> Network:
            raise NotImplementedError

    try:
        assert {source.name: source.examples for source in victims.known()}["bare"] == {}
    finally:
        del registry._components["victim"]["bare"]


def test_known_lists_every_source_with_names_to_type() -> None:
    known = {source.name: source for source in victims.known()}
    assert set(known) >= {"torchvision", "timm", "open_clip", "hf", "zoo", "module"}
    assert "resnet50" in known["torchvision"].names
    assert len(known["timm"].names) > 500
    assert {"clip", "siglip", "vit", "dinov2", "resnet", "blip-2", "llava"} <= set(known["hf"].names)
    assert set(known["zoo"].names) == {
        *("mobilenet_v2", "efficientnet_lite0"),
        *("cifar_resnet20", "cifar_resnet56", "cifar_preact_resnet20", "cifar_preact_resnet56"),
        *("ir_50", "ir_152", "mobilefacenet"),
    }
    for source in known.values():
        assert all(name.startswith(f"{source.name}/") and sentence for name, sentence in source.examples.items())
