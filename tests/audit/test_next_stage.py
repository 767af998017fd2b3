"""What the rightful next stage keeps, and what protecting a picture and undoing it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from seepage import registry
from seepage.audit.assemble import defense_seconds, utility
from seepage.audit.exposure import Exposure
from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.audit.workbench import Workbench
from seepage.defenses.base import EVERYONE, BuiltIn, applied
from seepage.types import Generators, Law, Leak, Secret

VICTIM = """
import torch
from torch import nn
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 6, 3, padding=1), nn.Flatten())
"""
SHADES = (20, 240, 90)


@dataclass(frozen=True)
class Sluggish(BuiltIn):
    """Halves a leak, slowly; of a bright picture it leaves nothing."""

    holder: ClassVar[str] = "nobody"
    protects_from: ClassVar[tuple[str, ...]] = EVERYONE

    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, Secret | None]:
        time.sleep(0.02)
        lost = leak.features.amax((1, 2, 3), keepdim=True) > LIMIT[0]
        return applied(leak, self, (leak.features / 2).masked_fill(lost, torch.nan)), None

    def restore(self, leak: Leak, secret: Secret | None) -> Leak:
        time.sleep(0.01)
        return leak

    def law(self) -> Law:
        return registry.build("defense", "clip").law()


LIMIT = [float("inf")]


@pytest.fixture(autouse=True)
def sluggish() -> Iterator[None]:
    registry.names("defense")
    registry.register("defense", "sluggish")(Sluggish)
    LIMIT[0] = float("inf")
    yield
    del registry._components["defense"]["sluggish"]


@pytest.fixture
def request_of(tmp_path: Path) -> Request:
    """An audit of three pictures of one shade each behind a victim's first block."""
    (tmp_path / "victim.py").write_text(VICTIM)
    (tmp_path / "pictures").mkdir()
    for shade in SHADES:
        picture = np.full((12, 12, 3), shade, dtype=np.uint8)
        picture[0, 0] = 255 - shade
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{shade}.png")
    victim, pictures = f"module/{tmp_path / 'victim.py'}:build", str(tmp_path / "pictures")
    plain = Request(victim, pictures, layers=("1",), attacks=("rmle:steps=2",), metrics=("mse",), size=12)
    return replace(plain, defenses=("sluggish",), effort="quick")


def test_only_a_row_that_is_not_finite_is_left_out(request_of: Request) -> None:
    bench = Workbench(request_of)
    split = bench.split("1")
    pictures = torch.stack([split.load(entry.path) for entry in bench.source.entries])
    clean = split.leak(pictures)
    most = clean.features.amax((1, 2, 3))
    LIMIT[0] = float(most.sort().values[1:].mean())
    kept = most <= LIMIT[0]
    assert kept.sum() == 2
    whole = split.finish(clean)
    halved = split.finish(clean.with_features(clean.features / 2))
    expected = torch.nn.functional.cosine_similarity(whole, halved)[kept].mean()
    assert expected < 1 - 1e-6
    assert utility(Exposure(bench, split, "naive"))["cosine"] == pytest.approx(float(expected), abs=1e-6)


def test_a_defense_takes_what_it_and_its_undoing_take(request_of: Request, tmp_path: Path) -> None:
    bench = Workbench(request_of)
    split = bench.split("1")
    assert 0.03 <= defense_seconds(Exposure(bench, split, "naive")) < 0.2
    assert defense_seconds(Exposure(bench, split)) == 0
    request = replace(request_of, attackers=("naive", "aware:estimate"))
    done = {cell.spec.attacker: cell.cost for cell in run_audit(request, tmp_path / "o") if cell.status == "done"}
    assert done.keys() == {"none", "naive", "aware:estimate"}
    spent = {known: cost.defense_seconds for known, cost in done.items() if cost is not None}
    assert spent.pop("none") == 0
    assert min(spent.values()) >= 0.03
