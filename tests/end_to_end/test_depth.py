"""Leakage by depth: what a step from cut to cut is worth, and the page that shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seepage.audit.statistics import paired_difference
from seepage.report.depth import render, sentences
from seepage.schema import Cell, Sample, Spec, Stats
from seepage.studies.depth import curves, steps

Run = Callable[..., tuple[int, str, str]]


def cell(layer: str, values: list[float], *, recovery: float | None = 0.5, attack: str = "joint") -> Cell:
    samples = tuple(
        Sample(id=f"{row}", image_sha256=f"{row:064d}", status="stopped", metrics={"psnr": value})
        for row, value in enumerate(values)
    )
    mean = float(np.mean(values))
    stats = Stats(
        mean=mean, median=mean, min=min(values), max=max(values), worst=max(values), ci_low=mean - 1, ci_high=mean + 1,
        n=len(values), n_failed=0, recovery=recovery, recovery_low=0.4, recovery_high=0.6,
    )  # fmt: skip
    spec = Spec(
        victim="v", weights_sha256="ab", layer=layer, wire="fp32", attack=attack, attacker="none", effort="quick",
        access="white-box", auxiliary="none", data="d", manifest_sha256="cd", metrics=("psnr",), seed=0,
    )  # fmt: skip
    return Cell(key=layer + attack, status="done", spec=spec, samples=samples, summary={"psnr": stats, "mse": stats})


def test_a_paired_difference_knows_more_than_two_means() -> None:
    """Pictures differ by 10 dB, one cut from the next by 1: pairs show it, and its interval is the textbook's."""
    random = np.random.default_rng(3)
    first = random.normal(20, 10, 200)
    change = random.normal(-1, 0.5, 200)
    difference, low, high = paired_difference(first.tolist(), (first + change).tolist())
    assert difference == pytest.approx(change.mean())
    half = 1.96 * change.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((change.mean() - half, change.mean() + half), abs=0.02)
    with pytest.raises(ValueError, match="as many values before as after"):
        paired_difference([1.0], [])


def test_steps_follow_the_cuts_on_the_pictures_that_both_have() -> None:
    deep = cell("deep", [11.0, 12.5, 9.0])
    early = cell("early", [21.0, 22.0, 19.5, 40.0])
    drawn = curves([deep, early], ["early", "deep"])
    assert [point.layer for point in drawn[0].points] == ["early", "deep"]
    (step,) = steps([deep, early], drawn)
    assert (step.before, step.after, step.n, step.metric) == ("early", "deep", 3, "psnr")
    assert step.difference == pytest.approx((-10 - 9.5 - 10.5) / 3)
    assert step.says == "deeper leaks less"
    risen = [cell("early", [1.0, 2.0]), cell("deep", [2.0, 3.0])]
    assert steps(risen, curves(risen, ["early", "deep"]))[0].says == "deeper leaks more"
    mixed = [cell("early", [1.0, 2.0]), cell("deep", [2.0, 1.0])]
    assert steps(mixed, curves(mixed, ["early", "deep"]))[0].says == "no difference shown"


def test_what_has_no_control_is_not_drawn() -> None:
    assert curves([cell("early", [1.0], recovery=None), cell("deep", [2.0], recovery=None)], ["early", "deep"]) == ()


def test_a_metric_that_all_cuts_have_a_control_for_comes_first() -> None:
    """CIDEr has a ceiling only where every picture has two references: ROUGE-L is drawn then."""

    def captions(layer: str) -> Cell:
        bare = cell(layer, [1.0, 2.0], recovery=None, attack="caprecover")
        drawn = cell(layer, [0.1, 0.2], attack="caprecover").summary["psnr"]
        return bare.model_copy(update={"summary": {"cider": bare.summary["psnr"], "rouge_l": drawn}})

    (curve,) = curves([captions("early"), captions("deep")], ["early", "deep"])
    assert (curve.recovers, curve.metric, len(curve.points)) == ("captions", "rouge_l", 2)


