"""Leakage by depth: pictures, captions and labels from the same leaks, and whether the next cut leaks less."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..attacks.caprecover import adapter
from ..audit.request import Request
from ..audit.statistics import paired_difference
from ..audit.workbench import Workbench
from ..schema import Cell, Stats
from ..types import Recovers, SeepageError
from .strongest import strongest

_METRICS: Mapping[Recovers, tuple[str, ...]] = {
    "images": ("psnr",),
    "captions": ("cider", "cosine", "rouge_l"),
    "labels": ("top1",),
}
"""What each kind of recovery is compared by: the first of these that every cell has, with a control beside it."""
_SHARES = {"psnr": "mse"}
"""Where recovery, from the strongest null control to the truth, is counted on another metric."""


class DepthError(SeepageError):
    """No depths that could be compared."""


@dataclass(frozen=True)
class Point:
    """One attack at one cut: its mean with the 95 % interval, and its recovery (0 a null control, 1 the truth)."""

    layer: str
    n: int
    mean: float
    low: float
    high: float
    recovery: float
    recovery_low: float
    recovery_high: float


@dataclass(frozen=True)
class Curve:
    """One attack at every cut that it ran at, the earliest first."""

    recovers: Recovers
    attack: str
    metric: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Step:
    """From one cut to the next: how much the metric rises, by a paired bootstrap over the same pictures."""

    attack: str
    metric: str
    before: str
    after: str
    n: int
    difference: float
    low: float
    high: float

    @property
    def says(self) -> str:
        """What may be said of it."""
        if self.low > 0:
            return "deeper leaks more"
        return "deeper leaks less" if self.high < 0 else "no difference shown"


def bench_of(asked: Request) -> Workbench:
    """Return the audit to run: where no attack is named, the strongest on pictures, words and labels that can be run.

    Beside what reads words behind the last cut, to which every leak can be run on, comes what was trained for several
    cuts: who holds nothing but an early leak reads less.

    Raises:
        DepthError: there are fewer than two cuts.
        SeepageError: the audit cannot be had as it was asked for.
    """
    bench = Workbench(asked)
    if not asked.attacks:
        bench = Workbench(replace(asked, attacks=(*strongest(bench), *_where_cut(bench))))
    if len(bench.layers) < 2:
        raise DepthError(
            f"{asked.victim} at {', '.join(bench.layers)} has one depth alone: name two cuts at least with --layer, of "
            f"those that seepage layers {asked.victim} lists"
        )
    return bench


def _where_cut(bench: Workbench) -> tuple[str, ...]:
    """Return the attacks that ship for several of these cuts, where none that was asked for is beyond them."""
    if bench.request.size is not None:
        return ()
    cuts = set(bench.layers)
    found = adapter.by_depth(bench.victim.name)
    return tuple(
        text
        for text, own in found.items()
        if len(cuts & set(own)) > 1 and (not bench.request.layers or cuts <= set(own))
    )


def leakage(bench: Workbench, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return what an audit's cells say by depth, as JSON has it."""
    drawn, names = curves(cells, bench.layers), _names(cells)
    return {
        "name": bench.victim.name,
        "data": bench.source.name,
        "n": len(bench.source),
        "effort": bench.request.effort,
        "layers": list(bench.layers),
        "curves": [asdict(curve) for curve in drawn],
        "steps": [{**asdict(step), "says": step.says} for step in steps(cells, drawn)],
        "missing": [
            f"{names[cell.spec.attack]} at {cell.spec.layer}: {cell.status.replace('_', ' ')}: {cell.message}"
            for cell in cells
            if cell.status != "done"
        ]
        + [f"{name}: no score that all its cuts have, with a control beside it" for name in _undrawn(cells, drawn)],
    }


def _undrawn(cells: Sequence[Cell], drawn: Sequence[Curve]) -> list[str]:
    names, there = _names(cells), {curve.attack for curve in drawn}
    return list(
        dict.fromkeys(
            names[cell.spec.attack] for cell in cells if cell.status == "done" and names[cell.spec.attack] not in there
        )
    )


