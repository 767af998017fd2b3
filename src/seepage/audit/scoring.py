"""Scores of a batch of recoveries and of the null controls on the same pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from .. import seeding
from ..data.source import UNLABELLED
from ..metrics.constants import best_caption
from ..metrics.human import human_ceiling
from ..metrics.identity import IdentityMetric
from ..metrics.label import TopLabels, strangers
from ..metrics.likelihood import Likelihood
from ..metrics.retrieval import candidates
from ..metrics.sentences import CaptionMetric, referenced
from ..metrics.tokens import words
from ..types import (
    Attack,
    Captions,
    Images,
    Labels,
    Leak,
    Metric,
    Pictures,
    Recoverer,
    Recovery,
    Scores,
    SeepageError,
    Status,
)
from .derangement import Derangement
from .exposure import Exposure
from .likelihoods import SHUFFLED, ZERO_FEATURES, Likelihoods
from .residual import residuals
from .rows import take, take_recovery
from .workbench import Workbench

MEAN_PICTURE, PRIOR, CONSTANT = "mean_picture", "prior", "constant"
ORIGINAL, HUMAN = "original", "human"
CEILINGS = (ORIGINAL, HUMAN)
"""No null controls: what the originals themselves score where that is not the same for all, and what a person does."""


@lru_cache(maxsize=1)
def _best_caption(captions: tuple[tuple[str, ...], ...]) -> str:
    return best_caption(captions)


@dataclass(frozen=True)
class Scored:
    """One entry a sample; `labels` what the judge says of the recoveries and of the originals."""

    residual: list[float | None]
    metrics: list[dict[str, float]]
    controls: list[dict[str, dict[str, float]]]
    labels: tuple[list[str], list[str]] | None


class Scorer:
    """Scores recoveries against the truth. It alone holds both."""

    def __init__(self, bench: Workbench, exposure: Exposure, recoverer: Recoverer, attack: Attack) -> None:
        recovers = attack.recovers
        self._bench = bench
        self._taught = getattr(attack, "adapter", None) is not None
        self._exposure = exposure
        self._split = exposure.split
        self._recoverer = recoverer
        lacking = bench.unavailable(recovers)
        self._asked = {key: metric for key, metric in bench.metrics(recovers).items() if key not in lacking}
        self._judge = bench.judge(recovers)
        self._likelihoods = Likelihoods(bench, recoverer, self._asked, self._other_leak)
        self._of_zeros: Recovery | None = None
        self._ring = Derangement(bench.source.entries, bench.hashes, bench.request.seed, SHUFFLED)

    def score(self, indices: Sequence[int], truth: Pictures, leak: Leak, recovery: Recovery) -> Scored:
        """Score recoveries, none of them failed, of the pictures at `indices`, and what else their leak tells."""
        rows = range(len(indices))
        truth = self._named(indices, truth)
        controls: list[dict[str, dict[str, float]]] = [{} for _ in rows]
        nulls = self._null_recoveries(indices, leak, recovery)
        for name, control in nulls.items():
            for row, values in enumerate(self._metrics(truth, control)):
                controls[row][name] = values
        for row, values in self._shuffled(indices, truth, recovery).items():
            controls[row][SHUFFLED] = values
        if isinstance(recovery.value, Images):
            originals = _as_recovery(truth.images)
            for row, values in enumerate(self._identities(truth, originals)):
                values |= self._labels(truth, originals).get(row, {})
                controls[row] |= {ORIGINAL: values} if values else {}
        if isinstance(recovery.value, Captions):
            for row, values in self._human(truth).items():
                controls[row] |= {HUMAN: values} if values else {}
        metrics = self._metrics(truth, recovery)
        told = self._likelihoods.score(indices, leak, recovery, nulls)
        for row in rows:
            metrics[row] |= told.metrics[row]
            for name, values in told.controls[row].items():
                controls[row][name] = controls[row].get(name, {}) | values
        for row, index in enumerate(indices):
            metrics[row] |= self._found(leak, row, index)
            other = next(self._ring.others(index, "captions"), None)
            values = {} if other is None else self._found(leak, row, other)
            if values:
                controls[row][SHUFFLED] = controls[row].get(SHUFFLED, {}) | values
        labels = None
        if isinstance(recovery.value, Images) and self._judge is not None:
            labels = self._judge.words(recovery.value.images), self._judge.words(truth.images)
        return Scored(residuals(self._split, leak, recovery, self._exposure.law), metrics, controls, labels)

    def _metrics(self, truth: Pictures, recovery: Recovery) -> list[dict[str, float]]:
        scores = self._identities(truth, recovery)
        for found in (self._sentences(truth, recovery), self._labels(truth, recovery)):
            for row, values in found.items():
                scores[row] |= values
        for key, metric in self._available(recovery):
            if not isinstance(metric, IdentityMetric | CaptionMetric | Likelihood | TopLabels):
                for row, value in enumerate(metric(truth, recovery, self._judge).tolist()):
                    scores[row][key] = value
        return scores

    def _labels(self, truth: Pictures, recovery: Recovery) -> dict[int, dict[str, float]]:
        """The metrics that compare labels; nothing for pictures without one, or of classes that cannot be said."""
        value, labels = recovery.value, [] if truth.labels is None else truth.labels.tolist()
        rows = [row for row, label in enumerate(labels) if label >= 0]
        if not rows or (
            isinstance(value, Labels) and strangers(truth.classes, value.classes, value.scores.shape[1]) is not None
        ):
            return {}
        scores: dict[int, dict[str, float]] = {row: {} for row in rows}
        known, recovered = take(truth, rows), take_recovery(recovery, rows)
        for key, metric in self._available(recovery):
            if isinstance(metric, TopLabels):
                for row, found in zip(rows, metric(known, recovered, self._judge).tolist(), strict=True):
                    scores[row][key] = found
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
        asked = {key: item for key, item in self._asked.items() if Scores in item.reads}
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
        """What one reference of each picture scores against its others, where it has any, and by itself."""
        rows = [row for row in referenced(truth) if len((truth.captions or ())[row]) > 1]
        if not rows:
            return {}
        others, said = human_ceiling(take(truth, rows))
        scores = self._sentences(others, said)
        for key, metric in self._available(said):
            if not isinstance(metric, CaptionMetric | Likelihood):
                for place, value in enumerate(metric(others, said).tolist()):
                    scores.setdefault(place, {})[key] = value
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
        for key, metric in self._asked.items():
            if isinstance(recovery.value, tuple(metric.reads)):
                yield key, metric

    def _named(self, indices: Sequence[int], truth: Pictures) -> Pictures:
        """The truth with its people by the names that the gallery goes by."""
        if self._bench.gallery is None:
            return truth
        return replace(truth, identities=tuple(self._bench.gallery.audited[index] for index in indices))

    def _null_recoveries(self, indices: Sequence[int], leak: Leak, recovery: Recovery) -> dict[str, Recovery]:
        """What an attacker without the features would hand in for these pictures."""
        count = len(indices)
        hashes = [self._bench.hashes[index] for index in indices]
        found = {PRIOR: self._recoverer.prior(count, seeding.generators(self._bench.request.seed, "control", hashes))}
        constant = self._constant(count, recovery)
        if constant is not None:
            found[CONSTANT] = constant
        if isinstance(recovery.value, Images):
            found[MEAN_PICTURE] = _as_recovery(self._bench.mean_picture.expand(count, -1, -1, -1))
        else:
            silent = self._silenced(leak)
            # An attack may refuse a leak of zeros: then its prior is what it has instead.
            if silent.status[0].kind != "failed":
                found[ZERO_FEATURES] = take_recovery(silent, [0] * count)
        return {name: _on_cpu(control) for name, control in found.items()}

    def _constant(self, count: int, recovery: Recovery) -> Recovery | None:
        """The one answer that scores best on what was learned from: an adapter brings its own, else it is found."""
        own = self._recoverer.constant(count)
        public = self._bench.public
        if self._taught or public is None or not isinstance(recovery.value, Captions) or "captions" not in public.known:
            return own
        best = _best_caption(tuple(entry.captions for entry in public.entries))
        if not best:
            return own
        status, passes = (Status("stopped", "no leak"),) * count, torch.zeros(count, dtype=torch.long)
        return Recovery(Captions((best,) * count, torch.full((count,), torch.nan)), status, passes)

    def _silenced(self, leak: Leak) -> Recovery:
        """What the attack makes of a row of zeros, asked once."""
        if self._of_zeros is None:
            row = leak.rows(0, 1)
            draw = seeding.generator(self._bench.request.seed, "control", ZERO_FEATURES)
            self._of_zeros = self._recoverer.recover(row.with_features(torch.zeros_like(row.features)), [draw])
        return self._of_zeros

    def _shuffled(self, indices: Sequence[int], truth: Pictures, recovery: Recovery) -> dict[int, dict[str, float]]:
        """The very recoveries scored against another picture's truth, by a fixed derangement, of people for theirs."""
        scores: dict[int, dict[str, float]] = {}
        for row, index in enumerate(indices):
            own = take_recovery(recovery, [row])
            having = {Captions: "captions", Labels: "label"}.get(type(recovery.value), "")
            other = self._other(index, having)
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

    def _other(self, index: int, having: str) -> Pictures | None:
        """The truth that the picture at `index` is shuffled with: the next readable one of the derangement.

        Captions are shuffled among the pictures that have some, and so are labels.
        """
        return next((pictures for _, pictures in self._readable(index, having)), None)

    def _other_leak(self, index: int) -> Tensor | None:
        """The features that the one at `index` is shuffled with: the next in the derangement that are numbers."""
        for other, pictures in self._readable(index, ""):
            if self._bench.at_hand(other):
                leak, (finite,) = self._exposure.received([other], pictures.images)
                if finite:
                    return leak.features[0]
        return None

    def _readable(self, index: int, having: str) -> Iterator[tuple[int, Pictures]]:
        source = self._bench.source
        for other in self._ring.others(index, having):
            entry = source.entries[other]
            try:
                image = self._split.load(entry.path)[None]
            except SeepageError:  # unreadable, or a shape that the victim does not take
                continue
            label = torch.tensor([UNLABELLED if entry.label is None else entry.label])
            yield other, Pictures(image, (entry.id,), label, source.classes, (entry.captions,))


def _as_recovery(images: Tensor) -> Recovery:
    return Recovery(Images(images), (Status("stopped"),) * len(images), torch.zeros(len(images), dtype=torch.long))


def _on_cpu(recovery: Recovery) -> Recovery:
    return take_recovery(recovery, range(len(recovery.status)))
