"""When a claim of CapRecover's counts as reproduced."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

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
    def verdict(*scores: float) -> str:
        layers = ("features.3", "features.13", "features.17")
        rows = [said(claims.THREE, layer, score) for layer, score in zip(layers, scores, strict=True)]
        return claims.rises_with_depth({"captions": {"rows": rows[::-1]}}).verdict

    assert verdict(0.1, 0.2, 0.3) == "reproduced"
    assert verdict(0.1, 0.2, 0.22) == "partly"
    assert verdict(0.3, 0.2, 0.1) == "contradicted"


def test_an_early_leak_holds_less_where_running_it_on_says_less(claims: ModuleType) -> None:
    def verdict(early: float) -> str:
        rows = [said(claims.ON, "features.3", early), said(claims.LATE, "features.17", 0.37)]
        return claims.early_holds_less({"captions": {"rows": rows}}).verdict

    assert verdict(0.1) == "reproduced"
    assert verdict(0.37) == "contradicted"


def test_noise_protects_where_who_knows_of_it_reads_less(claims: ModuleType) -> None:
    def verdict(known: float) -> str:
        values = {"none": 70.0, "naive": 22.0, "aware:estimate": known}
        place = {"victim": "ResNet-20", "layer": "layer2.2", "reads": "labels", "attack": "probe", "status": "done"}
        place |= {"scale": 1.0}
        rows = [{**place, "attacker": who, "value": [value, value - 3, value + 3]} for who, value in values.items()]
        # Four times the noise is not the paper's.
        rows.append({**rows[-1], "scale": 4.0, "attacker": "aware:retrained", "value": [70.0, 67.0, 73.0]})
        return claims.noise_protects({"noise": {"rows": rows}}).verdict

    assert verdict(30.0) == "reproduced"
    assert verdict(69.0) == "contradicted"
