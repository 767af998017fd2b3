"""What a dry run says a cell will take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from seepage import registry
from seepage.attacks.chores import Chore
from seepage.audit.bounds import bound, runs
from seepage.audit.plan import forecast, jobs
from seepage.audit.request import Request
from seepage.audit.workbench import Workbench
from seepage.types import Knowledge, NotRunError, Recoverer


@dataclass(frozen=True)
class Sleepy:
    """An attack that takes no pass, and its time."""

    refuses: bool = False
    breaks: bool = False
    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {}
    access: ClassVar[str] = "black-box"
    auxiliary: ClassVar[str] = "none"
    recovers: ClassVar[str] = "images"
    budget: ClassVar[int] = 0

    def fit(self, knowledge: Knowledge, generator, *, workdir=None, progress=None) -> Recoverer:
        raise NotImplementedError

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        raise NotImplementedError

    def chores(self, knowledge: Knowledge, rows: int) -> Sequence[Chore]:
        if self.refuses:
            raise NotRunError("asleep")
        if self.breaks:
            raise RuntimeError("out of memory")
        assert rows == 6
        return Chore(lambda: time.sleep(0.02), fitting=100), Chore(lambda: time.sleep(0.01), each=50)


@pytest.fixture(autouse=True)
def sleepy() -> Iterator[None]:
    registry.names("attack")
    registry.register("attack", "sleepy")(Sleepy)
    yield
    del registry._components["attack"]["sleepy"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where bounds are kept, empty."""
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "bounds"


def seconds(victim: str, folder: Path, *attacks: str) -> list[float]:
    bench = Workbench(Request(victim, str(folder), layers=("wide",), attacks=attacks, metrics=("mse",)))
    return [one.seconds for one in forecast(bench, jobs(bench))]


def test_fitting_counts_once_and_a_picture_each_time(victim: str, folder: Path) -> None:
    found, refused, broken = seconds(victim, folder, "sleepy", "sleepy:refuses=yes", "sleepy:breaks=yes")
    assert found == pytest.approx(100 * 0.02 + 6 * 50 * 0.01, rel=0.5)
    # What cannot be run must not keep the other cells from it.
    assert refused == broken == 0.0


def test_attacks_that_train_are_not_free(victim: str, folder: Path) -> None:
    few = "decoder:pictures=12,steps=50"
    short, long, passing = seconds(victim, folder, few, "decoder:pictures=12,steps=5000", "rmle:steps=50")
    assert passing > 0
    assert long > 5 * short > 5 * passing


def test_bounds_count_once_and_only_until_they_are_kept(victim: str, folder: Path, cache: Path) -> None:
    noise = ("gaussian:sigma=0.1",)
    asked = {"layers": ("wide",), "attacks": ("rmle:steps=1",), "metrics": ("mse",), "attackers": ("aware:estimate",)}
    bench = Workbench(Request(victim, str(folder), defenses=noise, **asked))
    grid = jobs(bench)
    (bare, defended), again = forecast(bench, grid), forecast(bench, grid)
    assert bare.bound > 100 * bare.attack > 0, "a spectrum takes thousands of runs, this attack one a picture"
    assert defended.bound > 10 * defended.attack, "the noise's own bound"
    assert again[0].bound > 100 * again[0].attack > 0, "nothing was computed by saying so"
    assert not list(cache.rglob("*.json"))
    spec, split = grid[0].spec, bench.split("wide")
    done: set[Path] = set()
    times = runs(bench, split, spec, range(6), None, done)
    found = bound(bench, split, spec, list(range(6)))
    assert found is not None
    assert {path.name for path in cache.rglob("*.json")} == {path.name for path in done}
    # Two pictures of 768 numbers, as many directions each, forward and back.
    assert times == 2 * 2 * 768
    assert runs(bench, split, spec, range(6), None, done) == 0
    # The spectrum, and dFIL with it, is the other cell's: 64 probes of 4 draws, and of 2 pictures, by 12 steps.
    assert runs(bench, split, grid[1].spec, range(6), None, done) == 64 * (4 * (2 + 12) + 2) + 2 * 64 * (3 + 12)
    assert forecast(bench, grid)[0].bound == 0
    # Quick computes none without noise.
    quick = Workbench(Request(victim, str(folder), effort="quick", **(asked | {"attackers": ()})))
    assert forecast(quick, jobs(quick))[0].bound == 0


def test_what_a_dry_run_prints_has_the_training_in_it(victim: str, folder: Path, seepage) -> None:
    code, out, err = seepage(
        "audit", victim, folder, "--attack", "decoder:steps=90000,pictures=12", "--layer", "wide", "--dry-run"
    )
    assert code == 0, err
    assert "0.0 minutes" not in out
    assert "minutes" in out
