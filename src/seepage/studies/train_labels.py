"""Training of attacks that fit themselves: a probe, from cached features of labelled pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import seeding
from ..attacks.probe import Probe, ProbeRecoverer
from ..types import Examples, Knowledge, Labels, Progress, Recovery
from .material import LEAST, Material, MaterialError, Pairs
from .outcome import Outcome, percent

_FIVE = 5


def train_probe(
    attack: Probe, text: str, material: Material, seed: int, progress: Progress
) -> tuple[ProbeRecoverer, Outcome]:
    """Return a probe fitted at the material's one layer, and how it does on held-out pictures beside its controls.

    Raises:
        MaterialError: the pictures have no labels, or the two parts name their classes differently.
        NotRunError, TrainingError: as `Probe.fit` does.
    """
    (layer, split), train, select = *material.splits.items(), material.train, material.select
    learned, labelled = (part.keeping(lambda entry: entry.label is not None) for part in (train, select))
    if len(labelled.rows) < LEAST or not learned.rows:
        part = select if learned.rows else train
        raise MaterialError(
            f"too few pictures of {part.source.name} have a label: a probe learns labels (`label` in metadata.jsonl, "
            "or a folder a class)"
        )
    require_same_classes(material)
    public = Examples(Pairs(train, layer, pixels=False), Pairs(select, layer, pixels=False))
    knowledge = Knowledge(split.image_shape, public=public, classes=train.source.classes)
    generator = seeding.generator(seed, "fit", split.name, layer, text)
    recoverer = attack.fit(knowledge, generator, progress=progress)
    assert isinstance(recoverer, ProbeRecoverer)
    leaks = [leak for leak, _ in Pairs(labelled, layer, pixels=False)]
    known = torch.tensor([labelled.source.entries[row].label for row in labelled.rows])
    draws = seeding.generators(seed, "attack", [str(row) for row in labelled.rows])
    said = torch.cat([_scores(recoverer.recover(leak, draws[: len(leak)])) for leak in leaks])
    constant = recoverer.constant(len(known))
    rows = [("its own features", _top(said, known, 1), _top(said, known, _FIVE))]
    rows.append(("control: another picture's", _top(said.roll(1, 0), known, 1), _top(said.roll(1, 0), known, _FIVE)))
    if constant is not None:
        alike = _scores(constant)
        rows.append(("control: the commonest label", _top(alike, known, 1), _top(alike, known, _FIVE)))
    few = said.shape[1] <= _FIVE  # where any label is among the best five
    table = tuple((n, percent(one), "–" if few else percent(five), str(len(known))) for n, one, five in rows)
    title = f"Labels of held-out pictures, read at {layer}"
    return recoverer, Outcome((), title, ("read from", "top-1", "top-5", "pictures"), table, (learned, labelled))


def require_same_classes(material: Material) -> None:
    """Refuse two parts whose labels would mean other things.

    Raises:
        MaterialError: they do.
    """
    mine, theirs = (part.source.classes for part in (material.train, material.select))
    if mine is not None and theirs is not None and mine != theirs:
        other = next((name for name in theirs if name not in mine), theirs[0] if theirs else "none")
        raise MaterialError(
            f"{material.select.source.name} has other classes than {material.train.source.name} (first: {other!r}): "
            "select on pictures of the classes that are trained on"
        )


def _scores(recovery: Recovery) -> Tensor:
    assert isinstance(recovery.value, Labels)
    return recovery.value.scores


def _top(scores: Tensor, labels: Tensor, count: int) -> float:
    """Return the share of rows whose label is among the best `count`; a label without a column is not."""
    if not len(labels):
        return math.nan
    best = scores.topk(min(count, scores.shape[1]), dim=1).indices
    return float((best == labels[:, None]).any(1).float().mean())
