from __future__ import annotations

import itertools
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cells import LAYERS, judged, stats, whole

from seepage import report
from seepage.report import charts
from seepage.schema import Cell


def drawing(cells: list[Cell], metric: str) -> ElementTree.Element:
    """The wide drawing of one metric, parsed."""
    (verdict,) = report.verdicts(cells)
    chart = next(chart for chart in charts.charts(verdict, "c") if chart.metric == metric)
    return ElementTree.fromstring(str(chart.wide))


def heights(svg: ElementTree.Element) -> list[float]:
    """How far down the points of the first attack's line lie, layer by layer."""
    line = next(group for group in svg.iter("g") if (group.get("class") or "").startswith("line"))
    points = line.find("polyline")
    assert points is not None
    return [float(corner.split(",")[1]) for corner in (points.get("points") or "").split()]


def with_metric(values: list[float], key: str, higher: bool) -> list[Cell]:
    cells = []
    for place, value in enumerate(values, 1):
        cell = judged([0.5, 0.5], layer=f"l.{place}")
        made = stats([0.0, 0.0], higher).model_copy(update=dict.fromkeys(("mean", "ci_low", "ci_high"), value))
        cells.append(cell.model_copy(update={"summary": {**cell.summary, key: made}}))
    return cells


@given(st.floats(-1e3, 1e3), st.floats(0, 1e3))
def test_ticks_enclose_the_values_at_equal_round_steps(low: float, span: float) -> None:
    found = charts.ticks(low, low + span)
    assert found[0] <= low + 1e-6
    assert found[-1] >= low + span - 1e-6
    assert 2 <= len(found) <= 9
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


@pytest.mark.parametrize(("key", "higher"), [("psnr", True), ("lpips", False)])
def test_further_up_is_more_leakage_for_every_metric(key: str, higher: bool) -> None:
    values = [0.9, 0.5, 0.2] if higher else [0.2, 0.5, 0.9]
    down = heights(drawing(with_metric(values, key, higher), key))
    assert down == sorted(down)
    assert len(set(down)) == 3


def test_a_control_s_line_is_the_strongest_of_its_kind_at_each_layer() -> None:
    cells = [judged([0.9, 0.9], control, attack=attack) for attack, control in (("a", 0.1), ("b", 0.3), ("c", 0.2))]
    for order in (cells, cells[::-1]):
        (verdict,) = report.verdicts(order)
        (line,) = [line for line in charts.series(verdict, "ssim") if line.control]
        assert [point.value for point in line.points] == [pytest.approx(0.3)]
        (line,) = [line for line in charts.series(verdict, "mse") if line.control]
        assert [point.value for point in line.points] == [pytest.approx(0.07)]


def test_the_deciding_metric_comes_first_and_alone_has_the_threshold(tmp_path: Path) -> None:
    (verdict,) = report.verdicts(whole(tmp_path, files=False))
    made = charts.charts(verdict, "c")
    assert made[0].metric == verdict.threshold.metric
    assert ['class="rule"' in str(chart.wide) for chart in made] == [True, False, False]
    assert {chart.metric for chart in made} == {"ssim", "psnr", "agreement"}


def test_what_is_no_number_is_written_not_drawn() -> None:
    svg = drawing(with_metric([10.0, math.nan, 20.0, math.inf], "psnr", True), "psnr")
    assert len(heights(svg)) == 2
    said = [element.text for element in svg.iter("text")]
    assert "NaN" in said
    assert "∞" in said
    assert "nan" not in ElementTree.tostring(svg, encoding="unicode").replace("NaN", "").lower()


def test_layers_stand_in_order_with_their_share_of_the_work(tmp_path: Path) -> None:
    svg = drawing(whole(tmp_path, files=False), "ssim")
    names = [element.text for element in svg.iter("text") if element.get("class") == "name"]
    assert names == list(LAYERS)
    shares = [e.text for e in svg.iter("text") if "on device" in (e.text or "")]
    assert len(shares) == len(LAYERS)


def test_long_names_are_shortened_by_what_they_share(tmp_path: Path) -> None:
    layers = [f"visual.transformer.resblocks.{n}" for n in range(24)]
    cells = whole(tmp_path, files=False, layers=layers, attacks=["joint"])
    svg = drawing(cells, "ssim")
    names = [element.text for element in svg.iter("text") if element.get("class") == "name"]
    assert names == [str(n) for n in range(24)]
    assert "layers of visual.transformer.resblocks" in [element.text for element in svg.iter("text")]
    assert charts.common_prefix(["a.b.c", "a.b.d"]) == "a.b."
    assert charts.common_prefix(["ab.c", "ad.c"]) == ""
    assert charts.common_prefix(["a.b"]) == ""


def test_a_drawing_says_in_words_what_it_shows_and_no_name_is_markup(tmp_path: Path) -> None:
    word = '"><script>alert(1)</script>&'
    svg = drawing(whole(tmp_path, files=False, layers=[word, "b"], attacks=[word]), "ssim")
    assert svg.find(".//script") is None
    assert svg.get("role") == "img"
    ids = (svg.get("aria-labelledby") or "").split()
    assert [element.tag for element in svg if element.get("id") in ids] == ["title", "desc"]
    description = svg.find("desc")
    assert description is not None
    assert word in (description.text or "")
    assert "interval" in (description.text or "")
