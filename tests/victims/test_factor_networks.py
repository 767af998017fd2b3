"""The networks of the study of factors: alike but for one of them, and what the study makes of their cells."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch

from seepage import victims
from seepage.schema import Cell, Sample, Spec
from seepage.victims.layers import layers
from seepage.victims.victim import UnknownVictimError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def networks() -> ModuleType:
    return import_module("factor_networks")


@pytest.fixture
def study() -> ModuleType:
    return import_module("factors")


def test_every_network_is_a_victim_that_can_be_cut_behind_each_block(networks: ModuleType) -> None:
    depth = {}
    for name, design in networks.DESIGNS.items():
        victim = victims.load(f"module/factor_networks:{name}@random:3")
        cuts = {layer.name: layer.shape for layer in layers(victim)}
        assert [cut for cut in cuts if cut.startswith("stages.")] == [f"stages.{n}" for n in range(5)]
        side = 32 if design.pooling == "none" else 16
        assert (cuts["stages.2"], cuts["stages.4"]) == ((16, 32, 32), (32, side, side))
        depth[name] = sum(isinstance(module, torch.nn.Conv2d) for module in victim.model.modules())
    assert set(depth.values()) == {9}
    with pytest.raises(UnknownVictimError):
        victims.load("module/factor_networks:stride-relu-kaiming-7")


def test_twins_have_the_same_weights_and_differ_by_the_skip_alone(networks: ModuleType) -> None:
    states = [
        victims.load(f"module/factor_networks:{design.name}@random:5").model.state_dict()
        for design in networks.FACTORS["skip"]
    ]
    for state in states[1:]:
        assert all(torch.equal(tensor, state[name]) for name, tensor in states[0].items())
    x = torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        branch = None
        for design in networks.FACTORS["skip"]:
            torch.manual_seed(0)
            block = networks.Block(design, 16, 32, True).eval()
            conv1, conv2 = block.conv1.weight, block.conv2.weight
            inner = torch.nn.functional.conv2d(x, conv1, stride=2, padding=1).relu() / (1 + 1e-5) ** 0.5
            inner = torch.nn.functional.conv2d(inner, conv2, padding=1) / (1 + 1e-5) ** 0.5
            branch = inner if branch is None else branch
            kept = torch.zeros(2, 32, 4, 4)
            kept[:, 8:24] = x[:, :, ::2, ::2]
            expected = (design.skip * kept + branch).relu()
            torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_factors_change_one_thing_each(networks: ModuleType) -> None:
    for factor, designs in networks.FACTORS.items():
        values = [vars(design) for design in designs]
        for field in values[0]:
            assert len({one[field] for one in values}) == (len(designs) if field == factor else 1)
        assert networks.BASE in designs


def test_directions_are_counted_where_they_are_known() -> None:
    told = import_module("factor_spectrum").told
    scale = torch.ones(3, 4, 4)
    scale[0] = 0.0
    scale[1, 0] = 1e-4
    scale[1, 1] = 1e-2
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    # 32 of 48 pixels count, four of them hardly at all; squares change by the pixel itself.
    assert told(lambda x: x * scale, image) == pytest.approx(28 / 48)
    assert told(lambda x: (0.5 + x).square(), image) == 1.0


def cell(psnr: list[float], residual: float) -> Cell:
    samples = tuple(
        Sample(id=str(n), image_sha256="0" * 64, status="stopped", residual=residual, metrics={"psnr": value})
        for n, value in enumerate(psnr)
    )
    spec = Spec(victim="v", weights_sha256="0", layer="l", attack="joint", data="d", manifest_sha256="0")
    return Cell(key="k", status="done", spec=spec, samples=samples)


def test_a_picture_counts_once_however_many_networks_it_went_through(study: ModuleType) -> None:
    found = study._over_pictures([cell([10.0, 30.0], 0.1), cell([20.0, 50.0], 0.1)], "psnr")
    assert (found.n, found.min, found.mean, found.max) == (2, 15.0, 27.5, 40.0)


def made_up(attack: str, level: str, psnr: float) -> dict[str, object]:
    stats = {"mean": psnr, "median": psnr, "min": psnr, "max": psnr, "worst": psnr, "ci_low": psnr - 2}
    return {
        "factor": "skip",
        "level": level,
        "trained": level == "1",
        "accuracy": 0.6 if level == "1" else None,
        "told": 0.75 if level == "1" else None,
        "layer": "stages.4",
        "shape": [32, 16, 16],
        "attack": attack,
        "networks": 2,
        "psnr": stats | {"ci_high": psnr + 2, "n": 16},
        "ssim": stats | {"ci_high": psnr, "n": 16},
        "residual": 0.01,
        "controls": {"mean_picture": 11.0, "prior": 12.5},
        "passes": 700,
    }


def test_table_and_figure_hold_each_attack_at_its_place(study: ModuleType) -> None:
    records = [made_up("joint", "0", 40.0), made_up("rmle", "0", 20.0), made_up("joint", "1", 30.0)]
    lines = [line for line in study.table(records).splitlines() if line.startswith("| skip")]
    assert [line.count("|") for line in lines] == [14, 14]
    assert "| 0 | random, 2 seeds | – | four blocks | 8,192 |  | 16 | 12.5 | 40.0 [38.0, 42.0] |" in lines[0]
    assert "| 20.0 [18.0, 22.0] |" in lines[0]
    assert "| 1 | trained | 60.0 % | four blocks | 8,192 | 75 % | 16 |" in lines[1]
    svg = ElementTree.fromstring(study.chart(records, study.ATTACKS))
    dots = [dot for dot in svg.iter() if dot.tag.endswith("circle") and dot.get("r") == "3.5"]
    places = [float(dot.get("cx") or "nan") for dot in dots]
    assert places[1] < places[2] < places[0]
    assert places[0] - places[2] == pytest.approx(places[2] - places[1], abs=0.2)
