"""What a report says of a defense: whom it is for, what it promises, what is left and what it weighs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from report_cells import judged as made
from said_cells import said

from seepage.report import decision, text
from seepage.report.findings import findings
from seepage.report.protection import costs
from seepage.report.sayings import caveats
from seepage.report.verdict import verdicts
from seepage.schema import Cell, Protection
from seepage.studies.leakage import of


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
    told = costs(protected, judged)
    assert "gaussian can help against eavesdropper, storage and provider; what undoes it is held by nobody." in told
    assert "(5.5, 1e-05)-differentially private" in told
    assert "70" in told
    assert "at f.2, where least is left" in told
    assert "A picture weighs 2.0" in told.replace("\N{NARROW NO-BREAK SPACE}", " ")
    alone = verdicts([defended("f.1", 1.0, 1000)])
    assert "weighs" not in costs(alone[0], alone)


def test_switches_that_are_off_are_not_shown() -> None:
    assert text.defenses(("gaussian:sigma=2,relative=false", "token-shuffle", "x:on=false")) == (
        "gaussian:sigma=2 + token-shuffle + x"
    )
    assert text.defenses(()) == ""


def test_an_adapter_that_learned_on_other_leaks_is_called_a_lower_bound(tmp_path: Path) -> None:
    defended = {"defenses": ("gaussian:sigma=2",), "attacker": "aware:estimate", "adapter_sha256": "a" * 64}
    plain = said(tmp_path, files=False)
    cells = {
        attack: plain.model_copy(update={"spec": plain.spec.model_copy(update={"attack": attack, **defended})})
        for attack in ("caprecover:adapter=zoo/small", "caprecover:beams=1")
    }
    adapted, retrained = cells.values()
    assert adapted.spec.learned_undefended
    assert not retrained.spec.learned_undefended, "its hash is not that of an adapter"
    assert not adapted.spec.model_copy(update={"defenses": ()}).learned_undefended
    for cell, lower in ((adapted, True), (retrained, False), (plain, False)):
        (verdict,) = verdicts([cell])
        told = " ".join(caveats(findings(verdict), verdict, None))
        assert ("is a lower bound: the adapter learned on leaks without the defense" in told) == lower
        worst = of(cell, "cider")
        assert worst is not None
        assert worst.lower_bound == lower
        record = decided(asdict(worst))
        assert ("it is a lower bound: the adapter" in " ".join(decision.sentences(record))) == lower
        assert ("≥" in decision.rows(record)[0][3]) == lower


def decided(worst: dict[str, Any]) -> dict[str, Any]:
    """What `advise` writes, of one candidate that is the answer."""
    answer = {"layer": "f.1", "wire": "fp32", "defenses": ["gaussian:sigma=2"], "macs_before": 1, "macs_after": 9}
    answer |= {"bytes": 10, "utility": {"agreement": 1.0}, "device_ms": {"median": 1.0}, "status": "advised"}
    answer |= {"fails": [], "unknown": {}, "unrun": [], "stage": "quick", "confirmed": True}
    answer |= {"values": {"max-caption-gain": 0.1}, "leaks": {"max-caption-gain": worst}}
    limit = {"key": "max-caption-gain", "value": 0.2, "unit": ""}
    return {
        "name": "v",
        "n": 4,
        "minimise": "bytes",
        "limits": [limit],
        "answer": answer,
        "unmet": [],
        "rows": [answer],
    }


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (1, "1"), (999, "999"), (1200, "1.2 k"), (999_999, "1 M"), (3.4e6, "3.4 M"), (5.6e9, "5.6 G")],
)
def test_counts_are_said_as_one_would(count: float, shown: str) -> None:
    assert text.amount(count).replace(text.NARROW, " ") == shown
    assert text.multiply_adds(count).endswith("multiply-add" if count == 1 else "multiply-adds")
