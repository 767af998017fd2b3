"""The adapter that ships: whole, told of by its card, and able to say what pictures show."""

from __future__ import annotations

from pathlib import Path

import pytest

from seepage import assets
from seepage.attacks.caprecover import adapter, language
from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.schema import Cell
from seepage.victims import load
from seepage.victims.layers import default_layers

NAME = "zoo/mobilenet_v2"
LAYERS = ("features.17",)
BY_DEPTH, DEPTHS = "zoo/mobilenet_v2_by_depth", ("features.3", "features.13", "features.17")


@pytest.mark.parametrize(("name", "layers"), [(NAME, LAYERS), (BY_DEPTH, DEPTHS)])
def test_it_is_told_of_by_its_card(name: str, layers: tuple[str, ...]) -> None:
    path = adapter.located(Path(name))
    header = adapter.read_header(path)
    assert adapter.shipped()[name] == header
    assert header.victim.startswith("zoo/mobilenet_v2")
    assert tuple(header.layers) == layers
    assert header.aligned
    # Of 6,000 files two are the same.
    assert len(header.train.hashes) == 5999
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert adapter.sha256(path) in card
    assert header.weights_sha256[:12] in card
    assert all(f"| {layer} | caprecover" in card for layer in layers)
    _, whole = adapter.read(path)
    assert whole == header


def test_together_they_are_small_and_read_early_middle_and_late() -> None:
    assert set(adapter.shipped()) == {NAME, BY_DEPTH}
    assert sum(adapter.located(Path(name)).stat().st_size for name in adapter.shipped()) < 32e6
    assert set(DEPTHS) <= set(default_layers(load("zoo/mobilenet_v2@random")))


def test_it_is_named_by_its_victim() -> None:
    (text,) = adapter.ready_for("zoo/mobilenet_v2")
    assert text == f"caprecover:adapter={NAME},through=features.17"
    assert adapter.ready_for(adapter.shipped()[NAME].victim) == (text,)
    assert adapter.ready_for("zoo/mobilenet") == ()
    assert adapter.ready_for("zoo/mobilenet_v2@elsewhere") == ()


@pytest.mark.slow
@pytest.mark.assets
def test_every_depth_is_read_where_it_is_cut(tmp_path: Path) -> None:
    """Black-box: no layer of the victim is run by who reads."""
    attack = f"caprecover:adapter={BY_DEPTH}"
    request = Request(layers=DEPTHS[:2], attacks=(attack,), effort="quick", limit=2)
    cells = run_audit(request, tmp_path, listener=lambda event: None)
    assert [cell.status for cell in cells] == ["done"] * 2
    assert {cell.spec.access for cell in cells} == {"black-box"}
    for cell in cells:
        assert cell.controls["shuffled"]["nll"].mean > cell.summary["nll"].mean
        assert all(one.recovered is not None and one.recovered.caption for one in cell.samples)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cell]:
    attack = adapter.ready_for("zoo/mobilenet_v2")
    request = Request(layers=("features.6", "features.17"), attacks=attack, effort="quick")
    found = run_audit(request, tmp_path_factory.mktemp("said"), listener=lambda event: None)
    return {cell.spec.layer: cell for cell in found}


@pytest.mark.assets
def test_a_late_leak_says_more_than_nothing_does(cells: dict[str, Cell]) -> None:
    cell = cells["features.17"]
    assert cell.status == "done", cell.message
    likelier = cell.controls["shuffled"]["nll"].mean - cell.summary["nll"].mean
    assert likelier > 0.1
    assert cell.summary["nll_gap"].mean > 0.1
    captions = [one.recovered.caption for one in cell.samples if one.recovered is not None]
    assert len(set(captions)) == len(cell.samples) == 4
    assert all(caption and 3 <= len(caption.split()) <= 30 for caption in captions)


@pytest.mark.assets
def test_an_earlier_leak_says_the_same(cells: dict[str, Cell]) -> None:
    early, late = cells["features.6"], cells["features.17"]
    assert early.status == "done", early.message
    assert early.summary["nll"].mean == pytest.approx(late.summary["nll"].mean, abs=0.01)
    said, known = ([one.recovered and one.recovered.caption for one in cell.samples] for cell in (early, late))
    assert sum(one == other for one, other in zip(said, known, strict=True)) >= 3


@pytest.mark.assets
def test_without_its_language_model_it_is_not_run_and_the_rest_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody asked for it by name: where its language model cannot be fetched, the audit goes on without words."""
    nowhere = (assets.Url("http://127.0.0.1:1/w"),)
    known = assets.TEXT["smollm2"]
    missing = assets.Asset("smollm2", "elsewhere.gguf", known.sha256, known.size, nowhere)
    monkeypatch.setattr(assets, "TEXT", {**assets.TEXT, "smollm2": missing})
    language._load.cache_clear()
    attacks = (*adapter.ready_for("zoo/mobilenet_v2"), "rmle:steps=1")
    request = Request(layers=("features.17",), attacks=attacks, effort="quick", limit=1)
    words, pixels = run_audit(request, tmp_path, listener=lambda event: None)
    assert pixels.status == "done"
    assert words.status == "not_run"
    assert words.message.startswith("smollm2 is not in the cache and no source gave it")
