"""The page of a training: its lines are the record's, nothing in it acts on its reader."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from seepage.report.training import lines, render, write


def record(steps: int = 1000, name: str = "decoder") -> dict[str, Any]:
    curve = {
        "step": list(range(1, steps + 1)),
        "loss": [1 / step for step in range(1, steps + 1)],
        "rate": [0.1] * steps,
        "seconds": [0.5 * step for step in range(1, steps + 1)],
        "skipped": 2,
        "notes": [],
    }
    held = {"held-out": [[0, 1.0], [steps, 0.25]], "shuffled": [[0, 1.0], [steps, 0.9]]}
    return {
        "name": name,
        "facts": [["victim", "zoo/x <script>"]],
        "stages": [{"name": "decode", "unit": "loss", "curve": curve, "held": held}],
        "title": "Held-out pictures",
        "columns": ["from", "loss"],
        "rows": [["its own", "0.25"]],
        "notes": ["1 of 9 pictures is left out"],
    }


def test_lines_are_means_over_so_many_steps_that_few_points_are_left() -> None:
    training, held, shuffled = lines(record()["stages"][0])
    assert len(training.points) == 334
    assert training.points[0] == (3.0, pytest.approx((1 + 1 / 2 + 1 / 3) / 3))
    assert training.points[-1] == (1000.0, pytest.approx(1 / 1000))
    assert held.points == ((0, 1.0), (1000, 0.25))
    assert shuffled.style.startswith("control")


def test_page_says_all_and_needs_nothing_but_itself(tmp_path: Path) -> None:
    path = write(record(), tmp_path / "a.html")
    page = path.read_text()
    for said in ("0.25", "1000 steps in", "2 skipped", "1 of 9 pictures", "control: shuffled", "&lt;script&gt;"):
        assert said in page
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert len(re.findall("<polyline", page)) == 6  # three lines, and three in the key
    assert render(record()) == page


def test_page_of_a_loss_that_is_not_finite_or_absent_can_be_drawn() -> None:
    odd = record(2)
    odd["stages"][0]["curve"]["loss"] = [math.nan, 1.0]
    assert "nan" not in re.sub("<title>.*?</title>|<desc.*?</desc>", "", render(odd)).partition("<main>")[2]
    empty = record(0)
    empty["stages"][0]["held"] = {}
    assert "0 steps" in render(empty)
