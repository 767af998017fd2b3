"""What leaks, from which layer on it stops being recognisable, and how sure that is: from cells to a judgement."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..schema import Cell, Cut, Stats
from ..thresholds import RECOGNISABLE, Threshold, recognisable_by
from .glossary import measure

State = Literal["recognisable", "partly", "hidden", "control", "unknown"]
"""A layer: recoveries are recognisable on average; only some are; none is; none is better than what an attacker without
the features reaches; nothing is known."""

_SEVERITY: tuple[State, ...] = ("unknown", "control", "hidden", "partly", "recognisable")


@dataclass(frozen=True)
class Setting:
    """What must be equal for layers and attacks to be compared: victim, pictures, defenses, wire."""

    victim: str
    weights_sha256: str
    size: int | None
    data: str
    manifest_sha256: str
    defenses: tuple[str, ...]
    wire: str

    @property
    def undefended(self) -> Setting:
        """The same without its defenses."""
        return replace(self, defenses=())


@dataclass(frozen=True)
class LayerVerdict:
    """The judgement on one layer under the strongest attack that was run there.

    `stats` is the deciding metric of `best`, `control` the strongest null control's name and its statistics, `passing`
    of `counted` pictures are recognisable. `close` says that the intervals of the mean and of the threshold overlap.
    """

    layer: str
    cut: Cut | None
    cells: tuple[Cell, ...]
    best: Cell | None
    state: State
    stats: Stats | None = None
    control: tuple[str, Stats] | None = None
    passing: int = 0
    counted: int = 0
    close: bool = False

    @property
    def share(self) -> float | None:
        """The share of the model's multiply-adds before the cut."""
        return work_share(self.cut)


@dataclass(frozen=True)
class Verdict:
    """The judgement on one setting, layers in the order of the model; `labels` name the attacks, by the cells' keys."""

    setting: Setting
    threshold: Threshold
    layers: tuple[LayerVerdict, ...]
    labels: Mapping[str, str]

    def attack(self, cell: Cell) -> str:
        """Return the attack's name; where one attack ran twice at a layer, with the parameters that differ."""
        return self.labels[cell.key]

    def attacker(self, cell: Cell) -> str:
        """Return the attack's name and, where there is a defense, what its attacker knows of it."""
        known = cell.spec.attacker
        if known in ("", "none"):
            return self.attack(cell)
        return f"{self.attack(cell)} ({known}{f' ×{cell.spec.sends}' if cell.spec.sends > 1 else ''})"

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell of the setting, layer by layer."""
        return tuple(cell for layer in self.layers for cell in layer.cells)

    @property
    def known(self) -> tuple[LayerVerdict, ...]:
        """The layers on which there is a judgement."""
        return tuple(layer for layer in self.layers if layer.state != "unknown")

    @property
    def pictures(self) -> int:
        """How many pictures the judgements rest on: the fewest of any layer that has one."""
        return min((layer.counted for layer in self.known), default=0)


def verdicts(cells: Sequence[Cell], threshold: Threshold | None = None) -> tuple[Verdict, ...]:
    """Judge every setting apart, in the order in which the settings appear; undefended ones come first.

    Without a `threshold` a setting is judged by the best one whose metric its finished cells have.
    """
    by_setting: dict[Setting, list[Cell]] = {}
    for cell in distinct(cells):
        by_setting.setdefault(setting(cell), []).append(cell)
    order = sorted(by_setting, key=lambda item: bool(item.defenses))
    limits = {item: threshold or _threshold(by_setting[item]) for item in order}
    return tuple(
        Verdict(item, limits[item], _layers(by_setting[item], limits[item]), _labels(by_setting[item]))
        for item in order
    )


def distinct(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Return one cell a key, the last recorded, in the place of the first."""
    return tuple({cell.key: cell for cell in cells}.values())


def setting(cell: Cell) -> Setting:
    """Return what a cell has in common with the cells it may be compared with."""
    spec = cell.spec
    return Setting(
        spec.victim, spec.weights_sha256, spec.size, spec.data, spec.manifest_sha256, spec.defenses, spec.wire
    )


def strongest(cells: Iterable[Cell], threshold: Threshold) -> Cell | None:
    """Return the cell whose recoveries say most leakage: by its state, among equals by the lowest mean MSE.

    A mean that is NaN or infinite does not compete. None where no cell has a value.
    """
    for key in ("mse", threshold.metric):
        having = [
            cell
            for cell in cells
            if cell.status == "done" and key in cell.summary and math.isfinite(cell.summary[key].mean)
        ]
        if having:
            scale = measure(key)
            return max(
                having,
                key=lambda cell: (_SEVERITY.index(state(cell, threshold)), scale.leakage(cell.summary[key].mean)),
            )
    return None


def state(cell: Cell, threshold: Threshold) -> State:
    """Judge one cell."""
    stats = cell.summary.get(threshold.metric)
    if cell.status != "done" or stats is None or math.isnan(stats.mean):
        return "unknown"
    if not beats_controls(cell, "mse" if "mse" in cell.summary else threshold.metric):
        return "control"
    if not beats_controls(cell, threshold.metric):
        return "hidden"
    if _passes(stats.mean, threshold):
        return "recognisable"
    return "partly" if passing(cell, threshold) else "hidden"


