"""What a report says of a defense: whom it is for, what it promises, what is left and what it weighs."""

from __future__ import annotations

from report_cells import judged as made

from seepage.report import text
from seepage.report.protection import costs
from seepage.report.verdict import verdicts
from seepage.schema import Cell, Protection


def defended(layer: str, agreement: float, weight: int, epsilon: float | None = None) -> Cell:
    bare = made([0.2, 0.4], layer=layer)
    spec = bare.spec.model_copy(update={"defenses": ("clip:limit=1", "gaussian:sigma=2"), "attacker": "naive"})
    everyone = ("eavesdropper", "storage", "provider")
    claims = (
        Protection(name="clip:limit=1", holder="nobody", protects_from=everyone),
        Protection(name="gaussian:sigma=2", holder="nobody", protects_from=everyone, epsilon=epsilon, delta=1e-5),
    )
    return bare.model_copy(
        update={
            "spec": spec,
            "key": f"defended-{layer}",
            "protection": claims,
            "utility": {"agreement": agreement},
            "bytes_per_image": weight,
        }
    )


def test_costs_are_those_where_they_are_worst() -> None:
    bare = [made([0.9, 0.8], layer=name).model_copy(update={"bytes_per_image": 1000}) for name in ("f.1", "f.2")]
    judged = verdicts([*bare, defended("f.1", 0.9, 1000, epsilon=4.4), defended("f.2", 0.7, 2000, epsilon=5.5)])
    plain, protected = judged
    assert costs(plain, judged) == ""
    said = costs(protected, judged)
    assert "gaussian can help against eavesdropper, storage and provider; what undoes it is held by nobody." in said
    assert "(5.5, 1e-05)-differentially private" in said
    assert "70" in said
    assert "at f.2, where least is left" in said
    assert "A picture weighs 2.0" in said.replace("\N{NARROW NO-BREAK SPACE}", " ")
    alone = verdicts([defended("f.1", 1.0, 1000)])
    assert "weighs" not in costs(alone[0], alone)


def test_switches_that_are_off_are_not_shown() -> None:
    assert text.defenses(("gaussian:sigma=2,relative=false", "token-shuffle", "x:on=false")) == (
        "gaussian:sigma=2 + token-shuffle + x"
    )
    assert text.defenses(()) == ""
