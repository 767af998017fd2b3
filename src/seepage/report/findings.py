"""What captions and labels give away, layer by layer: which attack is the strongest, and whether it beats its controls.

Pictures are judged apart, by how recognisable they are (`verdict`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..schema import Cell, Stats
from .glossary import measure
from .verdict import LayerVerdict, Verdict, strongest_control

Kind = Literal["images", "captions", "labels"]
KINDS: tuple[Kind, ...] = ("images", "captions", "labels")
SAID = KINDS[1:]
CIDER_FROM = 50
"""The fewest pictures whose CIDEr-D decides: words are weighed by how rare they are among them."""

_PICTURES = {"psnr", "ssim", "ms_ssim", "lpips", "mse", "agreement", "rank1", "knn_distance"}
_CAPTIONS = ("cider", "rouge_l", "cosine", "bleu4", "bleu1", "nll_gap")
_OF_CAPTIONS = {*_CAPTIONS, "bleu2", "bleu3", "meteor", "spice", "nll", "perplexity", "repetition", "distinct"}
_OF_LABELS = ("top1", "top5")


@dataclass(frozen=True)
class Found:
    """One layer's strongest attack by the deciding metric; `told`: it beats every control, chance allowed for."""

    layer: str
    best: Cell
    stats: Stats
    control: tuple[str, Stats] | None
    told: bool


@dataclass(frozen=True)
class Finding:
    """What one setting's captions, or labels, give away by the metric `key`, at the layers that have a value."""

    kind: Kind
    key: str
    layers: tuple[Found, ...]

    @property
    def told(self) -> tuple[Found, ...]:
        """The layers at which something is told."""
        return tuple(found for found in self.layers if found.told)

    def at(self, layer: str) -> Found | None:
        """Return what was found at a layer."""
        return next((found for found in self.layers if found.layer == layer), None)


def kind(cell: Cell) -> Kind:
    """Return what a cell's attack recovers, by what its record holds."""
    shown = [sample.recovered for sample in cell.samples if sample.recovered is not None]
    if any(sample.residual is not None for sample in cell.samples) or any(item.image for item in shown):
        return "images"
    if any(item.label is not None for item in shown):
        return "labels"
    if any(item.caption is not None for item in shown):
        return "captions"
    keys = {key.partition(":")[0] for key in (*cell.summary, *cell.spec.metrics)}
    if keys & _PICTURES or not keys:
        return "images"
    return "captions" if keys & _OF_CAPTIONS else "labels" if keys & set(_OF_LABELS) else "images"


def kinds(cells: Iterable[Cell]) -> frozenset[Kind]:
    """Return what is recovered by any of these cells."""
    return frozenset(map(kind, cells))


def of_pictures(verdict: Verdict) -> Verdict | None:
    """Return a verdict without the cells that recover no pictures, None where it has no others."""
    layers = []
    for layer in verdict.layers:
        cells = tuple(cell for cell in layer.cells if kind(cell) == "images")
        layers += [dataclasses.replace(layer, cells=cells)] if cells else []
    return dataclasses.replace(verdict, layers=tuple(layers)) if layers else None


def findings(verdict: Verdict) -> tuple[Finding, ...]:
    """Return what captions and labels give away in one setting, where any attack recovered some."""
    found = []
    for said in SAID:
        cells = [cell for cell in verdict.cells if kind(cell) == said]
        if cells:
            key = _deciding(said, cells)
            layers = (_found(layer, said, key) for layer in verdict.layers)
            found.append(Finding(said, key, tuple(layer for layer in layers if layer is not None)))
    return tuple(found)


def leading(verdict: Verdict) -> frozenset[str]:
    """Return the keys of the cells that are the strongest of their layer among those that recover the same."""
    best = {layer.best.key for layer in verdict.layers if layer.best is not None}
    return frozenset(best | {layer.best.key for finding in findings(verdict) for layer in finding.layers})


def rebuilt(verdict: Verdict, layer: str, key: str) -> Cell | None:
    """Return the cell at a layer whose recovered pictures a judge labels best."""
    cells = [cell for cell in verdict.cells if cell.spec.layer == layer and kind(cell) == "images"]
    return _most(cells, key)


def _deciding(said: Kind, cells: Sequence[Cell]) -> str:
    """The first metric that all finished cells have, else one of them; CIDEr-D only where pictures are enough."""
    if said == "labels":
        return _OF_LABELS[0]
    done = [cell for cell in cells if cell.status == "done"]
    having = {key: sum(_decides(cell, key) for cell in done) for key in _CAPTIONS}
    shared = [key for key in _CAPTIONS if done and having[key] == len(done)]
    some = [key for key in _CAPTIONS if having[key]]
    return next(iter((*shared, *some)), "rouge_l")


def _decides(cell: Cell, key: str) -> bool:
    stats = cell.summary.get(key)
    return stats is not None and (key != "cider" or stats.n >= CIDER_FROM)


def _found(layer: LayerVerdict, said: Kind, key: str) -> Found | None:
    best = _most([cell for cell in layer.cells if kind(cell) == said and _decides(cell, key)], key)
    if best is None:
        return None
    return Found(layer.layer, best, best.summary[key], strongest_control(best, key), _told(best, key))


def _most(cells: Iterable[Cell], key: str) -> Cell | None:
    having = [cell for cell in cells if cell.status == "done" and key in cell.summary]
    having = [cell for cell in having if not math.isnan(cell.summary[key].mean)]
    return max(having, key=lambda cell: measure(key).leakage(cell.summary[key].mean), default=None)


def _told(cell: Cell, key: str) -> bool:
    """Whether a score is better than every control: its recovery lies above 0, else the intervals lie apart."""
    stats, control = cell.summary[key], strongest_control(cell, key)
    if stats.recovery_low is not None and not math.isnan(stats.recovery_low):
        return stats.recovery_low > 0
    floor = -math.inf if control is None else control[1].ci_high
    if key == "nll_gap":
        floor = max(floor, 0.0)  # what fits any leak
    return stats.ci_low > floor
