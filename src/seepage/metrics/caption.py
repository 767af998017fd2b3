"""Scores of captions by the words they share with the references: BLEU, ROUGE-L, CIDEr-D."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from ..registry import register
from ..types import NotRunError
from .sentences import CaptionMetric, Documents, Pair
from .tokens import words

Words = tuple[str, ...]
Counts = Mapping[Words, int]
_LONGEST = 4
# What keeps a product of precisions off zero: pycocoevalcap's constants, or no score of a single caption would agree.
_TINY, _SMALL = 1e-15, 1e-9


class Bleu(CaptionMetric):
    """BLEU of one order; the corpus value pools counts and lengths over all captions, and is no mean of theirs.

    The brevity penalty goes by the reference nearest in length. Of a single caption the
    precisions that are 0 count as about 1e-15, so a high order says little of it.

    Source: Papineni et al. 2002; as in pycocoevalcap.
    """

    order: ClassVar[int]

    def scores(self, pairs: Sequence[Pair], documents: Documents) -> list[float]:
        """Score each pair as a corpus of its own."""
        return list(map(float, self.of_sums(self.evidence(pairs))))

    def pooled(self, pairs: Sequence[Pair]) -> float:
        """Return BLEU over the corpus."""
        return float(self.of_sums(self.evidence(pairs).sum(0, keepdims=True))[0])

    def evidence(self, pairs: Sequence[Pair]) -> Float[np.ndarray, "n k"]:
        """Return of each pair its words, those of its reference, and by length the runs that are right and all runs."""
        found = [_matches(pair) for pair in pairs]
        rows = [
            (one.length, one.wanted, *one.correct[: self.order], *(max(0, one.length - n) for n in range(self.order)))
            for one in found
        ]
        return np.array(rows, dtype=np.float64).reshape(len(pairs), 2 + 2 * self.order)

    def of_sums(self, sums: Float[np.ndarray, "r k"]) -> Float[np.ndarray, "r"]:
        """Return BLEU from what captions' evidence sums up to."""
        length, wanted = sums[:, 0], sums[:, 1]
        correct, guessed = sums[:, 2 : 2 + self.order], sums[:, 2 + self.order :]
        product = ((correct + _TINY) / (guessed + _SMALL)).prod(1)
        ratio = (length + _TINY) / (wanted + _SMALL)
        brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
        score: Float[np.ndarray, "r"] = brevity * product ** (1 / self.order)
        return score


@register("metric", "bleu1")
@dataclass(frozen=True)
class Bleu1(Bleu):
    """BLEU-1: share of the recovered words that a reference has, penalised where the caption is short."""

    order: ClassVar[int] = 1


@register("metric", "bleu2")
@dataclass(frozen=True)
class Bleu2(Bleu):
    """BLEU-2: geometric mean of the precisions of single words and pairs, with the brevity penalty."""

    order: ClassVar[int] = 2


@register("metric", "bleu3")
@dataclass(frozen=True)
class Bleu3(Bleu):
    """BLEU-3: geometric mean of the precisions of runs of up to 3 words, with the brevity penalty."""

    order: ClassVar[int] = 3


@register("metric", "bleu4")
@dataclass(frozen=True)
class Bleu4(Bleu):
    """BLEU-4: geometric mean of the precisions of runs of up to 4 words, with the brevity penalty."""

    order: ClassVar[int] = 4


@register("metric", "rouge_l")
@dataclass(frozen=True)
class RougeL(CaptionMetric):
    """ROUGE-L: F-measure of the longest common subsequence of words, recall weighted by 1.2 squared.

    Precision and recall are the best over the references, each by itself.

    Source: Lin 2004; as in pycocoevalcap.
    """

    beta: ClassVar[float] = 1.2

    def scores(self, pairs: Sequence[Pair], documents: Documents) -> list[float]:
        """Score each pair."""
        return [self._score(pair.candidate, pair.truths) for pair in pairs]

    def _score(self, candidate: Words, truths: Sequence[Words]) -> float:
        common = [longest_common(candidate, truth) for truth in truths]
        if not any(common):
            return 0.0
        precision = max(common) / len(candidate)
        recall = max(count / len(truth) for count, truth in zip(common, truths))
        return (1 + self.beta**2) * precision * recall / (recall + self.beta**2 * precision)


