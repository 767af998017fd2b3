"""Scores of a batch of recoveries and of the null controls on the same pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import seeding
from ..metrics.human import human_ceiling
from ..metrics.identity import IdentityMetric
from ..metrics.retrieval import candidates
from ..metrics.sentences import CaptionMetric, referenced
from ..metrics.tokens import words
from ..types import (
    Captions,
    Images,
    Leak,
    Metric,
    Pictures,
    Recoverer,
    Recovery,
    Scores,
    SeepageError,
    SplitModel,
    Status,
)
from .rows import take, take_recovery
from .workbench import Workbench, residuals

MEAN_PICTURE, PRIOR, CONSTANT, SHUFFLED = "mean_picture", "prior", "constant", "shuffled"
ORIGINAL, HUMAN = "original", "human"
CEILINGS = (ORIGINAL, HUMAN)
"""No null controls: what the originals themselves score where that is not the same for all, and what a person does."""


@dataclass(frozen=True)
class Scored:
    """One entry a sample; `labels` what the judge says of the recoveries and of the originals."""

    residual: list[float | None]
    metrics: list[dict[str, float]]
    controls: list[dict[str, dict[str, float]]]
    labels: tuple[list[str], list[str]] | None


class Scorer:
    """Scores recoveries against the truth. It alone holds both."""

    def __init__(self, bench: Workbench, split: SplitModel, recoverer: Recoverer) -> None:
        self._bench = bench
        self._split = split
        self._recoverer = recoverer
        count = len(bench.source)
        self._shift = 0 if count < 2 else 1 + bench.request.seed % (count - 1)

    def score(self, indices: Sequence[int], truth: Pictures, leak: Leak, recovery: Recovery) -> Scored:
        """Score recoveries, none of them failed, of the pictures at `indices`, and what else their leak tells."""
        rows = range(len(indices))
        truth = self._named(indices, truth)
        controls: list[dict[str, dict[str, float]]] = [{} for _ in rows]
        for name, control in self._null_recoveries(indices, recovery).items():
            for row, values in enumerate(self._metrics(truth, control)):
                controls[row][name] = values
        for row, values in self._shuffled(indices, truth, recovery).items():
            controls[row][SHUFFLED] = values
        for row, values in enumerate(self._identities(truth, _as_recovery(truth.images))):
            controls[row] |= {ORIGINAL: values} if values else {}
        if isinstance(recovery.value, Captions):
            for row, values in self._human(truth).items():
                controls[row] |= {HUMAN: values} if values else {}
        metrics = self._metrics(truth, recovery)
        for row, index in enumerate(indices):
            metrics[row] |= self._found(leak, row, index)
            other = next(self._following(index, captioned=True), None)
            values = {} if other is None else self._found(leak, row, other)
            if values:
                controls[row][SHUFFLED] = controls[row].get(SHUFFLED, {}) | values
        labels = None
        if isinstance(recovery.value, Images):
            said = self._bench.judge_label(recovery.value.images), self._bench.judge_label(truth.images)
            labels = None if said[0] is None or said[1] is None else (said[0], said[1])
        return Scored(residuals(self._split, leak.features, recovery), metrics, controls, labels)

    def _metrics(self, truth: Pictures, recovery: Recovery) -> list[dict[str, float]]:
        scores = self._identities(truth, recovery)
        for row, values in self._sentences(truth, recovery).items():
            scores[row] |= values
        for key, metric in self._available(recovery):
            if not isinstance(metric, IdentityMetric | CaptionMetric):
                for row, value in enumerate(metric(truth, recovery, self._bench.judge).tolist()):
                    scores[row][key] = value
        return scores

    def _sentences(self, truth: Pictures, recovery: Recovery) -> dict[int, dict[str, float]]:
        """The metrics that compare captions; nothing for pictures without references."""
        rows = referenced(truth)
        scores: dict[int, dict[str, float]] = {row: {} for row in rows}
        if rows:
            known, recovered = take(truth, rows), take_recovery(recovery, rows)
            for key, metric in self._available(recovery):
                if isinstance(metric, CaptionMetric):
                    values = metric(known, recovered, gallery=self._bench.captioned).tolist()
                    for row, value in zip(rows, values, strict=True):
                        scores[row][key] = value
        return scores

    def _found(self, leak: Leak, row: int, picture: int) -> dict[str, float]:
        """The metrics that ask whether a row of the leak tells a picture's own caption from those of others."""
        bench, captions = self._bench, self._bench.captioned.captions or ()
        asked = {
            key: item for key, item in bench.metrics.items() if Scores in item.reads and key not in bench.unavailable
        }
        if not asked or not any(map(words, captions[picture])):
            return {}
        texts, match = candidates(captions, picture, seeding.generator(bench.request.seed, "metric", "gallery"))
        scores = self._recoverer.score(leak.rows(row, row + 1), texts)
        if scores is None:
            return {}
        value = Scores(scores.detach().cpu(), torch.tensor([match]))
        recovery = Recovery(value, (Status("stopped"),), torch.zeros(1, dtype=torch.long))
        return {key: item(take(bench.captioned, [picture]), recovery).item() for key, item in asked.items()}

    def _human(self, truth: Pictures) -> dict[int, dict[str, float]]:
        """What one reference of each picture scores against its others, where it has any."""
        rows = [row for row in referenced(truth) if len((truth.captions or ())[row]) > 1]
        if not rows:
            return {}
        scores = self._sentences(*human_ceiling(take(truth, rows)))
        return {rows[place]: values for place, values in scores.items()}

    def _identities(self, truth: Pictures, recovery: Recovery) -> list[dict[str, float]]:
        """The metrics that ask who it is; nothing for people whom the gallery does not know."""
        scores: list[dict[str, float]] = [{} for _ in range(len(truth))]
        gallery = self._bench.gallery_pictures
        if gallery is None or truth.identities is None:
            return scores
        for key, metric in self._available(recovery):
            if isinstance(metric, IdentityMetric):
                for row, value in enumerate(metric(truth, recovery, self._bench.face, gallery).tolist()):
                    if truth.identities[row] in (gallery.identities or ()):
                        scores[row][key] = value
        return scores

    def _available(self, recovery: Recovery) -> Iterator[tuple[str, Metric]]:
        for key, metric in self._bench.metrics.items():
            if key not in self._bench.unavailable and isinstance(recovery.value, tuple(metric.reads)):
                yield key, metric

    def _named(self, indices: Sequence[int], truth: Pictures) -> Pictures:
        """The truth with its people by the names that the gallery goes by."""
        if self._bench.gallery is None:
            return truth
        return replace(truth, identities=tuple(self._bench.gallery.audited[index] for index in indices))

    def _null_recoveries(self, indices: Sequence[int], recovery: Recovery) -> dict[str, Recovery]:
        """What an attacker without the features would hand in for these pictures."""
        count = len(indices)
        hashes = [self._bench.hashes[index] for index in indices]
        found = {PRIOR: self._recoverer.prior(count, seeding.generators(self._bench.request.seed, "control", hashes))}
        constant = self._recoverer.constant(count)
        if constant is not None:
            found[CONSTANT] = constant
        if isinstance(recovery.value, Images):
            found[MEAN_PICTURE] = _as_recovery(self._bench.mean_picture.expand(count, -1, -1, -1))
        return {name: _on_cpu(control) for name, control in found.items()}

    def _shuffled(self, indices: Sequence[int], truth: Pictures, recovery: Recovery) -> dict[int, dict[str, float]]:
        """The very recoveries scored against another picture's truth, by a fixed derangement, of people for theirs."""
        scores: dict[int, dict[str, float]] = {}
        for row, index in enumerate(indices):
            own = take_recovery(recovery, [row])
            other = self._other(index, captioned=isinstance(recovery.value, Captions))
            if other is not None:
                scores[row] = self._metrics(other, own)[0]
            person = self._somebody_else(index)
            if person is not None:
                # An identity metric reads nothing of the truth but the name.
                elsewhere = replace(take(truth, [row]), identities=(person,))
                scores[row] = scores.get(row, {}) | self._identities(elsewhere, own)[0]
        return scores

    def _somebody_else(self, index: int) -> str | None:
        gallery = self._bench.gallery
        return None if gallery is None else gallery.others.get(gallery.audited[index])

    def _other(self, index: int, *, captioned: bool) -> Pictures | None:
        """The truth that the picture at `index` is shuffled with: the next readable one of the derangement.

        Captions are shuffled among the pictures that have some.
        """
        for other in self._following(index, captioned=captioned):
            entry = self._bench.source.entries[other]
            try:
                return Pictures(self._split.load(entry.path)[None], (entry.id,), captions=(entry.captions,))
            except SeepageError:  # unreadable, or a shape that the victim does not take
                continue
        return None

    def _following(self, index: int, *, captioned: bool) -> Iterator[int]:
        """The other pictures in the derangement's order, without copies of this one."""
        count = len(self._bench.source)
        for step in range(count if count > 1 else 0):
            other = (index + self._shift + step) % count
            if self._bench.hashes[other] == self._bench.hashes[index]:
                continue
            if not captioned or any(map(words, self._bench.source.entries[other].captions)):
                yield other


def _as_recovery(images: Tensor) -> Recovery:
    return Recovery(Images(images), (Status("stopped"),) * len(images), torch.zeros(len(images), dtype=torch.long))


def _on_cpu(recovery: Recovery) -> Recovery:
    if isinstance(recovery.value, Images):
        return Recovery(Images(recovery.value.images.detach().cpu()), recovery.status, recovery.passes)
    return recovery
