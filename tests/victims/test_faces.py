"""Face recognisers: names and sizes as published, units as written out, legal cuts, MobileFaceNet on real faces."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from seepage import data, victims
from seepage.pictures import read_picture
from seepage.types import SeepageError
from seepage.victims import faces
from seepage.victims.cut import cut, law
from seepage.victims.layers import boundaries, default_layers, layers, look
from seepage.victims.segments import relative_error


def norm(features: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    shape = (1, -1, 1, 1)
    scaled = (features - layer.running_mean.view(shape)) / (layer.running_var.view(shape) + 1e-5).sqrt()
    return scaled * layer.weight.view(shape) + layer.bias.view(shape)


def shake(model: nn.Module) -> nn.Module:
    """Give norms and slopes values that are not those they begin with."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
        elif isinstance(module, nn.PReLU):
            module.weight.data.uniform_(-0.5, 0.5, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 4, 2), (4, 6, 2)])
def test_a_face_unit_is_its_formula(inputs: int, outputs: int, stride: int) -> None:
    unit = shake(faces.FaceResidual(inputs, outputs, stride))
    x = torch.randn(2, inputs, 8, 8)
    first, conv1, slope, conv2, last = unit.res_layer
    inner = F.conv2d(norm(x, first), conv1.weight, None, 1, 1)
    inner = inner.clamp(min=0) + slope.weight.view(1, -1, 1, 1) * inner.clamp(max=0)
    inner = norm(F.conv2d(inner, conv2.weight, None, stride, 1), last)
    kept = x[:, :, ::stride, ::stride]
    if inputs != outputs:
        conv, after = unit.shortcut_layer
        kept = norm(torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], kept), after)
    torch.testing.assert_close(unit(x), kept + inner, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("expansion", [2, 4])
def test_a_linear_bottleneck_adds_only_where_the_shape_stays(expansion: int) -> None:
    x = torch.randn(2, 4, 8, 8)
    for outputs, stride in ((4, 1), (4, 2), (6, 1)):
        block = shake(faces.LinearBottleneck(4, outputs, stride, expansion))
        widen, filtered, project, last = block.conv
        inner = norm(F.conv2d(x, widen[0].weight), widen[1]).clamp(0, 6)
        inner = F.conv2d(inner, filtered[0].weight, None, stride, 1, groups=4 * expansion)
        inner = norm(F.conv2d(norm(inner, filtered[1]).clamp(0, 6), project.weight), last)
        expected = x + inner if (outputs, stride) == (4, 1) else inner
        torch.testing.assert_close(block(x), expected, atol=1e-4, rtol=1e-5)


def hand_count(units: tuple[int, ...]) -> int:
    """Count an IR network's weights by stage."""
    count = 3 * 64 * 9 + 3 * 64
    inputs = 64
    for outputs, number in zip((64, 128, 256, 512), units):
        for width in (inputs, *[outputs] * (number - 1)):
            count += 2 * width + 9 * width * outputs + outputs + 9 * outputs * outputs + 2 * outputs
            count += 0 if width == outputs else width * outputs + 2 * outputs
        inputs = outputs
    return count + 2 * 512 + 512 * 49 * 512 + 512 + 2 * 512


@pytest.mark.parametrize(("depth", "units"), [(50, (3, 4, 14, 3)), (152, (3, 8, 36, 3))])
def test_ir_networks_have_their_units_and_weights(depth: int, units: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = faces.FaceResNet(depth)
    assert sum(weight.numel() for weight in model.parameters()) == hand_count(units)
    assert len(model.body) == sum(units)
    names = set(model.state_dict())
    assert {
        "input_layer.0.weight",
        "input_layer.2.weight",
        "body.0.res_layer.4.running_var",
        f"body.{units[0]}.shortcut_layer.0.weight",
        "output_layer.3.weight",
        "output_layer.4.running_mean",
    } <= names
    assert not any(re.match(r"body\.0\.shortcut", name) for name in names)


def test_the_cuts_of_an_ir_network_are_its_units() -> None:
    victim = victims.load("zoo/ir_50@random")
    assert victim.image_shape == (3, 112, 112)
    assert victim.classes is None
    assert not victim.scores
    assert "mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in victim.preprocessing
    assert victim.boundaries == ("input_layer", *(f"body.{unit}" for unit in range(24)), "output_layer")
    assert default_layers(victim) == ("input_layer", "body.5", "body.11", "body.17", "body.23")
    kinds = {layer.name: layer.kind for layer in layers(victim)}
    assert {name for name, kind in kinds.items() if kind == "downsample"} == {"body.0", "body.3", "body.7", "body.21"}
    assert [kind for name, kind in kinds.items() if name.startswith("body")].count("face-residual") == 20
    seen = look(victim)
    shapes = {call.label: call.shape for call in seen.legal}
    assert shapes["body.23"] == (512, 7, 7)
    assert shapes["output_layer"] == (512,)


@pytest.mark.parametrize("name", ["zoo/ir_50", "zoo/mobilefacenet"])
def test_the_law_and_the_segments_hold_at_the_default_cuts(name: str) -> None:
    victim = victims.load(f"{name}@random:1")
    seen = look(victim)
    wanted = {*default_layers(victim), "bn", "output_layer"}
    calls = [call for call in boundaries(victim, seen) if call.label in wanted]
    assert len(calls) == 6
    assert all(found.holds for found in law(victim, [call.site for call in calls]).values())
    split = cut(victim, default_layers(victim)[-1])
    images = torch.rand(2, 3, 112, 112)
    features = images
    for segment in split.prefix.segments:
        features = segment.module(features)
    assert relative_error(features, split.prefix(images)) < 1e-5


def test_mobilefacenet_has_the_shapes_of_its_paper() -> None:
    victim = victims.load("zoo/mobilefacenet@random")
    found = {layer.name: layer for layer in layers(victim)}
    assert found["conv1"].shape == found["dw_conv"].shape == (64, 56, 56)
    assert found["features.0"].shape == found["features.4"].shape == (64, 28, 28)
    assert found["features.5"].shape == found["features.11"].shape == (128, 14, 14)
    assert found["features.12"].shape == found["features.14"].shape == (128, 7, 7)
    assert found["conv2"].shape == (512, 7, 7)
    assert found["gdconv"].shape == (512, 1, 1)
    assert found["bn"].shape == (128,)
    assert all(found[f"features.{block}"].kind == "linear-bottleneck" for block in range(15))
    assert "mean 0.485 0.456 0.406" in victim.preprocessing


@pytest.mark.parametrize("name", ["ir_50", "ir_152", "mobilefacenet"])
def test_a_face_recogniser_without_weights_says_what_to_type(name: str) -> None:
    with torch.device("meta"), pytest.raises(victims.WeightsError) as error:
        victims.load(f"zoo/{name}")
    assert str(error.value).endswith(f"type zoo/{name}@random or zoo/{name}@path/file.safetensors")
    with torch.device("meta"), pytest.raises(victims.WeightsError, match=f"zoo/{name} has no weights 'LFW'"):
        victims.load(f"zoo/{name}@LFW")


@pytest.mark.parametrize("size", [(92, 112), (112, 60), (112, 112), (1, 112)])
def test_a_face_is_seen_whole_with_its_edge_repeated(size: tuple[int, int]) -> None:
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    across, down = 112 - width, 112 - height
    expected = np.pad(pixels, ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0)), mode="edge")
    view = victims.load("zoo/mobilefacenet@random").picture(Image.fromarray(pixels))
    assert torch.equal(view, torch.from_numpy(expected).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("size", [(1, 1), (1, 150), (640, 480), (9000, 45)])
def test_pictures_of_any_shape_fill_the_square(size: tuple[int, int]) -> None:
    view = faces.arcface_view().transform(Image.new("RGB", size, (255, 0, 51)))
    assert view.shape == (3, 112, 112)
    assert torch.equal(view, torch.tensor([1.0, 0.0, 0.2]).view(3, 1, 1).expand(3, 112, 112))


def test_another_size_than_112_is_refused_in_one_line() -> None:
    with pytest.raises(SeepageError, match="does not take pictures of 160x160"):
        victims.load("zoo/mobilefacenet@random", size=160)


@pytest.mark.research_data
def test_mobilefacenets_weights_tell_people_apart(research_data: Path) -> None:
    victim = victims.load(f"zoo/mobilefacenet@{research_data}/weights/mobilefacenet_apache2.pt")
    people = data.open_source(f"orl/all@{research_data}/orl_faces.tgz")
    views = torch.stack([victim.picture(read_picture(entry.path)) for entry in people.entries])
    with torch.no_grad():
        embeddings = torch.cat([victim.model(victim.normalise(batch)) for batch in views.split(50)])
    assert embeddings.shape == (400, 128)
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    names = [entry.identity for entry in people.entries]
    number = [int(entry.path.stem) for entry in people.entries]
    gallery = [index for index in range(400) if number[index] <= 5]
    probes = [index for index in range(400) if number[index] > 5]
    assert rank1(unit, probes, gallery, names) > 0.95
    everybody = list(range(400))
    assert rank1(unit, everybody, everybody, names) > 0.98
    shuffled = unit[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    assert rank1(shuffled, probes, gallery, names) < 0.2


def rank1(unit: Tensor, probes: list[int], gallery: list[int], names: list[str | None]) -> float:
    """Return how often the most similar other picture shows the same person."""
    right = 0
    for probe in probes:
        others = [index for index in gallery if index != probe]
        right += names[others[int((unit[others] @ unit[probe]).argmax())]] == names[probe]
    return right / len(probes)
