"""The CIFAR ResNets: published weights fit, blocks are their formulas, cuts are legal, shipped weights work offline."""

from __future__ import annotations

import io
import socket
import zipfile
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from seepage import victims
from seepage.seeding import state_sha256
from seepage.victims import cifar
from seepage.victims.cut import cut, law
from seepage.victims.layers import boundaries, default_layers, layers, look
from seepage.victims.segments import relative_error
from seepage.victims.zoo import _ENTRIES

NAMES = ("cifar_resnet20", "cifar_resnet56", "cifar_preact_resnet20", "cifar_preact_resnet56")
SHIPPED = ("cifar_resnet20", "cifar_preact_resnet20")
STEM = {"cifar_resnet20": "relu", "cifar_preact_resnet20": "conv1"}


def norm(features: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    """Return batch norm in evaluation as it is written in a book."""
    shape = (1, -1, 1, 1)
    scaled = (features - layer.running_mean.view(shape)) / (layer.running_var.view(shape) + 1e-5).sqrt()
    return scaled * layer.weight.view(shape) + layer.bias.view(shape)


def convolve(features: Tensor, layer: nn.Conv2d, stride: int) -> Tensor:
    return F.conv2d(features, layer.weight, None, stride, 1)


def skip(features: Tensor, outputs: int, stride: int) -> Tensor:
    """Return every second pixel in the middle channels of zeros, written as an assignment."""
    small = features[:, :, ::stride, ::stride]
    widened = torch.zeros(len(small), outputs, *small.shape[2:])
    before = (outputs - small.shape[1]) // 2
    widened[:, before : before + small.shape[1]] = small
    return widened


def shake(model: nn.Module, seed: int = 3) -> nn.Module:
    """Give batch norms statistics that are not 0 and 1, positive scales among negative ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval().requires_grad_(False)


def hand_count(blocks: int, preactivation: bool) -> int:
    """Count the weights by stage: two 3x3 convolutions a block, two numbers a normalised channel."""
    convolutions = 9 * 3 * 16
    normalised = 64 if preactivation else 16
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        convolutions += 9 * (inputs * outputs + (2 * blocks - 1) * outputs * outputs)
        normalised += 2 * blocks * outputs + (inputs - outputs if preactivation else 0)
    return convolutions + 2 * normalised + 64 * 10 + 10


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_weights_is_the_published_one(name: str) -> None:
    model = cifar.NETWORKS[name]()
    found = sum(weight.numel() for weight in model.parameters())
    assert found == hand_count(9 if "56" in name else 3, "preact" in name)
    published = {"cifar_resnet20": 269_722, "cifar_resnet56": 853_018}
    assert found == published.get(name, found)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(16, 16, 1), (16, 32, 2)])
def test_a_preactivation_block_is_its_formula(inputs: int, outputs: int, stride: int) -> None:
    block = shake(cifar.PreActivationBlock(inputs, outputs, stride))
    x = torch.randn(2, inputs, 8, 8)
    inner = convolve(norm(x, block.bn1).clamp(min=0), block.conv1, stride)
    expected = skip(x, outputs, stride) + convolve(norm(inner, block.bn2).clamp(min=0), block.conv2, 1)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    assert block(x).min() < 0


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(16, 16, 1), (32, 64, 2)])
def test_a_postactivation_block_is_its_formula(inputs: int, outputs: int, stride: int) -> None:
    block = shake(cifar.PostActivationBlock(inputs, outputs, stride))
    x = torch.randn(2, inputs, 8, 8)
    inner = norm(convolve(x, block.conv1, stride), block.bn1).clamp(min=0)
    expected = (skip(x, outputs, stride) + norm(convolve(inner, block.conv2, 1), block.bn2)).clamp(min=0)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_every_activation_is_a_module_of_its_own_and_overwrites_nothing() -> None:
    calls: list[nn.Module] = []
    for name in NAMES:
        model = cifar.NETWORKS[name]()
        fired = [module for module in model.modules() if isinstance(module, nn.ReLU)]
        assert len(fired) == 2 * (27 if "56" in name else 9) + 1
        assert not any(module.inplace for module in fired)
        for module in fired:
            module.register_forward_hook(lambda module, *_: calls.append(module))
        model.eval()(torch.rand(1, 3, 32, 32))
        assert len(calls) == len(set(calls)) == len(fired)
        calls.clear()


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_preact_resnet20"])
def test_the_law_and_the_segments_hold_at_every_boundary(name: str) -> None:
    victim = victims.load(f"zoo/{name}@random:1")
    shake(victim.model)
    seen = look(victim)
    calls = boundaries(victim, seen)
    stages = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    closing = ["relu"] if "preact" in name else []
    assert [call.label for call in calls] == [STEM[name], *stages, *closing, "pool", "linear"]
    assert all(found.holds for found in law(victim, [call.site for call in calls]).values())
    images = torch.rand(3, 3, 32, 32)
    for layer in layers(victim):
        split = cut(victim, layer.name)
        features = images
        for segment in split.prefix.segments:
            features = segment.module(features)
        assert relative_error(features, split.prefix(images)) < 1e-5
        assert relative_error(split.finish(split.leak(images)), victim.model(victim.normalise(images))) < 1e-5


def test_the_cuts_have_their_kinds_and_the_defaults_are_stem_and_stages() -> None:
    for name, kind, steps in (
        ("cifar_resnet20", "post-activation", "post-activation"),
        ("cifar_preact_resnet20", "pre-activation", "downsample"),
    ):
        victim = victims.load(f"zoo/{name}@random")
        assert default_layers(victim) == (STEM[name], "layer1.2", "layer2.2", "layer3.2")
        kinds = {layer.name: layer.kind for layer in layers(victim)}
        for block in ("layer1.0", "layer1.2", "layer2.1", "layer3.2"):
            assert kinds[block] == kind
        assert kinds["layer2.0"] == kinds["layer3.0"] == steps
        assert kinds["linear"] == "head"
        assert kinds["pool"] == "pool"
        if "preact" in name:
            assert kinds["conv1"] == "stem"


@pytest.mark.parametrize("name", ["cifar_resnet56", "cifar_preact_resnet56"])
def test_a_network_without_weights_says_what_to_type(name: str, tmp_path: Path) -> None:
    with pytest.raises(victims.WeightsError) as error:
        victims.load(f"zoo/{name}")
    assert f"type zoo/{name}@random or zoo/{name}@path/file.safetensors" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(victims.WeightsError, match="no weights 'CIFAR10'"):
        victims.load(f"zoo/{name}@CIFAR10")
    victim = victims.load(f"zoo/{name}@random:2")
    save_file(victim.model.state_dict(), tmp_path / "w.safetensors")
    loaded = victims.load(f"zoo/{name}@{tmp_path}/w.safetensors")
    assert loaded.weights_sha256 == victim.weights_sha256
    assert loaded.classes is None
    assert loaded.scores


def test_a_picture_of_32_pixels_is_seen_as_it_is_and_normalised_as_imagenets() -> None:
    victim = victims.load("zoo/cifar_resnet20@random")
    pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view = victim.picture(Image.fromarray(pixels.numpy()))
    assert torch.equal(view, pixels.permute(2, 0, 1) / 255)
    expected = (view - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    torch.testing.assert_close(victim.normalise(view[None])[0], expected)


def refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a shipped victim went to the network")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_load_offline(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path))
    victim = victims.load(f"zoo/{name}")
    assert victim.name == f"zoo/{name}@CIFAR10"
    assert victim.classes == cifar.CLASSES
    assert victim.weights_sha256 == state_sha256(victim.model) == victims.load(f"zoo/{name}@CIFAR10").weights_sha256
    assert victim.weights_sha256 != victims.load(f"zoo/{name}@random").weights_sha256
    assert all(weight.dtype == torch.float32 for weight in victim.model.parameters())
    scores = victim.model(victim.normalise(torch.rand(4, 3, 32, 32)))
    assert scores.shape == (4, 10)
    assert scores.isfinite().all()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "match"), [(None, "is installed without its weights"), (b"{}", "has damaged weights")]
)
def test_missing_and_damaged_shipped_weights_are_one_line(
    content: bytes | None, match: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "weights").mkdir()
    if content is not None:
        (tmp_path / "weights" / "cifar_resnet20.safetensors").write_bytes(content)
    monkeypatch.setattr("seepage.victims.zoo.files", lambda package: tmp_path)
    with pytest.raises(victims.WeightsError, match=match) as error:
        victims.load("zoo/cifar_resnet20")
    assert "type zoo/cifar_resnet20@random" in str(error.value)


def test_shipped_weights_stay_small() -> None:
    folder = Path(cifar.__file__).parent / "weights"
    shipped = sorted(folder.glob("*.safetensors"))
    assert {path.stem for path in shipped} == {
        name for name, entry in _ENTRIES.items() if entry.own and entry.own.tag == "CIFAR10"
    }
    assert all(path.stat().st_size < 1_000_000 for path in shipped)


def accuracy(victim: victims.Victim, archive: Path, count: int = 500) -> float:
    """Return how often the victim is right on the same number of test files of every class."""
    right = 0
    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.startswith("test/") and name.endswith(".jpg"))
        for name in names[:: len(names) // count][:count]:
            view = victim.picture(Image.open(io.BytesIO(files.read(name))))
            with torch.no_grad():
                best = int(victim.model(victim.normalise(view[None])).argmax())
            right += cifar.CLASSES[best] == name.split("/")[1]
    return right / count


@pytest.mark.research_data
@pytest.mark.parametrize(("name", "file"), [("20", "resnet20-12fca82f.th"), ("56", "resnet56-4bfd9763.th")])
def test_published_weights_recognise_pictures(name: str, file: str, research_data: Path) -> None:
    victim = victims.load(f"zoo/cifar_resnet{name}@{research_data}/weights/{file}")
    assert accuracy(victim, research_data / "cifar10_jpeg.zip") >= 0.75


@pytest.mark.research_data
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_recognise_pictures(name: str, research_data: Path) -> None:
    assert accuracy(victims.load(f"zoo/{name}"), research_data / "cifar10_jpeg.zip") >= 0.75
