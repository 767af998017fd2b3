from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from report_cells import whole

from seepage import report
from seepage.report import spreadsheet, tables, words
from seepage.schema import Bound, Cell, Interval

LAYER = "features.1"


def bounded(folder: Path, mse: float | None, **more: object) -> list[Cell]:
    """An audit of one layer and one attack with a bound."""
    interval = None if mse is None else Interval(value=mse * 1.1, low=mse, high=mse * 1.2)
    spectrum = {"inputs": 200, "outputs": 100, "exact": False, "condition": float("inf"), "levels": (0.0,)}
    bound = Bound(
        mse=mse, estimate=interval, at_pictures=interval, rank=Interval(value=90, low=80, high=100), **spectrum
    )  # fmt: skip
    cells = whole(folder, layers=(LAYER,), attacks=("joint",), files=False, **more)
    return [
        cell.model_copy(update={"bound": bound.model_copy(update={"reason": "" if mse else "jumps"})}) for cell in cells
    ]


def columns(cells: list[Cell]) -> dict[str, tuple[tables.Value, ...]]:
    made = tables.table(report.verdicts(cells))
    return {column.title: made.rows[0].fields[n] for n, column in enumerate(made.columns)}


def test_the_table_says_how_far_an_attack_is_from_what_is_possible(tmp_path: Path) -> None:
    (cell,) = cells = bounded(tmp_path, 1e-5, defenses=("gaussian:sigma=1",), attacker="naive")
    found = columns(cells)
    assert found["Bound on MSE"][0].sort == 1e-5
    over = cell.summary["mse"].mean / 1e-5
    assert found["MSE over bound"][0].sort == pytest.approx(over)
    assert found["MSE over bound"][0].text.startswith("×")
    assert f"{over / 1.1:#.2g}".removesuffix(".") in found["MSE over bound"][0].detail
    assert found["Told of"][0].sort == 0.45
    assert "lost" in found["Told of"][0].detail
    (line,) = csv.DictReader(io.StringIO(spreadsheet.to_csv(cells)))
    assert float(line["mse_over_bound"]) == pytest.approx(over)
    assert float(line["rank"]) == 90


def test_a_bound_from_dfil_alone_shows_it(tmp_path: Path) -> None:
    (cell,) = bounded(tmp_path, 1e-5, defenses=("gaussian:sigma=1",), attacker="naive")
    told = Interval(value=23400, low=23000, high=24000)
    quick = cell.model_copy(update={"bound": cell.bound.model_copy(update={"at_pictures": None, "dfil": told})})
    assert columns([quick])["MSE over bound"][0].detail == "dFIL 2.3e+04"


def test_a_bound_that_there_is_not_shows_its_reason_where_one_is_expected(tmp_path: Path) -> None:
    found = columns(bounded(tmp_path, None, defenses=("uniform:scale=1",), attacker="naive"))
    assert found["Bound on MSE"][0].detail == "jumps"
    assert "MSE over bound" not in found
    undefended = columns(bounded(tmp_path, None))
    assert "Bound on MSE" not in undefended
    assert "Told of" in undefended
    bare = columns(whole(tmp_path, layers=(LAYER,), attacks=("joint",), files=False))
    assert not {"Bound on MSE", "MSE over bound", "Told of"} & bare.keys()


def test_pictures_below_the_bound_are_said_to_have_a_stronger_prior(tmp_path: Path) -> None:
    for mse, said in ((10.0, True), (1e-5, False)):
        (verdict,) = report.verdicts(bounded(tmp_path, mse, defenses=("gaussian:sigma=1",), attacker="naive"))
        sentences = [sentence for sentence in words.caveats(verdict) if "prior is stronger" in sentence]
        assert bool(sentences) == said
        assert all(LAYER in sentence for sentence in sentences)


def test_the_page_shows_it(tmp_path: Path) -> None:
    cells = bounded(tmp_path, 10.0, defenses=("gaussian:sigma=1",), attacker="naive")
    page = report.write(cells, tmp_path).read_text(encoding="utf-8")
    assert "MSE over bound" in page
    assert "prior is stronger" in page
