"""Cells as lines for a spreadsheet, every statistic of each."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from ..schema import Cell
from . import text
from .glossary import ordered
from .limits import error_over_bound
from .protection import budget_of, defense_seconds
from .verdict import residual_median


def to_csv(cells: Sequence[Cell]) -> str:
    """Return one line a cell with every statistic; numbers unrounded, NaN and Infinity in words."""
    lines = [_line(cell) for cell in cells]
    header = list(dict.fromkeys(key for line in lines for key in line)) or ["key", "status"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _field(value) for key, value in line.items()} for line in lines)
    return stream.getvalue()


def _line(cell: Cell) -> dict[str, str | float | int | None]:
    spec, cut, cost, budget = cell.spec, cell.cut, cell.cost, budget_of(cell)
    line: dict[str, str | float | int | None] = {
        "key": cell.key,
        "status": cell.status,
        "message": cell.message,
        "victim": spec.victim,
        "weights_sha256": spec.weights_sha256,
        "layer": spec.layer,
        "layer_index": None if cut is None else cut.index,
        "shape": None if cut is None else "x".join(map(str, cut.shape)),
        "macs_before": None if cut is None else cut.macs_before,
        "macs_after": None if cut is None else cut.macs_after,
        "size": spec.size,
        "defenses": " + ".join(spec.defenses),
        "wire": spec.wire,
        "attack": spec.attack,
        "adapter_sha256": spec.adapter_sha256,
        "attacker": spec.attacker,
        "effort": spec.effort,
        "sends": spec.sends,
        "access": spec.access,
        "auxiliary": spec.auxiliary,
        "data": spec.data,
        "manifest_sha256": spec.manifest_sha256,
        "public": spec.public,
        "gallery": spec.gallery,
        "seed": spec.seed,
        "version": None if cell.environment is None else cell.environment.version,
        "device": None if cell.environment is None else cell.environment.device,
        "n_samples": len(cell.samples),
        "n_failed": sum(sample.status == "failed" for sample in cell.samples),
        "residual_median": residual_median(cell),
        "bytes_per_image": cell.bytes_per_image,
        "epsilon": None if budget is None else budget[0],
        "delta": None if budget is None else budget[1],
        "defense_seconds": defense_seconds(cell),
        "fit_seconds": None if cost is None else cost.fit_seconds,
        "seconds": None if cost is None else cost.seconds,
        "passes": None if cost is None else cost.passes,
        "peak_bytes": None if cost is None else cost.peak_bytes,
        "bound_mse": None if cell.bound is None else cell.bound.mse,
        "mse_over_bound": error_over_bound(cell),
        "bound_reason": None if cell.bound is None else cell.bound.reason,
        "dfil": None if cell.bound is None or cell.bound.dfil is None else cell.bound.dfil.value,
        "rank": None if cell.bound is None or cell.bound.rank is None else cell.bound.rank.value,
        "condition": None if cell.bound is None else cell.bound.condition,
        "checks": "; ".join(f"{check.level}: {check.name}" for check in cell.checks),
        "unavailable": "; ".join(f"{key}: {reason}" for key, reason in cell.unavailable.items()),
    }
    line |= {f"utility.{key}": value for key, value in cell.utility.items()}
    for key in ordered(set(cell.summary)):
        line |= {f"{key}.{name}": value for name, value in cell.summary[key].model_dump().items()}
    for role, groups in (("control", cell.controls), ("ceiling", cell.ceilings)):
        for name, scores in groups.items():
            line |= {f"{role}.{name}.{key}.mean": scores[key].mean for key in ordered(set(scores))}
    return line


def _field(value: str | float | int | None) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return text.spreadsheet(value) if isinstance(value, str) else repr(value)
