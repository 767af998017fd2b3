"""CapRecover's noise in every reading: what the benchmark runs, and what it says of what came back."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from seepage import registry
from seepage.types import Leak, LeakHeader


@pytest.fixture(scope="module")
def noise() -> Iterator[Any]:
    """The script; what it registers is taken back."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    kinds: tuple[registry.Kind, ...] = ("defense", "dataset")
    before = {kind: set(registry.names(kind)) for kind in kinds}
    yield importlib.import_module("noise")
    for kind in kinds:
        for name in set(registry.names(kind)) - before[kind]:
            del registry._components[kind][name]
    sys.modules.pop("noise")


def said(attacker: str, recovery: tuple[float, float, float], **other: object) -> dict[str, Any]:
    place = {"victim": "v", "layer": "l", "reads": "labels", "attack": "probe", "scale": 1.0, "attacker": attacker}
    found = {"status": "done", "n": 9, "value": [50.0, 40.0, 60.0], "unit": " %", "control": ["prior", 10.0]}
    return {**place, **found, "recovery": list(recovery), **other}


def test_every_reading_has_its_row_after_the_undefended_one(noise: Any) -> None:
    rows = noise.rows()
    assert len({row.name for row in rows}) == len(rows)
    seen: set[tuple[str, str, str, str]] = set()
    for row in rows:
        place = (row.victim, row.layer, row.reads, row.attack)
        assert row.attacker == "none" or place in seen
        seen |= {place} if row.attacker == "none" else set()
        assert (row.scale == 0) == (row.attacker == "none")
    for victim, layers in noise.CUTS.items():
        for layer in layers:
            here = [row for row in rows if (row.victim, row.layer, row.scale) == (victim, layer, 1.0)]
            readings = {"naive", "aware:estimate", "aware:retrained", "repeated"}
            assert {row.attacker for row in here if row.attack == "probe:kind=conv"} == readings
            likely = {"naive", "aware:estimate", "aware:likelihood"}
            assert {row.attacker for row in here if row.attack == "joint"} == likely


def test_a_verdict_is_on_which_side_of_half_the_interval_lies(noise: Any) -> None:
    bare = said("none", (0.6, 0.5, 0.7))
    assert noise.verdict(said("naive", (0.1, 0.0, 0.29)), bare) == "collapses"
    assert noise.verdict(said("naive", (0.5, 0.31, 0.6)), bare) == "recovers"
    assert noise.verdict(said("naive", (0.3, 0.2, 0.4)), bare) == "in between"
    assert noise.verdict(bare, bare) == ""
    nothing = said("none", (0.02, -0.1, 0.1))
    assert noise.verdict(said("naive", (0.5, 0.4, 0.6)), nothing) == "nothing comes back without noise"
    assert noise.verdict(said("naive", (0.5, 0.4, 0.6)), None) == "–"
    line = noise.line(said("naive", (0.5, 0.31, 0.6)), [bare])
    assert (
        "clean features, nothing removed | 9 | 50.0 % [40.0, 60.0] | 10.0 % (prior) | 0.50 [0.31, 0.60] | recov" in line
    )


def test_noise_that_is_left_is_the_same_noise_that_nobody_takes_away(noise: Any) -> None:
    leak = Leak(torch.zeros(1, 4), LeakHeader("v", "", "l", ""))
    shift, left = noise.NoiseShift(scale=2.0), noise.NoiseLeft(scale=2.0)
    sent, secret = shift.protect(leak, [torch.Generator().manual_seed(3)])
    stays, nothing = left.protect(leak, [torch.Generator().manual_seed(3)])
    assert torch.equal(sent.features, stays.features)
    assert nothing is None
    assert torch.equal(left.restore(stays, None).features, stays.features)
    assert torch.allclose(shift.restore(sent, secret).features, leak.features, atol=1e-6)


@pytest.mark.slow
def test_rows_run_end_to_end_and_are_read_again(
    noise: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "cifar10_jpeg.zip", "w") as archive:
        for split, count in (("train", 12), ("test", 3)):
            for number, name in enumerate(("airplane", "automobile", "bird")):
                for index in range(count):
                    pixels = random.integers(0, 60, (32, 32, 3)) + 70 * np.eye(3, dtype=int)[number]
                    path = tmp_path / "one.png"
                    Image.fromarray(pixels.astype(np.uint8)).save(path)
                    archive.write(path, f"{split}/{name}/{index:04d}.png")
    monkeypatch.setenv("SEEPAGE_DATA", str(tmp_path))
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))
    wanted = ["ResNet-20/layer3.2/labels/probe:kind=linear"]
    sizes = noise.Sizes(learned=36, labels=9, pixels=1)
    noise.main(wanted, listing=False, sizes=sizes, results=tmp_path / "results")
    found = json.loads((tmp_path / "results" / "noise.json").read_text())
    assert [one["attacker"] for one in found["rows"]] == [
        *("none", "naive", "aware:estimate", "aware:retrained", "repeated")
    ]
    assert {one["status"] for one in found["rows"]} == {"done"}
    assert found["rows"][0]["value"][0] == 100.0
    (kept,) = found["receivers"]
    assert kept["agreement"]["takes the noise away"] == 1.0
    assert set(kept["agreement"]) == set(noise.RECEIVERS)
    table = (tmp_path / "results" / "noise.md").read_text()
    before = sorted((tmp_path / "home" / "training").rglob("*.safetensors"))[0].stat().st_mtime_ns
    noise.main(wanted, listing=False, sizes=sizes, results=tmp_path / "results")
    assert (tmp_path / "results" / "noise.md").read_text() == table
    assert sorted((tmp_path / "home" / "training").rglob("*.safetensors"))[0].stat().st_mtime_ns == before
    assert "ResNet-20" in capsys.readouterr().out
