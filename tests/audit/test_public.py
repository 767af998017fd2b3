"""The attacker's own pictures in an audit: the victim runs once a picture, whoever learns from its leaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seepage import wire
from seepage.audit.request import Request
from seepage.audit.workbench import Workbench
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
    (tmp_path / "own" / "40.png").write_bytes(b"no picture")
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
    assert 40 <= sum(passed) <= 42  # the cut itself may be tried with a made-up picture
    assert all(torch.equal(one.features, other.features) for one, other in zip(first, again, strict=True))
    another = Workbench(audit)
    another.split("1")
    passed = counted(another)
    kept = [leak for leak, _ in public(another).train]
    assert sum(passed) <= 2
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
