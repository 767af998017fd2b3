"""What a defense is for and what it costs, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..schema import LARGEST_EPSILON, Cell, Protection
from . import text
from .verdict import LayerVerdict, Verdict


def costs(verdict: Verdict, judged: Sequence[Verdict]) -> str:
    """Say whom a setting's defenses can help against, what they promise, what they leave of the model and weigh.

    Empty for an undefended setting; `judged` are the report's, among which the undefended one is looked for.
    """
    if not verdict.setting.defenses:
        return ""
    claims = next((cell.protection for cell in verdict.cells if cell.protection), ())
    told = (_promise(verdict), _kept(verdict), _sent(verdict, judged), _took(verdict))
    return " ".join(filter(None, (*map(_claim, claims), *told)))


def budget_of(cell: Cell) -> tuple[float, float] | None:
    """Return (epsilon, delta) of what a cell's attacker was sent; None where nothing is promised."""
    claims = [claim for claim in cell.protection if claim.epsilon is not None]
    return max(((claim.epsilon or 0.0, claim.delta or 0.0) for claim in claims), default=None)


def _claim(claim: Protection) -> str:
    name = claim.name.partition(":")[0]
    whom = text.listing(list(claim.protects_from))
    return f"{name} can help against {whom}; what undoes it is held by {claim.holder}."


def _promise(verdict: Verdict) -> str:
    """The largest epsilon over the layers, of one send and of as many as an attacker had."""
    spent: dict[int, tuple[float, float]] = {}
    for cell in verdict.cells:
        budget = budget_of(cell)
        if budget is not None:
            spent[cell.spec.sends] = max(budget, spent.get(cell.spec.sends, budget))
    said = "; ".join(_of_sends(sends, *budget) for sends, budget in sorted(spent.items()))
    return f"{said[0].upper()}{said[1:]}." if said else ""


def _of_sends(sends: int, epsilon: float, delta: float) -> str:
    subject = "one send" if sends == 1 else f"{sends} sends of a picture together"
    if math.isinf(epsilon):
        return f"for {subject} epsilon is above {LARGEST_EPSILON:g} at delta = {delta:g}: a promise of nothing"
    size = text.significant(epsilon) if epsilon < 100 else text.number(epsilon, 0)
    verb = "is" if sends == 1 else "are"
    return f"{subject} {verb} ({size}, {delta:g})-differentially private, whoever attacks"


def _kept(verdict: Verdict) -> str:
    """What is left of the model where least is."""
    layers = {layer.layer: _utility(layer) for layer in verdict.layers}
    for key, said in (("agreement", "gives the same answer for"), ("cosine", "gives answers of a mean cosine of")):
        having = {name: values[key] for name, values in layers.items() if key in values}
        if having:
            worst = min(having, key=lambda name: having[name])
            value = having[worst]
            amount = f"{text.percent(value)} of the pictures" if key == "agreement" else text.number(value, 3)
            where = f" at {worst}, where least is left" if len(set(having.values())) > 1 else ""
            return f"The next stage {said} {amount}{where}."
    return ""


def _utility(layer: LayerVerdict) -> dict[str, float]:
    return next((cell.utility for cell in layer.cells if cell.utility), {})


def _sent(verdict: Verdict, judged: Sequence[Verdict]) -> str:
    """The share of the undefended bytes that is sent, at the layer where that is most."""
    mine = _bytes(verdict)
    bare = next((_bytes(other) for other in judged if other.setting == verdict.setting.undefended), {})
    both = {name: (size, bare[name]) for name, size in mine.items() if bare.get(name)}
    if not both:
        return ""
    layer = max(both, key=lambda name: both[name][0] / both[name][1])
    sent, before = both[layer]
    if sent == before:
        return "What is sent weighs no more."
    where = f" at {layer}" if len(both) > 1 else ""
    return f"A picture weighs {text.size(sent)}{where}, {text.size(before)} undefended."


def _took(verdict: Verdict) -> str:
    """The time of the defenses at the layer where they take longest."""
    spent = {cell.spec.layer: defense_seconds(cell) for cell in reversed(verdict.cells)}
    known = {layer: seconds for layer, seconds in spent.items() if seconds is not None}
    if not known:
        return ""
    layer = max(known, key=lambda name: known[name])
    where = f" at {layer}, where it takes longest" if len(known) > 1 else ""
    return f"To protect a picture and undo that takes {text.milliseconds(known[layer])}{where}."


def defense_seconds(cell: Cell) -> float | None:
    """Return what protecting a picture and undoing it took; None where that was not measured."""
    return None if cell.cost is None else cell.cost.defense_seconds or None


def _bytes(verdict: Verdict) -> dict[str, int]:
    found = {layer.layer: [c.bytes_per_image for c in layer.cells if c.bytes_per_image] for layer in verdict.layers}
    return {name: sizes[0] for name, sizes in found.items() if sizes}
