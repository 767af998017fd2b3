"""The thresholds in the source are those that the committed benchmark found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from seepage.thresholds import RECOGNISABLE, RECOGNISABLE_SMALL, Threshold, recognisable_by

RESULT = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "recognisable.json").read_text("utf-8"))


@pytest.mark.parametrize("threshold", [RECOGNISABLE, RECOGNISABLE_SMALL], ids=lambda threshold: threshold.metric)
def test_values_are_the_benchmarks(threshold: Threshold) -> None:
    found = RESULT["metrics"][threshold.metric]["calibration"]
    assert threshold.value == round(found["half_point"], 3)
    assert (threshold.low, threshold.high) == (round(found["half_point_low"], 3), round(found["half_point_high"], 3))
    assert f"{RESULT['calibration']['rows']:,} versions of {RESULT['calibration']['pictures']}" in threshold.source


def test_the_metric_is_the_one_that_foretells_best() -> None:
    areas = {name: found["calibration"]["auc"] for name, found in RESULT["metrics"].items()}
    assert RECOGNISABLE.metric == RESULT["metric"] == max(areas, key=areas.__getitem__)
    assert RESULT["metrics"][RECOGNISABLE.metric]["check"]["auc"] > 0.8


def test_small_pictures_are_judged_by_what_they_have() -> None:
    assert recognisable_by({"psnr", "ssim", "ms_ssim"}) == RECOGNISABLE
    assert recognisable_by({"psnr", "ssim"}) == RECOGNISABLE_SMALL
    assert recognisable_by({"psnr"}) is None


def test_a_report_can_read_them_without_torch() -> None:
    script = "import sys, seepage.thresholds; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