@register("metric", "cider")
@dataclass(frozen=True)
class Cider(CaptionMetric):
    """CIDEr-D: ten times the mean cosine between tf-idf vectors of runs of 1 to 4 words, clipped, over the references.

    In how many pictures' references a run occurs is counted over the gallery's captions where a gallery is given, else
    over the truth's: single values are the corpus's only with all its references at hand. Fewer than `least` pictures
    weigh nothing worth the name (one alone scores 0 whatever is recovered), and are refused.

    Source: Vedantam, Zitnick & Parikh 2015; as in pycocoevalcap, sigma 6.
    """

    least: int = 50

    perfect: ClassVar[float | None] = None
    sigma: ClassVar[float] = 6.0

    def lacks(self, documents: Documents) -> str | None:
        """Return why not, where fewer than `least` pictures have references."""
        _, count = _document_frequencies(documents)
        if count < self.least:
            return f"CIDEr-D weighs words by the references of {self.least} pictures or more, and has those of {count}"
        return None

    def scores(self, pairs: Sequence[Pair], documents: Documents) -> list[float]:
        """Score each pair.

        Raises:
            NotRunError: fewer than `least` pictures have references.
        """
        reason = self.lacks(documents)
        if reason is not None:
            raise NotRunError(reason)
        seen, count = _document_frequencies(documents)
        return [self._score(pair, seen, math.log(count)) for pair in pairs]

    def pooled(self, pairs: Sequence[Pair]) -> float | None:
        """Return the mean over the corpus, words weighed by all its references; None for fewer than `least`."""
        documents = tuple(pair.references for pair in pairs)
        return None if self.lacks(documents) else math.fsum(self.scores(pairs, documents)) / len(pairs)

    def _score(self, pair: Pair, seen: Counts, log_count: float) -> float:
        vectors, length = _weighed(pair.candidate, seen, log_count)
        total = 0.0
        for truth in pair.truths:
            others, other_length = _weighed(truth, seen, log_count)
            penalty = math.exp(-((length - other_length) ** 2) / (2 * self.sigma**2))
            total += penalty * sum(map(_clipped_cosine, vectors, others))
        return 10 * total / (_LONGEST * len(pair.references))


@dataclass(frozen=True)
class _Matches:
    """Of one caption: its runs that a reference has, by length, its words, those of the reference nearest in length."""

    correct: tuple[int, ...]
    length: int
    wanted: int


def longest_common(a: Words, b: Words) -> int:
    """Return the length of the longest common subsequence, a row of the table at a time in the bits of one number.

    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    places: dict[str, int] = {}
    for index, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & full
    return len(a) - row.bit_count()


def runs(tokens: Words, longest: int = _LONGEST) -> Counter[Words]:
    """Count the runs of 1 to `longest` words."""
    return Counter(tokens[i : i + n] for n in range(1, longest + 1) for i in range(len(tokens) - n + 1))


def _matches(pair: Pair) -> _Matches:
    candidate, truths = pair.candidate, pair.truths
    most: Counter[Words] = Counter()
    for truth in truths:
        most |= runs(truth)
    correct = Counter[int]()
    for run, count in runs(candidate).items():
        correct[len(run)] += min(count, most[run])
    nearest = min(map(len, truths), key=lambda size: (abs(size - len(candidate)), size))
    return _Matches(tuple(correct[n] for n in range(1, _LONGEST + 1)), len(candidate), nearest)


@functools.lru_cache(maxsize=4)
def _document_frequencies(documents: Documents) -> tuple[Counts, int]:
    """In how many pictures' references each run of words occurs, and how many pictures have references."""
    seen: Counter[Words] = Counter()
    count = 0
    for references in documents:
        tokens = [words(reference) for reference in references]
        count += any(tokens)
        seen.update(_distinct(tokens))
    return seen, count


def _distinct(captions: Iterable[Words]) -> set[Words]:
    return {run for caption in captions for run in runs(caption)}


def _weighed(tokens: Words, seen: Counts, log_count: float) -> tuple[list[dict[Words, float]], int]:
    """The tf-idf vectors of one caption, one a length of runs, and the number of its pairs, which stands for length."""
    vectors: list[dict[Words, float]] = [{} for _ in range(_LONGEST)]
    for run, count in runs(tokens).items():
        vectors[len(run) - 1][run] = count * (log_count - math.log(max(1, seen.get(run, 0))))
    return vectors, max(0, len(tokens) - 1)


def _clipped_cosine(vector: Mapping[Words, float], truth: Mapping[Words, float]) -> float:
    norms = math.hypot(*vector.values()) * math.hypot(*truth.values())
    product = sum(min(weight, truth[run]) * truth[run] for run, weight in vector.items() if run in truth)
    return product / norms if norms else 0.0
