"""What all scores of recovered captions share: pairing with the references, and pictures without any."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..types import Captions, NotRunError, Pictures, Recovery, SeepageError, Shape
from .base import Judge
from .tokens import words

Documents = tuple[tuple[str, ...], ...]
"""The reference captions of every picture of a corpus."""


Summed = tuple[Float[np.ndarray, "n k"], Callable[[Float[np.ndarray, "r k"]], Float[np.ndarray, "r"]]]
"""Numbers of single pictures, and what makes a corpus' value of their sums: drawn again, they give its interval."""


@runtime_checkable
class Additive(Protocol):
    """A metric whose value over a corpus is one of sums over its captions."""

    def evidence(self, pairs: Sequence[Pair]) -> Float[np.ndarray, "n k"]:
        """Return what is summed, a row a pair."""
        ...

    def of_sums(self, sums: Float[np.ndarray, "r k"]) -> Float[np.ndarray, "r"]:
        """Return the value of such sums."""
        ...


@dataclass(frozen=True)
class Pair:
    """A recovered caption and the reference captions of its picture that have words, at least one."""

    caption: str
    references: tuple[str, ...]

    @property
    def candidate(self) -> tuple[str, ...]:
        """The recovered caption's words."""
        return words(self.caption)

    @property
    def truths(self) -> tuple[tuple[str, ...], ...]:
        """The references' words."""
        return tuple(map(words, self.references))


class CaptionMetric(ABC):
    """A `types.Metric` on recovered captions against the reference captions of their pictures.

    A reference without words is none, and a picture without references scores NaN; the corpus is the other pictures. A
    recovered caption without words is a wrong one. Captions are read as `tokens.words` does, so none takes for ever.
    """

    reads: ClassVar[tuple[type, ...]] = (Captions,)
    unit: ClassVar[str] = ""
    higher_means_more_leakage: ClassVar[bool] = True
    perfect: ClassVar[float | None] = 1.0

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return why captions cannot be scored here, None where they can; asked before an audit runs."""
        return None

    def lacks(self, documents: Documents) -> str | None:
        """Return why these pictures' references are too few to score anything by, None where they serve."""
        known = any(any(map(words, references)) for references in documents)
        return None if known else "none of the pictures has a reference caption"

    def __call__(
        self, truth: Pictures, recovery: Recovery, judge: Judge | None = None, gallery: Pictures | None = None
    ) -> Float[Tensor, "b"]:
        """Score every recovered caption against the references in the same row; float64, on the CPU.

        Raises:
            NotRunError: this metric cannot be had here, or the pictures come without captions; the message says why.
            SeepageError: the recovery holds no captions, or another number of them than the truth.
        """
        pairs = self._rows(truth, recovery)
        documents = truth.captions if gallery is None or gallery.captions is None else gallery.captions
        having = [pair for pair in pairs if pair is not None]
        scores = iter(self.scores(having, documents or ()) if having else ())
        return torch.tensor([float("nan") if pair is None else next(scores) for pair in pairs], dtype=torch.float64)

    def corpus(self, truth: Pictures, recovery: Recovery) -> float | None:
        """Return the score of all captions together where that is not the mean of the single ones, else None.

        Raises:
            NotRunError, SeepageError: as when called.
        """
        having = [pair for pair in self._rows(truth, recovery) if pair is not None]
        return self.pooled(having) if having else None

    def summed(self, truth: Pictures, recovery: Recovery) -> Summed | None:
        """Return what the corpus value comes from, a row a picture with references; None where it is no sum's.

        Raises:
            NotRunError, SeepageError: as when called.
        """
        having = [pair for pair in self._rows(truth, recovery) if pair is not None]
        return (self.evidence(having), self.of_sums) if isinstance(self, Additive) and having else None

    @abstractmethod
    def scores(self, pairs: Sequence[Pair], documents: Documents) -> list[float]:
        """Score each pair by itself; `documents` are the references of the gallery's pictures, else of the truth's."""

    def pooled(self, pairs: Sequence[Pair]) -> float | None:
        """Return the score over all pairs, at least one, where it is not the mean."""
        return None

    def _rows(self, truth: Pictures, recovery: Recovery) -> list[Pair | None]:
        name, texts = type(self).__name__, captions_of(recovery, type(self).__name__)
        if len(texts) != len(truth):
            raise SeepageError(f"{name} got {len(texts)} recovered captions of {len(truth)} pictures")
        if truth.captions is None:
            raise NotRunError(f"{name} needs pictures with reference captions, and these come with none")
        reason = self.unavailable(tuple(truth.images.shape[1:]))
        if reason is not None:
            raise NotRunError(reason)
        with_words = [tuple(filter(words, references)) for references in truth.captions]
        return [Pair(text, references) if references else None for text, references in zip(texts, with_words)]


def referenced(truth: Pictures) -> list[int]:
    """Return the rows of the pictures that have a reference caption with words."""
    return [row for row, references in enumerate(truth.captions or ()) if any(map(words, references))]


def captions_of(recovery: Recovery, name: str) -> tuple[str, ...]:
    """Return the recovered captions.

    Raises:
        SeepageError: the recovery holds something else; the message names the metric.
    """
    if not isinstance(recovery.value, Captions):
        raise SeepageError(f"{name} scores recovered captions, got {type(recovery.value).__name__}")
    return recovery.value.texts
