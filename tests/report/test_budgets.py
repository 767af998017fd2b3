"""What a report says of a privacy budget and of a defense's time: on the page, in the table and in the CSV."""

from __future__ import annotations

import csv
import io
import math

import pytest
from report_cells import judged as made

from seepage.report import text
from seepage.report.protection import costs
from seepage.report.spreadsheet import to_csv
from seepage.report.tables import table
from seepage.report.verdict import verdicts
from seepage.schema import Cell, Cost, Protection


def defended(layer: str, sends: int, epsilon: float | None) -> Cell:
    """A cell of clipping and noise, whose attacker has so many sends."""
    bare = made([0.2, 0.4], layer=layer)
    known = "naive" if sends == 1 else "repeated"
    again = {"defenses": ("clip:limit=1", "gaussian:sigma=2"), "attacker": known, "sends": sends}
    claims = (
        Protection(name="clip:limit=1", holder="nobody", protects_from=()),
        Protection(name="gaussian:sigma=2", holder="nobody", protects_from=(), epsilon=epsilon, delta=1e-5),
    )
    spec = bare.spec.model_copy(update=again)
    return bare.model_copy(update={"spec": spec, "key": f"{layer}-{sends}", "protection": claims})


def told(*cells: Cell) -> str:
    judged = verdicts(cells)
    return costs(judged[-1], judged)


def test_one_send_and_several_stand_beside_each_other() -> None:
    single = [defended("f.1", 1, 4.37), defended("f.2", 1, 5.52)]
    assert "One send is (5.5, 1e-05)-differentially private, whoever attacks. " in told(*single) + " "
    both = told(*single, defended("f.1", 16, 151.4), defended("f.2", 16, 22.0))
    assert (
        "One send is (5.5, 1e-05)-differentially private, whoever attacks; 16 sends of a picture together are "
        "(151, 1e-05)-differentially private, whoever attacks." in both
    )


@pytest.mark.parametrize("least", [3.0, math.inf])
def test_what_is_not_finite_is_no_budget(least: float) -> None:
    said = told(defended("f.1", 1, least), defended("f.1", 16, math.inf))
    assert "∞" not in said
    assert "or 16 sends of a picture together epsilon is above 500 at delta = 1e-05: a promise of nothing." in said
    assert ("For one send epsilon is above 500" in said) == math.isinf(least)


def test_who_promises_nothing_is_silent() -> None:
    assert "private" not in told(defended("f.1", 1, None), defended("f.1", 16, None))


def test_the_csv_has_the_budget_of_defended_cells() -> None:
    cells = [made([0.9, 0.8], layer="f.1"), defended("f.1", 1, 4.37), defended("f.1", 16, math.inf)]
    lines = list(csv.DictReader(io.StringIO(to_csv(cells))))
    assert [(line["epsilon"], line["delta"]) for line in lines] == [("", ""), ("4.37", "1e-05"), ("Infinity", "1e-05")]


def timed(layer: str, seconds: float) -> Cell:
    return defended(layer, 1, None).model_copy(update={"cost": Cost(seconds=3.0, defense_seconds=seconds)})


def test_what_a_defense_takes_is_said_where_it_takes_longest() -> None:
    undefended = made([0.9, 0.8], layer="f.1").model_copy(update={"cost": Cost(seconds=3.0)})
    cells = [undefended, timed("f.1", 0.00123), timed("f.2", 0.0456)]
    said = told(*cells).replace(text.NARROW, " ")
    assert "To protect a picture and undo that takes 46 ms at f.2, where it takes longest." in said
    shown = table(verdicts(cells))
    place = [column.title for column in shown.columns].index("Defense time")
    assert [row.fields[place][0].text.replace(text.NARROW, " ") for row in shown.rows] == ["–", "1.2 ms", "46 ms"]
    lines = list(csv.DictReader(io.StringIO(to_csv(cells))))
    assert [line["defense_seconds"] for line in lines] == ["", "0.00123", "0.0456"]


def test_a_record_without_the_time_says_nothing_of_it() -> None:
    cells = [defended("f.1", 1, None)]
    assert "takes" not in told(*cells)
    assert "Defense time" not in [column.title for column in table(verdicts(cells)).columns]
