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
_AT_ONCE = 64
"""So many captions are asked for in one call, each with its leak."""
_BYTES = 1 << 28
_OWN = ""

Values = dict[str, float]
Asked = tuple[int, str]
"""A row of the leak, and a caption."""


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
    beside `nll_gap`, of the recovered caption, that of the captions that the null controls hand in. All that is asked
    of a leak is asked at once, and once, so that an attack can read it once.
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
        paired = [row for row, other in enumerate(others) if other is not None]
        references = self._references(indices) if self._surprises else []
        said = {name: null.value.texts for name, null in nulls.items() if isinstance(null.value, Captions)}
        said = {_OWN: recovery.value.texts, **said} if self._differences else {}
        gaps = [(row, texts[row]) for texts in said.values() for row in paired]
        shuffled = [pair for pair in references if others[pair[0]] is not None]
        elsewhere = torch.stack([leak.features[r] if other is None else other for r, other in enumerate(others)])
        under = self._ask(leak, [*references, *gaps])
        under_another = self._ask(leak.with_features(elsewhere), [*shuffled, *gaps])
        # Zeros are the same in every row.
        nothing = leak.with_features(torch.zeros_like(leak.features[:1]))
        silent = self._ask(nothing, [(0, text) for _, text in references])
        for key, surprise in self._surprises.items():
            for row, value in _means(surprise, references, [under[pair] for pair in references]).items():
                told.metrics[row][key] = value
            for row, value in _means(surprise, references, [silent[0, text] for _, text in references]).items():
                told.control(row, ZERO_FEATURES, key, value)
            for row, value in _means(surprise, shuffled, [under_another[pair] for pair in shuffled]).items():
                told.control(row, SHUFFLED, key, value)
        for key, difference in self._differences.items():
            for name, texts in said.items():
                pairs = [(row, texts[row]) for row in paired]
                found = _means(difference, pairs, [under[pair] - under_another[pair] for pair in pairs])
                for row, value in found.items():
                    if name == _OWN:
                        told.metrics[row][key] = value
                    else:
                        told.control(row, name, key, value)
        return told

    def _references(self, indices: Sequence[int]) -> list[Asked]:
        captions = self._bench.captioned.captions or ()
        return [(row, text) for row, index in enumerate(indices) for text in captions[index] if words(text)]

    def _ask(self, leak: Leak, pairs: Sequence[Asked]) -> dict[Asked, float]:
        """Nats a token of each text under its row of the leak."""
        found: dict[Asked, float] = {}
        ordered = sorted(dict.fromkeys(pairs), key=lambda pair: pair[0])
        each = leak.features[:1].numel() * leak.features.element_size()
        size = max(1, min(_AT_ONCE, _BYTES // each))
        for start in range(0, len(ordered), size):
            part = ordered[start : start + size]
            rows = leak.with_features(leak.features[[row for row, _ in part]])
            values = self._recoverer.log_likelihood(rows, [text for _, text in part])
            assert values is not None  # the attack answered once
            found.update(zip(part, values.detach().double().cpu().tolist(), strict=True))
        return found


def _means(metric: Metric, pairs: Sequence[Asked], values: Sequence[float]) -> dict[int, float]:
    """The mean over each row's captions of what a metric makes of their log-likelihoods."""
    found: dict[int, list[float]] = {}
    carried = _carrying([text for _, text in pairs], torch.tensor(values, dtype=torch.float64))
    for (row, _), value in zip(pairs, metric(*carried).tolist(), strict=True):
        found.setdefault(row, []).append(value)
    return {row: sum(own) / len(own) for row, own in found.items()}


def _carrying(texts: Sequence[str], log_likelihood: Tensor) -> tuple[Pictures, Recovery]:
    """Captions that carry these values, and as many pictures, as a metric takes them."""
    count = len(texts)
    value = Captions(tuple(texts), log_likelihood)
    recovery = Recovery(value, (Status("stopped"),) * count, torch.zeros(count, dtype=torch.long))
    return Pictures(torch.empty(count, 3, 0, 0), tuple(map(str, range(count)))), recovery