def passing(cell: Cell, threshold: Threshold) -> int:
    """Return how many of a cell's pictures came back recognisable."""
    values = [sample.metrics[threshold.metric] for sample in cell.samples if threshold.metric in sample.metrics]
    return sum(_passes(value, threshold) for value in values)


def strongest_control(cell: Cell, metric: str) -> tuple[str, Stats] | None:
    """Return the null control that says most leakage by its mean, and its statistics."""
    return _most_leaking(cell, metric, cell.controls)


def _most_leaking(cell: Cell, metric: str, groups: Mapping[str, Mapping[str, Stats]]) -> tuple[str, Stats] | None:
    found = {name: scores[metric] for name, scores in groups.items() if metric in scores}
    found = {name: stats for name, stats in found.items() if not math.isnan(stats.mean)}
    if not found:
        return None
    name = max(found, key=lambda name: measure(metric, (cell,)).leakage(found[name].mean))
    return name, found[name]


def highest_ceiling(cell: Cell, metric: str) -> tuple[str, Stats] | None:
    """Return the ceiling that says most leakage by its mean, and its statistics; None where the metric has none."""
    return _most_leaking(cell, metric, cell.ceilings)


def beats_controls(cell: Cell, metric: str) -> bool:
    """Return whether a cell's recoveries are better than every null control by a metric, chance allowed for.

    With an interval of the recovery it must lie above 0, else the mean must be better. Without controls there is
    nothing to beat.
    """
    stats = cell.summary.get(metric)
    control = strongest_control(cell, metric)
    if stats is None or control is None:
        return True
    if stats.recovery_low is not None and not math.isnan(stats.recovery_low):
        return stats.recovery_low > 0
    return measure(metric, (cell,)).leaks_more(stats.mean, control[1].mean)


def work_share(cut: Cut | None) -> float | None:
    """Return the share of the model's multiply-adds before a cut; None where it is not known."""
    if cut is None or cut.macs_before + cut.macs_after == 0:
        return None
    return cut.macs_before / (cut.macs_before + cut.macs_after)


def residual_median(cell: Cell) -> float | None:
    """Return the median residual of the samples that have one."""
    residuals = [sample.residual for sample in cell.samples if sample.residual is not None]
    return statistics.median(residuals) if residuals else None


def _threshold(cells: Sequence[Cell]) -> Threshold:
    """The best threshold for cells; a metric that all of them have goes before one that only some have."""
    measured = [set(cell.summary) for cell in cells if cell.status == "done"]
    shared = set.intersection(*measured) if measured else set()
    return recognisable_by(shared) or recognisable_by(set().union(*measured)) or RECOGNISABLE


def _labels(cells: Sequence[Cell]) -> dict[str, str]:
    """Name every cell's attack so that no two at one layer are called the same."""
    by_name: dict[str, list[Cell]] = {}
    for cell in cells:
        by_name.setdefault(cell.spec.attack.partition(":")[0], []).append(cell)
    labels: dict[str, str] = {}
    for name, group in by_name.items():
        places = [(cell.spec.layer, cell.spec.attacker, cell.spec.sends) for cell in group]
        facts = {cell.key: _facts(cell) for cell in group} if len(set(places)) < len(places) else {}
        keys = dict.fromkeys(key for known in facts.values() for key in known)
        varying = [key for key in keys if len({known.get(key) for known in facts.values()}) > 1]
        for cell in group:
            apart = [f"{key}={facts[cell.key][key]}" for key in varying if key in facts[cell.key]]
            labels[cell.key] = " ".join([name, *apart])
    return labels


def _facts(cell: Cell) -> dict[str, str]:
    """What may tell two cells of one attack apart: its parameters, then the rest of the spec."""
    spec = cell.spec
    pairs = [pair.partition("=") for pair in spec.attack.partition(":")[2].split(",") if pair]
    facts = {key: value for key, _, value in pairs}
    facts |= {"effort": spec.effort, "seed": str(spec.seed), "access": spec.access, "auxiliary": spec.auxiliary}
    facts |= {"public": spec.public or "none", "adapter": (spec.adapter_sha256 or "none")[:8]}
    return facts


def _layers(cells: Sequence[Cell], threshold: Threshold) -> tuple[LayerVerdict, ...]:
    by_layer: dict[str, list[Cell]] = {}
    for cell in cells:
        by_layer.setdefault(cell.spec.layer, []).append(cell)
    found = [_layer(name, group, threshold) for name, group in by_layer.items()]
    # A layer at which no cell finished has no position on record: it comes last.
    return tuple(sorted(found, key=lambda layer: math.inf if layer.cut is None else layer.cut.index))


def _layer(name: str, cells: Sequence[Cell], threshold: Threshold) -> LayerVerdict:
    cut = next((cell.cut for cell in cells if cell.cut is not None), None)
    best = strongest(cells, threshold)
    if best is None or state(best, threshold) == "unknown":
        return LayerVerdict(name, cut, tuple(cells), best, "unknown")
    stats = best.summary[threshold.metric]
    return LayerVerdict(
        name,
        cut,
        tuple(cells),
        best,
        state(best, threshold),
        stats,
        strongest_control(best, threshold.metric),
        passing(best, threshold),
        stats.n,
        close=stats.ci_low < threshold.high and threshold.low <= stats.ci_high,
    )


def _passes(value: float, threshold: Threshold) -> bool:
    return value == threshold.value or measure(threshold.metric).leaks_more(value, threshold.value)
