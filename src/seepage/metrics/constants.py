"""What to say of any picture: the one caption, and the one label, that score best on the training pictures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from .caption import Cider, runs
from .sentences import Pair
from .tokens import words

T = TypeVar("T")

_FINALISTS = 20
_SAMPLE = 300
_CANDIDATES = 20_000


def best_caption(captions: Sequence[Sequence[str]]) -> str:
    """Return the caption of a picture that, said of every picture, scores the highest mean CIDEr-D.

    Twenty are chosen by the mean cosine of tf-idf vectors, without CIDEr-D's clipping and length, among at most 20,000
    spread over all; those are scored as CIDEr-D does on at most 300 pictures spread over all. Where there are too few
    pictures for it, the cosine decides. Empty where no caption has words.
    """
    tokens = [[words(text) for text in own] for own in captions]
    seen: Counter[tuple[str, ...]] = Counter()
    for own in tokens:
        seen.update({run for said in own for run in runs(said)})
    known = sum(any(own) for own in tokens)
    centre: Counter[tuple[str, ...]] = Counter()
    for own in tokens:
        for said in own:
            for run, weight in _unit(said, seen, known).items():
                centre[run] += weight / len(own)  # type: ignore[assignment]  # a count with a fraction
    texts = list(dict.fromkeys(text for own in captions for text in own if words(text)))
    texts = _spread(texts, _CANDIDATES)
    if not texts:
        return ""
    ranked = sorted(
        texts,
        key=lambda text: -sum(weight * centre[run] for run, weight in _unit(words(text), seen, known).items()),
    )
    finalists = ranked[:_FINALISTS]
    documents = tuple(tuple(own) for own in captions)
    if Cider().lacks(documents) is not None:
        return finalists[0]
    pictures = _spread(
        [tuple(text for text in own if words(text)) for own in captions if any(map(words, own))], _SAMPLE
    )
    scores = [math.fsum(Cider().scores([Pair(text, own) for own in pictures], documents)) for text in finalists]
    return finalists[scores.index(max(scores))]


def commonest(labels: Sequence[int | None]) -> int | None:
    """Return the label that most pictures have, the lowest of several; None where none has any."""
    counts = Counter(label for label in labels if label is not None)
    return min(counts, key=lambda label: (-counts[label], label)) if counts else None


def _unit(said: tuple[str, ...], seen: Counter[tuple[str, ...]], known: int) -> dict[tuple[str, ...], float]:
    """Return a caption's tf-idf weights, of length 1 for each length of runs."""
    weights = {run: count * (math.log(known) - math.log(seen[run])) for run, count in runs(said).items()}
    norms: dict[int, float] = {}
    for run, weight in weights.items():
        norms[len(run)] = math.hypot(norms.get(len(run), 0.0), weight)
    return {run: weight / norms[len(run)] for run, weight in weights.items() if norms[len(run)]}


def _spread(items: Sequence[T], most: int) -> list[T]:
    step = max(len(items) / most, 1.0)
    return [items[int(place * step)] for place in range(min(most, len(items)))]