def test_two_adapters_are_two_curves() -> None:
    """One read where it was trained, one that leaks are run on to, and another of the former."""
    attacks = {
        "caprecover:read=caption,adapter=a/one.safetensors,through=": "caprecover, adapter=a/one.safetensors",
        "caprecover:read=caption,adapter=b/one.safetensors,through=": "caprecover, adapter=b/one.safetensors",
        "caprecover:read=caption,adapter=a/one.safetensors,through=deep": "caprecover, run on to deep",
        "caprecover:read=words,adapter=a/one.safetensors,through=": "caprecover, words",
    }
    cells = [
        cell(layer, [float(place), float(place) + depth * (place + 1)], attack=attack)
        for place, attack in enumerate(attacks)
        for depth, layer in enumerate(("early", "deep"), start=1)
    ]
    drawn = curves(cells, ["early", "deep"])
    assert [curve.attack for curve in drawn] == list(attacks.values())
    assert [[point.layer for point in curve.points] for curve in drawn] == [["early", "deep"]] * 4
    assert [point.mean for point in drawn[2].points] == [3.5, 5.0]
    assert [(step.attack, step.difference) for step in steps(cells, drawn)] == [
        (name, 0.5 * (place + 1)) for place, name in enumerate(attacks.values())
    ]


def test_a_sentence_says_where_deeper_leaks_more() -> None:
    step = {"attack": "joint", "metric": "psnr", "n": 3, "difference": 1.0, "low": 0.5, "high": 2.0}
    record = {
        "curves": [{"recovers": "images", "attack": "joint", "metric": "psnr", "points": []}],
        "steps": [
            {**step, "before": "a", "after": "b", "says": "deeper leaks less"},
            {**step, "before": "b", "after": "c", "says": "deeper leaks more"},
        ],
    }
    assert sentences(record) == ["Pictures (joint): deeper leaks more from b to c."]
    record["steps"][1]["says"] = "deeper leaks less"
    assert sentences(record) == ["Pictures (joint): every deeper cut leaks less."]


@pytest.mark.assets
def test_the_command_draws_pictures_and_labels_from_the_same_leaks(seepage: Run, victim: str, tmp_path: Path) -> None:
    folders = []
    for name, seed in (("audited", 0), ("public", 1)):
        random, root = np.random.default_rng(seed), tmp_path / name
        for index in range(12):
            colour = np.eye(3)[index % 3] * 150 + 40 + random.normal(0, 12, (16, 16, 3))
            place = root / ("red", "green", "blue")[index % 3] / f"{index}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(colour.clip(0, 255).astype(np.uint8)).save(place)
        lines = [
            json.dumps({"file_name": str(path.relative_to(root)), "label": path.parent.name})
            for path in sorted(root.rglob("*.png"))
        ]
        (root / "metadata.jsonl").write_text("\n".join(lines))
        folders.append(root)
    where = ["--layer", "mix", "--layer", "pool", "--effort", "quick", "-o", tmp_path / "out"]
    code, out, error = seepage("depth", victim, folders[0], "--public", folders[1], *where)
    assert code == 0, error
    assert out.splitlines()[-1] == str(tmp_path / "out" / "depth.html")
    record = json.loads((tmp_path / "out" / "depth.json").read_text())
    assert [(curve["recovers"], curve["attack"]) for curve in record["curves"]] == [
        ("images", "joint"),
        ("labels", "probe, linear"),
    ]
    (pictures,) = [step for step in record["steps"] if step["attack"] == "joint"]
    assert pictures["says"] == "deeper leaks less"  # an invertible mixing of colours, then sixteen means
    assert pictures["difference"] < -20
    page = (tmp_path / "out" / "depth.html").read_text()
    assert page == render(record)
    assert re.search(r"<svg.*mix.*pool", page, re.DOTALL)
    assert (tmp_path / "out" / "report.html").exists()
    assert "captions" not in {curve["recovers"] for curve in record["curves"]}
    code, out, error = seepage("depth", victim, folders[0], "--layer", "mix")
    assert code == 2
    assert "has one depth alone" in error
