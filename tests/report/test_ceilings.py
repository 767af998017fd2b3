"""Ceilings in a report: beside the controls, for the metrics that have one."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from report_cells import judged, stats

from seepage import report
from seepage.report import charts, tables
from seepage.schema import Cell, Scale

KEYS = {"rank1": (0.5, 0.1, 0.75, True), "knn_distance": (6.0, 9.0, 4.0, False)}
"""Of each metric what the recoveries, the strongest control and the originals score, and which way is more leakage."""


def cell(layer: str = "l.1", original: float = 0.75) -> Cell:
    made = judged([0.9] * 4, 0.2, layer)
    summary, control, ceiling = dict(made.summary), dict(made.controls["mean_picture"]), {}
    for key, (mean, null, top, higher) in KEYS.items():
        summary[key] = stats([mean] * 4, higher)
        control[key] = stats([null] * 4, higher)
        ceiling[key] = stats([original if key == "rank1" else top] * 4, higher)
    update = {"summary": summary, "controls": {"mean_picture": control}, "ceilings": {"original": ceiling}}
    return made.model_copy(update=update | {"scales": {"knn_distance": Scale(higher_means_more_leakage=False)}})


def field(cells: list[Cell], title: str, statistic: str) -> tables.Value:
    made = tables.table(report.verdicts(cells))
    place = next(n for n, column in enumerate(made.columns) if column.title.startswith(title))
    return next(value for value in made.rows[0].fields[place] if value.statistic == statistic)


def test_the_table_has_what_the_originals_score_where_a_metric_has_it() -> None:
    assert field([cell()], "Identified", "ceiling") == tables.Value("75\u202f%", 0.75, "original", "ceiling")
    assert field([cell()], "KNN distance", "ceiling").sort == 4.0
    assert "original: 75 %" in field([cell()], "Identified", "mean").detail.replace("\u202f", " ")
    none = field([cell()], "SSIM", "ceiling")
    assert (none.sort, none.detail) == (None, "")
    assert "original" not in field([cell()], "SSIM", "mean").detail


def test_a_ceiling_can_be_chosen_only_where_there_is_one() -> None:
    assert ("ceiling", "Ceiling") in tables.statistics([cell()])
    bare = judged([0.9] * 4)
    assert [key for key, _ in tables.statistics([bare])] == [key for key, _ in tables.STATISTICS if key != "ceiling"]


def test_the_chart_draws_it_above_the_recoveries_and_apart_from_the_controls() -> None:
    (verdict,) = report.verdicts([cell("l.1"), cell("l.2", 1.0)])
    for key, (_, null, top, _) in KEYS.items():
        lines = charts.series(verdict, key)
        (ceiling,) = [line for line in lines if line.ceiling]
        (control,) = [line for line in lines if line.control]
        assert (ceiling.name, control.name) == ("original", "mean picture")
        assert [point.value for point in ceiling.points] == ([top, 1.0] if key == "rank1" else [top, top])
        assert [point.value for point in control.points] == [null, null]
        chart = next(chart for chart in charts.charts(verdict, "c") if chart.metric == key)
        svg = ElementTree.fromstring(str(chart.wide))
        heights = {}
        for group in svg.iter("g"):
            points = group.find("polyline")
            if points is not None:
                first = (group.get("class") or "").split()[0]
                heights[first] = float((points.get("points") or "").split()[0].split(",")[1])
        assert heights["ceiling"] < heights["line"] < heights["control"]
        assert "ceiling: original" in [name for _, name in chart.key]
        assert "ceiling" in chart.caption
    ssim = next(chart for chart in charts.charts(verdict, "c") if chart.metric == "ssim")
    assert "ceiling" not in f"{ssim.caption}{ssim.key}{ssim.wide}"


def test_both_reports_name_it_and_say_what_it_is(tmp_path: Path) -> None:
    report.write([cell()], tmp_path)
    page, words = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert '<option value="ceiling">Ceiling</option>' in page
    assert re.search(r'data-statistic="ceiling"[^>]*><bdi>75.%</bdi>', page)
    for text in (page, words):
        assert "the originals themselves, scored as recoveries are" in text
    report.write([judged([0.9] * 4)], tmp_path / "bare")
    assert 'value="ceiling"' not in (tmp_path / "bare" / "report.html").read_text()