def curves(cells: Sequence[Cell], layers: Sequence[str]) -> tuple[Curve, ...]:
    """Return a curve an attack; cells without a score, or without a control to compare it with, are left out."""
    found = []
    for attack, name in _names(cells).items():
        own = [cell for cell in cells if cell.status == "done" and cell.spec.attack == attack]
        chosen = _metric(own)
        if chosen is None:
            continue
        recovers, metric = chosen
        own.sort(key=lambda cell: layers.index(cell.spec.layer))
        points = [
            point for cell in own if (point := _point(cell.spec.layer, cell.summary[metric], _share(cell, metric)))
        ]
        if points:
            found.append(Curve(recovers, name, metric, tuple(points)))
    return tuple(found)


def steps(cells: Sequence[Cell], drawn: Sequence[Curve]) -> tuple[Step, ...]:
    """Return every step from one cut of a curve to the next, on the pictures that both have a value of."""
    found = []
    names = _names(cells)
    for curve in drawn:
        at = {
            cell.spec.layer: cell for cell in cells if cell.status == "done" and names[cell.spec.attack] == curve.attack
        }
        for first, second in zip(curve.points, curve.points[1:], strict=False):
            values = [_values(at[point.layer], curve.metric) for point in (first, second)]
            both = [key for key in values[0] if key in values[1]]
            if both:
                pair = ([one[key] for key in both] for one in values)
                found.append(
                    Step(curve.attack, curve.metric, first.layer, second.layer, len(both), *paired_difference(*pair))
                )
    return tuple(found)


def _names(cells: Sequence[Cell]) -> dict[str, str]:
    """Return a name for each attack: short, with what tells it from others of that name."""
    attacks = list(dict.fromkeys(cell.spec.attack for cell in cells))
    short = {attack: _name(attack) for attack in attacks}
    found = {}
    for attack in attacks:
        alike = [_settings(other) for other in attacks if short[other] == short[attack]]
        own = _settings(attack)
        odd = [key for key in own if any(other.get(key) != own[key] for other in alike)]
        told = [f"{key}={_ending(own[key], [other.get(key, '') for other in alike])}" for key in odd]
        found[attack] = ", ".join([short[attack], *told])
    return found


def _ending(path: str, others: Sequence[str]) -> str:
    """Return a file's name, with as many folders as it takes to tell it from the others."""
    for count in range(1, len(Path(path).parts)):
        ending = Path(*Path(path).parts[-count:])
        if all(other == path or Path(*Path(other).parts[-count:]) != ending for other in others):
            return str(ending)
    return path


def _name(attack: str) -> str:
    """The attack's name with what it reads, of which kind it is, and whether the leak is run on to a later cut."""
    name, said = attack.partition(":")[0], _settings(attack)
    more = {"caprecover": said.get("read", "caption"), "probe": said.get("kind", "linear")}.get(name, "caption")
    words = [name] if more == "caption" else [name, more]
    return ", ".join([*words, f"run on to {said['through']}"] if said.get("through") else words)


def _settings(attack: str) -> dict[str, str]:
    return dict(item.partition("=")[::2] for item in attack.partition(":")[2].split(",") if item)


def _metric(cells: Sequence[Cell]) -> tuple[Recovers, str] | None:
    """Return what cells are compared by: what all have with a control beside it, else what all have."""

    def drawn(key: str) -> bool:
        return all(key in cell.summary and _point("", cell.summary[key], _share(cell, key)) for cell in cells)

    def there(key: str) -> bool:
        return all(key in cell.summary and not math.isnan(cell.summary[key].mean) for cell in cells)

    for suits in (drawn, there):
        for recovers, keys in _METRICS.items():
            for key in keys:
                if suits(key):
                    return recovers, key
    return None


def _share(cell: Cell, metric: str) -> Stats | None:
    return cell.summary.get(_SHARES.get(metric, metric))


def _point(layer: str, stats: Stats, share: Stats | None) -> Point | None:
    if (
        math.isnan(stats.mean)
        or share is None
        or share.recovery is None
        or share.recovery_low is None
        or share.recovery_high is None
    ):
        return None
    three = share.recovery, share.recovery_low, share.recovery_high
    return Point(layer, stats.n, stats.mean, stats.ci_low, stats.ci_high, *three)


def _values(cell: Cell, metric: str) -> dict[str, float]:
    return {
        sample.image_sha256: sample.metrics[metric]
        for sample in cell.samples
        if metric in sample.metrics and not math.isnan(sample.metrics[metric])
    }
