"""The frontier: of all places to cut and defenses, which leak less, keep more or cost less than every other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..schema import Cell
from .costs import Costing, Costs
from .leakage import Worst, worst_of
from .sweep import Candidate, Sweep, Task, candidate_of
from .unrun import unrun

LEAKS = ("psnr", "ssim", "cider", "rouge_l", "top1", "rank1")
"""The measures of leakage, of which more is more."""
_ALIKE = {"ssim": "psnr", "rouge_l": "cider"}
"""Measures that say again what another says: only that one decides what is dominated."""
_UTILITIES = ("agreement", "cosine")


def tasks(sweep: Sweep) -> list[Task]:
    """Return the cells of the whole sweep, each once."""
    return list({task.job.key: task for task in sweep.tasks(sweep.candidates())}.values())


def record(sweep: Sweep, cells: Sequence[Cell], costing: Costing) -> dict[str, Any]:
    """Return what a sweep found as JSON has it: a point for each candidate, the ones nothing dominates marked."""
    of: dict[Candidate, list[Cell]] = {}
    for cell in cells:
        of.setdefault(candidate_of(cell), []).append(cell)
    measured = [key for key in LEAKS if any(key in cell.summary for cell in cells)]
    candidates = sweep.candidates()
    points = [point(item, costing.of(item), of.get(item, ()), measured) for item in candidates]
    utility = next((key for key in _UTILITIES if all(key in item["utility"] for item in points)), None)
    deciding = [key for key in measured if _ALIKE.get(key) not in measured]
    for item, leads in zip(points, front([_objectives(item, deciding, utility) for item in points]), strict=True):
        item["front"] = leads
    return {
        "name": sweep.base.victim.name,
        "data": sweep.base.source.name,
        "n": len(sweep.base.source),
        "effort": sweep.base.request.effort,
        "layers": list(sweep.layers),
        "attacks": [text for texts in sweep.attacks.values() for text in texts],
        "attackers": list(sweep.attackers),
        "metrics": measured,
        "deciding": deciding,
        "utility": utility,
        "points": points,
        "missing": [*sweep.left_out(), *unrun(cells)],
    }


def point(candidate: Candidate, costs: Costs, cells: Sequence[Cell], metrics: Sequence[str]) -> dict[str, Any]:
    """Return one candidate as JSON has it: what it costs, and the worst that came back by each metric."""
    worst: dict[str, Worst | None] = {metric: worst_of(cells, metric) for metric in metrics}
    setting = candidate.setting
    named = {"layer": candidate.layer, "wire": setting.wire, "defenses": list(setting.defenses)}
    return {**named, **asdict(costs), "leakage": {key: asdict(item) for key, item in worst.items() if item}}


def front(objectives: Sequence[Sequence[float]]) -> list[bool]:
    """Return of each row, of which less is better in every column, whether no other row dominates it.

    A row dominates another where it is nowhere worse and somewhere better; rows that are equal do not. One with a NaN
    is not known to be anything.
    """
    known = [not any(map(math.isnan, row)) for row in objectives]

    def dominates(other: Sequence[float], row: Sequence[float]) -> bool:
        pairs = list(zip(other, row, strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    rivals = [row for row, sound in zip(objectives, known, strict=True) if sound]
    return [
        sound and not any(dominates(other, row) for other in rivals)
        for row, sound in zip(objectives, known, strict=True)
    ]


def _objectives(item: Mapping[str, Any], metrics: Sequence[str], utility: str | None) -> list[float]:
    leaks = [item["leakage"][key]["mean"] if key in item["leakage"] else math.nan for key in metrics]
    kept = [] if utility is None else [-item["utility"][utility]]
    # Milliseconds are left out: they are measured, and whatever is a little faster by chance would lead.
    return [*(leaks or [math.nan]), *kept, float(item["bytes"]), float(item["macs_before"])]
