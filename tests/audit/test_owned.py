"""The attacker's own pictures in an audit: the victim runs once a picture, whoever learns from its leaks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seepage import wire
from seepage.audit.cell import batch_size
from seepage.audit.plan import Clock, forecast, jobs
from seepage.audit.request import Request, RequestError
from seepage.audit.workbench import Workbench
from seepage.cli import run
from seepage.files import OutputError
from seepage.store import Store
from seepage.types import Examples, Leak

VICTIM = """
import torch
from torch import nn
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.Flatten())
"""


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))
    (tmp_path / "victim.py").write_text(VICTIM)
    draws = np.random.default_rng(0)
    for name, count in (("audited", 2), ("own", 40)):
        (tmp_path / name).mkdir()
        for index in range(count):
            pixels = draws.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index:02}.png")
    (tmp_path / "own" / "15a.png").write_bytes(b"no picture")
    victim, pictures = f"module/{tmp_path / 'victim.py'}:build", str(tmp_path / "audited")
    return Request(victim, pictures, layers=("1",), size=12, public=str(tmp_path / "own"), wire="int8")


def counted(bench: Workbench) -> list[int]:
    passed: list[int] = []
    bench.victim.model.register_forward_pre_hook(lambda module, given: passed.append(len(given[0])))
    return passed


def public(bench: Workbench, query: bool = False) -> Examples:
    split = bench.split("1")
    found = bench.knowledge(split, (lambda images: bench.received(split, images)) if query else None).public
    assert found is not None
    return found


def test_the_victim_runs_once_for_all_that_learn_from_it(audit: Request) -> None:
    bench = Workbench(audit)
    bench.split("1")
    passed = counted(bench)
    first = [leak for leak, _ in public(bench).train]
    again = [leak for leak, _ in public(bench).train]
    selected = sum(len(leak) for leak, _ in public(bench).select)
    assert sum(map(len, first)) + selected == 40
    # Each part tries the cut, and tells the victim from others, with made-up pictures.
    assert 40 <= sum(passed) <= 45
    assert all(torch.equal(one.features, other.features) for one, other in zip(first, again, strict=True))
    another = Workbench(audit)
    another.split("1")
    passed = counted(another)
    kept = [leak for leak, _ in public(another).train]
    assert sum(passed) <= 5
    assert all(torch.equal(one.features, other.features) for one, other in zip(first, kept, strict=True))


def test_kept_leaks_are_those_that_are_received(audit: Request) -> None:
    bench = Workbench(audit)
    split = bench.split("1")
    kept, afresh = public(bench), public(bench, query=True)
    pairs = [(list(kept.train), list(afresh.train)), (list(kept.select), list(afresh.select))]
    for ours, theirs in pairs:
        assert [pictures.ids for _, pictures in ours] == [pictures.ids for _, pictures in theirs]
        for (leak, pictures), (fresh, same) in zip(ours, theirs, strict=True):
            assert torch.equal(pictures.images, same.images)
            assert replace(leak.header, scale=None) == replace(fresh.header, scale=None)
            assert leak.header.scale == pytest.approx(fresh.header.scale, rel=1e-5)
            scale = float(fresh.features.abs().max()) / 127
            assert torch.allclose(leak.features, fresh.features, atol=1.01 * scale)
            clean: Leak = split.leak(pictures.images)
            assert not torch.equal(leak.features, clean.features), "the wire's rounding is kept"
            assert torch.allclose(wire.decode(wire.encode(clean, "int8")).features, leak.features, atol=1.01 * scale)


def test_no_more_is_computed_than_is_asked_for(audit: Request) -> None:
    """A forecast looks at the first pictures alone, however many there are."""
    bench = Workbench(audit)
    bench.split("1")
    passed = counted(bench)
    leak, _ = next(iter(public(bench).train))
    assert len(leak) < 33
    assert sum(passed) <= len(leak) + 3


def test_a_few_pictures_may_leave_none_to_select_on(audit: Request, tmp_path: Path) -> None:
    sides: set[bool] = set()
    for index in range(40):
        (tmp_path / f"few{index}").mkdir()
        shutil.copy(tmp_path / "own" / f"{index:02}.png", tmp_path / f"few{index}")
        few = public(Workbench(replace(audit, public=str(tmp_path / f"few{index}"))))
        train, select = list(few.train), list(few.select)
        assert len(train) + len(select) == 1
        sides.add(bool(train))
        if sides == {True, False}:
            return
    raise AssertionError("of forty pictures none was to be selected on, or all")


def test_a_forecast_counts_the_victim_where_it_has_yet_to_run(audit: Request) -> None:
    learned = replace(audit, attacks=("decoder:train=public,steps=1", "decoder:train=public,steps=2"), metrics=("mse",))
    bench = Workbench(learned)
    seconds_a_picture = 10.0
    clock = Clock(runs={"1": seconds_a_picture})
    first, second = forecast(bench, jobs(bench), clock)
    lacking = round(first.fit / seconds_a_picture)
    assert 0 < lacking <= 40, "the forecast itself asks for a few"
    assert second.fit < seconds_a_picture, "the first one's are kept"
    assert first.bytes - second.bytes == lacking * 4 * 8 * 12 * 12
    kept = public(bench)
    assert sum(len(leak) for part in (kept.train, kept.select) for leak, _ in part) == 40
    assert not any(one.fit > seconds_a_picture for one in forecast(bench, jobs(bench), Clock(runs=clock.runs)))
    again = Workbench(learned)
    assert not any(one.fit > seconds_a_picture for one in forecast(again, jobs(again), Clock(runs=clock.runs)))


@pytest.mark.parametrize("limit", ["nowhere to write", "a full disk", "too much to keep", "too little room"])
def test_leaks_are_made_anew_where_they_cannot_be_kept(
    audit: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    tried: list[object] = []
    if limit == "nowhere to write":
        (tmp_path / "file").write_text("")
        monkeypatch.setattr("seepage.audit.owned.home", lambda: tmp_path / "file" / "features")
    elif limit == "a full disk":

        def full(path: object, tensors: object) -> None:
            tried.append(path)
            raise OutputError(f"cannot write {path}: No space left on device (os error 28)")

        monkeypatch.setattr("seepage.data.feature_cache.write_tensors", full)
    elif limit == "too little room":
        room = 2 * 40 * 4 * 8 * 12 * 12
        monkeypatch.setattr("seepage.audit.owned._free", lambda folder: room - 2)
    else:
        monkeypatch.setattr("seepage.audit.owned._MOST_BYTES", 1000)
    bench = Workbench(audit)
    kept = public(bench)
    assert sum(len(leak) for leak, _ in kept.train) + sum(len(leak) for leak, _ in kept.select) == 40
    assert not list(tmp_path.rglob("shard-*"))
    assert sum(len(leak) for leak, _ in kept.train) < 40
    assert len(tried) <= 2, "once the disk is full, no more is tried"


def test_more_pictures_at_a_time_where_none_passes_the_prefix() -> None:
    shape, cpu = (3, 224, 224), torch.device("cpu")
    assert batch_size(shape, cpu, budget=0) == 4 * batch_size(shape, cpu, budget=100) == 16
    assert batch_size((3, 8, 8), cpu, budget=0) == batch_size((3, 8, 8), cpu, budget=1) == 64


def test_pictures_under_audit_teach_nobody_and_that_is_said(
    audit: Request, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Workbench(audit).left_out == ""
    shutil.copy(tmp_path / "audited" / "00.png", tmp_path / "own" / "copy.png")
    bench = Workbench(audit)
    assert bench.public is not None
    assert len(bench.public) == 41
    assert "copy.png" not in [entry.id for entry in bench.public.entries]
    said = "1 of the 42 pictures of --public are under audit too: nobody learns from them"
    assert bench.left_out == said
    command = ["audit", audit.victim, audit.images, "--layer", "1", "--size", "12", "--public", str(audit.public)]
    command += ["--attack", "rmle:steps=1", "--metric", "mse", "--effort", "quick", "-o", str(tmp_path / "out")]
    assert run(command) == 0
    assert said in " ".join(capsys.readouterr().err.split())
    (cell,) = Store(tmp_path / "out").cells().values()
    assert [check.message for check in cell.checks if check.name == "public pictures"] == [said]
    for path in (tmp_path / "own").iterdir():
        path.unlink()
    shutil.copy(tmp_path / "audited" / "00.png", tmp_path / "own")
    with pytest.raises(RequestError, match="every picture of it is under audit too"):
        _ = Workbench(audit).public
