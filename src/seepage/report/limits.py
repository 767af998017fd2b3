"""How far an attack is from what is possible, and how much of a picture the features tell at all."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..schema import Bound, Cell
from . import text


def error_over_bound(cell: Cell) -> float | None:
    """Return the attack's mean squared error over the bound: 1 where no attacker does better on average."""
    error = cell.summary.get("mse")
    if error is None or cell.bound is None or not cell.bound.mse:
        return None
    return error.mean / cell.bound.mse


def beside_error(cell: Cell) -> str:
    """Return what stands under it: the same over what is possible to first order at the pictures themselves.

    Where that was not computed, the Fisher information that the bound is from.
    """
    error, bound = cell.summary.get("mse"), cell.bound
    if error is None or bound is None:
        return ""
    if bound.at_pictures is None and bound.dfil is not None:
        return f"dFIL {text.significant(bound.dfil.value)}"
    if bound.at_pictures is None or bound.at_pictures.value <= 0:
        return ""
    return f"at these pictures ×{text.significant(error.mean / bound.at_pictures.value)}"


def rank_share(bound: Bound | None) -> float | None:
    """Return the share of a picture's directions that the features tell of."""
    if bound is None or bound.rank is None or not bound.inputs:
        return None
    return bound.rank.value / bound.inputs


def beside_rank(bound: Bound | None) -> str:
    """Return what stands under the rank: its interval where it has one, and the condition."""
    if bound is None or bound.rank is None or not bound.inputs or bound.condition is None:
        return ""
    ends = "" if bound.exact else f"{text.share(bound.rank.low / bound.inputs)} to "
    whole = f"{ends}{text.share(bound.rank.high / bound.inputs)}; " if ends else ""
    if math.isinf(bound.condition):
        return f"{whole}some are lost"
    return f"{whole}condition {'' if bound.exact else '≥ '}{text.significant(bound.condition)}"


def below(cells: Sequence[Cell]) -> list[str]:
    """Say at which layers pictures came back better than the bound: their prior is stronger than the bound's."""
    layers = [
        cell.spec.layer
        for cell in cells
        if cell.bound is not None
        and cell.bound.mse is not None
        and "mse" in cell.summary
        and cell.summary["mse"].ci_high < cell.bound.mse
    ]
    if not layers:
        return []
    where = text.listing(list(dict.fromkeys(layers)))
    return [
        f"At {where} the error lies below the bound, which holds on average over pictures of which no more is known "
        "than natural pictures' power spectrum: these pictures' own prior is stronger."
    ]
