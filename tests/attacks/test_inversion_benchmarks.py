"""What the tables of inversion and of speed say of numbers that are known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import inversion
import recoveries
import speed


def rung(attack: str, mse: float, seconds: float, fit: float = 0.0) -> dict[str, Any]:
    return {"attack": attack, "mse": [mse, mse], "seconds": seconds, "fit": fit}


SLOW = [rung("rmle:steps=1", 1e-1, 1.0), rung("rmle:steps=2", 1e-2, 2.0)]
FAST = [rung("joint:newton=1", 5e-2, 0.1, 4.0), rung("joint:newton=2", 1e-3, 0.25, 4.0)]


def test_time_to_the_other_ones_error_is_told_both_ways() -> None:
    # Ten times less searching; with four seconds of fitting shared by two pictures 1 / (0.1 + 2) of it. A tenth of a
    # second a picture is all that ten times faster leaves: none for the fitting.
    assert speed._sooner(SLOW[0], FAST) == "10.0x searching, 0.5x with fitting"
    # The second rung alone is as good as rmle's second; 0.2 s a picture are fewer than its 0.25.
    assert speed._sooner(SLOW[1], FAST) == "8.0x searching, 0.9x with fitting"
    assert speed._sooner(rung("rmle:steps=3", 1e-2, 4.5), FAST).endswith("10x from 20 pictures on")
    assert speed._sooner(rung("rmle:steps=9", 1e-9, 9.0), FAST) == "not reached"
    assert speed._later(FAST[0], SLOW) == "`rmle:steps=2`, 20.0 times as long"
    assert speed._later(FAST[1], SLOW) == "not reached in 2.0 s"


def test_rows_have_names_of_their_own(tmp_path: Path) -> None:
    names = [row.name for row in inversion.rows(tmp_path)]
    assert len(set(names)) == len(names) > 50
    assert "ResNet-20/layer2.2/standard/window=3" in names
    assert "ResNet-20/layer2.2/standard/baselines" in names


def test_what_knows_pictures_stands_apart() -> None:
    def record(attack: str, auxiliary: str, psnr: float, status: str = "done") -> dict[str, Any]:
        line = ["ResNet-20", "relu", attack, "quick", auxiliary, "8", f"{psnr}", *[""] * 7]
        return {"line": line, "status": status, "summary": {"psnr": {"mean": psnr}}}

    known = [
        record("rmle", "none", 20.0),
        record("peel", "none", 30.0),
        record("joint", "synthetic", 25.0),
        record("decoder", "synthetic", 90.0, "failed"),
    ]
    assert inversion._apart(known) == ["| ResNet-20 | relu | peel, quick | 8 | 30.0 | joint, quick | 8 | 25.0 |"]
    assert inversion._apart(known[:2]) == []


def test_the_sheet_shows_each_picture_where_its_title_says() -> None:
    truth = torch.stack([torch.full((3, 8, 8), shade) for shade in (0.2, 0.6)])
    found = {"joint": [truth, truth + 0.1], "rmle": [1 - truth, 0 * truth]}
    drawn = recoveries.sheet(truth, found, ("first", "second"))
    step, height = recoveries.EDGE + recoveries.GAP, recoveries.EDGE + recoveries.LINE + recoveries.GAP
    left, top = recoveries.MARGIN + 20, recoveries.LINE + recoveries.GAP + 20
    shades = [[drawn.getpixel((left + step * x, top + height * y))[0] / 255 for x in range(3)] for y in range(4)]  # type: ignore[index]
    expected = [[0.2, 0.2, 0.3], [0.2, 0.8, 0.0], [0.6, 0.6, 0.7], [0.6, 0.4, 0.0]]
    assert shades == [pytest.approx(row, abs=0.01) for row in expected]
    assert recoveries.psnr(truth + 0.1, truth) == pytest.approx([20.0, 20.0], abs=1e-3)
