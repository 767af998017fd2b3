"""What an attack's own language model makes of captions under the right leak, another picture's, and none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..metrics.likelihood import Nll, NllGap
from ..metrics.tokens import words
from ..types import Captions, Leak, Metric, Pictures, Recoverer, Recovery, Status
from .workbench import Workbench

SHUFFLED, ZERO_FEATURES = "shuffled", "zero_features"
_BATCH = 32

Values = dict[str, float]


@dataclass
class Told:
    """One entry a sample: the metrics, and the same of each control by its name."""

    metrics: list[Values]
    controls: list[dict[str, Values]] = field(default_factory=list)

    def control(self, row: int, name: str, key: str, value: float) -> None:
        """Keep one value of a control."""
        self.controls[row].setdefault(name, {})[key] = value


class Likelihoods:
    """Asks `Recoverer.log_likelihood` what `nll` and `nll_gap` need.

    Beside `nll`, of the references, stands that of the same references under another picture's leak and under zeros;
    beside `nll_gap`, of the recovered caption, that of the captions that the null controls hand in.
    """

    def __init__(
        self,
        bench: Workbench,
        recoverer: Recoverer,
        metrics: Mapping[str, Metric],
        other: Callable[[int], Tensor | None],
    ) -> None:
        self._bench = bench
        self._recoverer = recoverer
        self._surprises = {key: metric for key, metric in metrics.items() if isinstance(metric, Nll)}
        self._differences = {key: metric for key, metric in metrics.items() if isinstance(metric, NllGap)}
        self._other = other

    def score(self, indices: Sequence[int], leak: Leak, recovery: Recovery, nulls: Mapping[str, Recovery]) -> Told:
        """Score recovered captions of the pictures at `indices`; nothing where the attack has no language model."""
        told = Told([{} for _ in indices], [{} for _ in indices])
        if not (self._surprises or self._differences) or not isinstance(recovery.value, Captions):
            return told
        if self._recoverer.log_likelihood(leak.rows(0, 1), [recovery.value.texts[0]]) is None:
            return told
        others = [self._other(index) for index in indices]
        for key, surprise in self._surprises.items():
            self._references(key, surprise, indices, leak, others, told)
        for key, difference in self._differences.items():
            for row, value in self._gaps(difference, leak, others, recovery.value.texts).items():
                told.metrics[row][key] = value
            for name, null in nulls.items():
                if isinstance(null.value, Captions):
                    for row, value in self._gaps(difference, leak, others, null.value.texts).items():
                        told.control(row, name, key, value)
        return told

    def _references(
        self, key: str, metric: Nll, indices: Sequence[int], leak: Leak, others: Sequence[Tensor | None], told: Told
    ) -> None:
        captions = self._bench.captioned.captions or ()
        pairs = [(row, text) for row, index in enumerate(indices) for text in captions[index] if words(text)]
        for row, value in self._means(metric, pairs, leak, leak.features).items():
            told.metrics[row][key] = value
        for row, value in self._means(metric, pairs, leak, torch.zeros_like(leak.features)).items():
            told.control(row, ZERO_FEATURES, key, value)
        elsewhere = torch.stack([leak.features[row] if other is None else other for row, other in enumerate(others)])
        paired = [pair for pair in pairs if others[pair[0]] is not None]
        for row, value in self._means(metric, paired, leak, elsewhere).items():
            told.control(row, SHUFFLED, key, value)

    def _means(self, metric: Nll, pairs: Sequence[tuple[int, str]], leak: Leak, features: Tensor) -> dict[int, float]:
        """The mean over each row's captions."""
        found: dict[int, list[float]] = {}
        asked = self._ask(leak, features, [row for row, _ in pairs], [text for _, text in pairs])
        values = metric(*_carrying([text for _, text in pairs], asked)).tolist()
        for (row, _), value in zip(pairs, values, strict=True):
            found.setdefault(row, []).append(value)
        return {row: sum(values) / len(values) for row, values in found.items()}

    def _gaps(
        self, metric: NllGap, leak: Leak, others: Sequence[Tensor | None], texts: Sequence[str]
    ) -> dict[int, float]:
        rows = [row for row, other in enumerate(others) if other is not None]
        said = [texts[row] for row in rows]
        own = self._ask(leak, leak.features, rows, said)
        elsewhere = torch.stack([leak.features[r] if other is None else other for r, other in enumerate(others)])
        values = metric(*_carrying(said, own - self._ask(leak, elsewhere, rows, said))).tolist()
        return dict(zip(rows, values, strict=True))

    def _ask(self, leak: Leak, features: Tensor, rows: Sequence[int], texts: Sequence[str]) -> Tensor:
        """Nats a token of each text under the row of features that goes with it."""
        parts = [torch.zeros(0, dtype=torch.float64)]
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            found = self._recoverer.log_likelihood(leak.with_features(features[list(rows[part])]), texts[part])
            assert found is not None  # the attack answered once
            parts.append(found.detach().double().cpu())
        return torch.cat(parts)


def _carrying(texts: Sequence[str], log_likelihood: Tensor) -> tuple[Pictures, Recovery]:
    """Captions that carry these values, and as many pictures, as a metric takes them."""
    count = len(texts)
    value = Captions(tuple(texts), log_likelihood)
    recovery = Recovery(value, (Status("stopped"),) * count, torch.zeros(count, dtype=torch.long))
    return Pictures(torch.empty(count, 3, 0, 0), tuple(map(str, range(count)))), recovery
