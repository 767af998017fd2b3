"""A fit that several cells ask for is made once, and changes no number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import seepage
from seepage import registry, seeding
from seepage.attacks.joint import Joint
from seepage.attacks.rmle import RMLE
from seepage.audit.plan import forecast, jobs
from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.audit.workbench import Workbench
from seepage.defenses import pipeline
from seepage.schema import Cell
from seepage.studies.sweep import Sweep, expected, run, settings
from seepage.types import Knowledge, Recoverer

LAWLESS: list[bool] = []
VICTIM = """
import torch
from torch import nn
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 6, 3, padding=1), nn.Flatten())
"""


@dataclass(frozen=True)
class Spy(RMLE):
    """An attack that keeps a list of its fits: whether each was made without a law."""

    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {}
    learns: ClassVar[bool] = True

    def fit(self, knowledge: Knowledge, generator: torch.Generator, *, workdir=None, progress=None) -> Recoverer:
        LAWLESS.append(knowledge.law is None)
        return super().fit(knowledge, generator)


@pytest.fixture(autouse=True)
def spy() -> Iterator[None]:
    registry.names("attack")
    registry.register("attack", "spy")(Spy)
    LAWLESS.clear()
    yield
    del registry._components["attack"]["spy"]


@pytest.fixture
def victim(tmp_path: Path) -> str:
    path = tmp_path / "victim.py"
    path.write_text(VICTIM)
    return f"module/{path}:build"


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    folder = tmp_path / "pictures"
    folder.mkdir()
    draws = np.random.default_rng(0)
    for index in range(2):
        Image.fromarray(draws.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return str(folder)


def asked(victim: str, pictures: str, attack: str, **further: object) -> Request:
    request = Request(victim, pictures, layers=("1",), attacks=(attack,), metrics=("mse",), size=12, effort="quick")
    return replace(request, **{"defenses": ("gaussian:sigma=0.05",), **further})


def test_who_learns_from_undefended_leaks_is_fitted_once(victim: str, pictures: str, tmp_path: Path) -> None:
    cells = run_audit(asked(victim, pictures, "spy:steps=3", sends=4), tmp_path / "o")
    done = [cell.spec.attacker for cell in cells if cell.status == "done"]
    assert done == ["none", "naive", "aware:estimate", "aware:likelihood", "aware:retrained", "repeated"]
    # The law goes into this attack's fitting, and whoever retrains learns from other leaks.
    assert LAWLESS == [True, False, True]


def test_another_cut_wire_or_seed_is_another_fit(victim: str, pictures: str, tmp_path: Path) -> None:
    first = asked(victim, pictures, "spy:steps=3", defenses=(), layers=("0", "1"))
    bench = Workbench(first)
    run_audit(first, tmp_path / "o", bench=bench)
    assert len(LAWLESS) == 2
    for number, change in enumerate(({"wire": "fp16"}, {"seed": 1}), start=1):
        other = replace(first, **change)
        run_audit(other, tmp_path / "o", bench=bench.beside(other))
        assert len(LAWLESS) == 2 + 2 * number
    assert {key[0] for key in bench.fits} == {"1"}, "one cut's are kept at a time"


def test_a_shared_fit_changes_no_number(victim: str, pictures: str, tmp_path: Path) -> None:
    request = asked(victim, pictures, "joint:pictures=24,corrections=2,newton=3,steps=5")
    together = run_audit(request, tmp_path / "together")
    apart: list[Cell] = []
    for place, job in enumerate(jobs(Workbench(request))):
        apart += run_audit(request, tmp_path / str(place), bench=Workbench(request), grid=(job,))
    done = [(one, other) for one, other in zip(together, apart, strict=True) if one.status == "done"]
    assert [one.spec.attacker for one, _ in done] == ["none", "naive", "aware:estimate", "aware:likelihood"]
    for one, other in done:
        assert [s.metrics for s in one.samples] == [s.metrics for s in other.samples]
        assert one.summary == other.summary
        assert one.cost is not None
        assert other.cost is not None
        assert other.cost.fit_seconds > 0
        assert (one.cost.fit_seconds > 0) == (one.spec.attacker == "none"), "the first one's"
    assert len({one.summary["mse"].mean for one, _ in done}) > 2, "who knows the law finds other pictures"


def test_a_law_told_afterwards_is_the_law_told_before(victim: str) -> None:
    split = seepage.cut(seepage.load(victim, size=12), "1")
    law = pipeline(("gaussian:sigma=0.1",)).fit(iter([split.leak(torch.rand(2, 3, 12, 12))])).law()
    attack = Joint(pictures=12, corrections=1, newton=2, steps=3)
    clean = split.leak(torch.rand(2, 3, 12, 12))
    leak = clean.with_features(clean.features + 0.1 * torch.randn(clean.features.shape))
    before, plain = (
        attack.fit(Knowledge(split.image_shape, split.prefix, law=known), seeding.generator(0, "fit"))
        for known in (law, None)
    )
    after = plain.under(law)
    assert after is not None
    rows = seeding.row_hashes(leak.features)
    found = [one.recover(leak, seeding.generators(0, "attack", rows)).value.images for one in (before, after, plain)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2]), "telling made another of it and left the first as it was"


def test_a_forecast_counts_a_shared_fit_once(victim: str, pictures: str) -> None:
    request = asked(victim, pictures, "decoder:steps=4000,pictures=12", attackers=("naive", "aware:estimate"))
    bench = Workbench(request)
    bare, *others = forecast(bench, jobs(bench))
    assert len(others) == 2
    assert bare.fit > 10 * bare.attack
    assert [other.fit for other in others] == [0.0, 0.0]


def test_a_sweep_fits_once_a_cut(victim: str, pictures: str, tmp_path: Path) -> None:
    request = replace(asked(victim, pictures, "spy:steps=3", defenses=()), layers=("0", "1"))
    swept = settings(("gaussian:sigma=0.05,0.1", "quantize:bits=8"), ())
    sweep = Sweep(request, swept, attackers=("aware:estimate",))
    tasks = sweep.tasks(sweep.candidates())
    cells = run(tasks, tmp_path / "o")
    assert [cell.status for cell in cells] == ["done"] * 8
    assert [cell.key for cell in cells] == [task.job.key for task in tasks]
    assert LAWLESS == [True, True]


def test_a_sweep_is_expected_to_fit_once_a_cut(victim: str, pictures: str) -> None:
    request = replace(asked(victim, pictures, "decoder:steps=4000,pictures=12", defenses=()), layers=("0", "1"))
    sweep = Sweep(request, settings(("quantize:bits=8",), ()), attackers=("aware:estimate",))
    tasks = sweep.tasks(sweep.candidates())
    took = expected(tasks)
    seconds = [took[task.job.key][0] for task in tasks]
    assert len(seconds) == 4
    assert seconds[0] > 10 * seconds[1]
    assert seconds[2] > 10 * seconds[3]
