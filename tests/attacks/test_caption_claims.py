"""When a claim of CapRecover's counts as reproduced."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("caption_claims")


def said(label: str, layer: str, score: float) -> dict:
    cider = {"corpus": score, "ci_low": score - 0.02, "ci_high": score + 0.02}
    return {
        "victim": "zoo/mobilenet_v2", "label": label, "layer": layer, "status": "done", "summary": {"cider": cider},
    }  # fmt: skip


def test_depth_says_more_where_every_step_rises(claims: ModuleType) -> None:
    """On the same photographs: intervals of two means may overlap where every photograph's caption is better."""

    def verdict(*lows: float) -> str:
        layers = ("features.3", "features.13", "features.17")
        rows = [said(claims.THREE, layer, 0.2) for layer in layers]
        for row, low in zip(rows, lows, strict=False):
            row["deeper"] = {"difference": low + 0.01, "low": low, "high": low + 0.02}
        return claims.rises_with_depth({"captions": {"rows": rows[::-1]}}).verdict

    assert verdict(0.02, 0.01) == "reproduced"
    assert verdict(0.02, -0.005) == "partly"
    assert verdict(-0.1, -0.2) == "contradicted"
    assert verdict() == "not tested"


def test_an_early_leak_holds_less_where_running_it_on_says_less(claims: ModuleType) -> None:
    def verdict(early: float) -> str:
        rows = [said(claims.ON, "features.3", early), said(claims.LATE, "features.17", 0.37)]
        return claims.early_holds_less({"captions": {"rows": rows}}).verdict

    assert verdict(0.1) == "reproduced"
    assert verdict(0.37) == "contradicted"


def test_a_step_is_told_by_the_same_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    captions = importlib.import_module("captions")

    def cell(layer: str, values: dict[str, float]) -> SimpleNamespace:
        samples = [SimpleNamespace(image_sha256=key, metrics={"cider": value}) for key, value in values.items()]
        samples.append(SimpleNamespace(image_sha256="failed", metrics={}))
        return SimpleNamespace(spec=SimpleNamespace(layer=layer), samples=samples)

    early = cell("early", {f"{row}": float(row) for row in range(50)})
    late = cell("late", {f"{row}": row + 0.1 for row in reversed(range(60))})
    found = captions.step(early, late)
    assert (found["layer"], found["n"]) == ("late", 50)
    assert [found[key] for key in ("difference", "low", "high")] == pytest.approx([0.1] * 3)


def test_noise_protects_where_who_knows_of_it_reads_less(claims: ModuleType) -> None:
    def found(known: float) -> Any:
        values = {"none": 70.0, "naive": 22.0, "aware:estimate": known}
        place = {"victim": "ResNet-20", "layer": "layer2.2", "reads": "labels", "attack": "probe", "status": "done"}
        place |= {"scale": 1.0}
        rows = [{**place, "attacker": who, "value": [value, value - 3, value + 3]} for who, value in values.items()]
        # Four times the noise is not the paper's.
        rows.append({**rows[-1], "scale": 4.0, "attacker": "aware:retrained", "value": [70.0, 67.0, 73.0]})
        return claims.noise_protects({"noise": {"rows": rows}})

    assert found(30.0).verdict == "reproduced"
    assert "ResNet-20 layer2.2 labels probe: 30 in place of 70" in found(30.0).ours
    assert found(69.0).verdict == "contradicted"
    assert "in place of" not in found(69.0).ours


def test_the_authors_scheme_stands_beside_ours_of_the_same_cuts_and_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    captions = importlib.import_module("captions")
    everything = captions.rows(tmp_path)
    pairs = [(row, captions.counterpart(row, everything)) for row in everything]
    theirs = [(row, ours) for row, ours in pairs if ours is not None]
    assert [row.label for row, _ in theirs] == [row.label for row in everything if row.training.authors]
    assert len(theirs) == 4
    for row, ours in theirs:
        assert (ours.layer, ours.training.layers, ours.training.steps) == (
            row.layer,
            row.training.layers,
            row.training.steps,
        )
        assert not ours.training.authors
        assert ours.options == row.options == ""


@pytest.mark.parametrize(("top", "verdict"), [(0.778, "not tested"), (0.93, "partly")])
def test_another_tower_on_lossy_files_does_not_contradict(claims: ModuleType, top: float, verdict: str) -> None:
    row = {"status": "done", "line": ["MobileNetV2", "features.17", "probe"], "summary": {"top1": {"mean": top}}}
    own = row | {"line": ["ResNet-20", "layer3.2", "probe"], "summary": {"top1": {"mean": 0.99}}}
    found = claims.labels({"labels": [row, own]})
    assert found.verdict == verdict
    assert "ResNet-20" not in found.ours
    assert claims.labels({"labels": [own]}).verdict == "not tested"
