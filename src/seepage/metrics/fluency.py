"""Whether captions read like sentences: repetition and variety, beside those of human captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..registry import register
from ..types import Captions, Pictures, Recovery, Shape
from .base import Judge
from .caption import runs
from .sentences import captions_of
from .tokens import words


@dataclass(frozen=True)
class Fluency:
    """What a set of captions is like, no reference asked.

    `words` is their mean number of words, `empty` the share without any, `repetition` the mean share of a caption's
    pairs of words that stood in it before, `distinct1` and `distinct2` the share of different words and pairs among
    all (Li et al. 2016): NaN where there is none. The distinct shares fall with the number of captions, so only sets of
    one size compare.
    """

    words: float
    empty: float
    repetition: float
    distinct1: float
    distinct2: float


def fluency_of(captions: Sequence[str]) -> Fluency:
    """Return what a set of captions is like; of none, NaN throughout."""
    tokens = [words(caption) for caption in captions]
    return Fluency(
        words=_mean([len(caption) for caption in tokens]),
        empty=_mean([not caption for caption in tokens]),
        repetition=_mean([repetition(caption) for caption in captions]),
        distinct1=distinct(captions, 1),
        distinct2=distinct(captions, 2),
    )


def beside_human(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Fluency, Fluency]:
    """Return what captions are like and what as many human ones are: of each picture that has any, the first."""
    both = [(caption, human[0]) for caption, human in zip(captions, references, strict=True) if human]
    return fluency_of([caption for caption, _ in both]), fluency_of([human for _, human in both])


@register("metric", "repetition")
@dataclass(frozen=True)
class Repetition:
    """Share of the recovered caption's pairs of words that stood in it before; fluency, which is no leakage.

    It reads no reference. 0 for a caption of fewer than two words. Beside it stands that of human captions.
    """

    reads: ClassVar[tuple[type, ...]] = (Captions,)
    unit: ClassVar[str] = ""
    higher_means_more_leakage: ClassVar[bool] = False
    perfect: ClassVar[float | None] = None

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return None: it needs nothing."""
        return None

    def __call__(
        self, truth: Pictures, recovery: Recovery, judge: Judge | None = None, gallery: Pictures | None = None
    ) -> Float[Tensor, "b"]:
        """Score every recovered caption; float64, on the CPU.

        Raises:
            SeepageError: the recovery holds no captions.
        """
        values = [repetition(text) for text in captions_of(recovery, type(self).__name__)]
        return torch.tensor(values, dtype=torch.float64)

    def corpus(self, truth: Pictures, recovery: Recovery) -> None:
        """Return nothing: the corpus has the mean."""
        return


@register("metric", "distinct")
@dataclass(frozen=True)
class Distinct:
    """Share of different runs of `length` words among all (Li et al., NAACL 2016); fluency, which is no leakage.

    It reads no reference. A caption's value counts its own runs, 0 where it has none; the corpus' value counts those of
    all captions together, so that whoever says the same of every picture is near zero there. That falls with the number
    of captions: only sets of one size compare, and an audit takes those of the pictures that have a human one too.
    """

    length: int = 2

    reads: ClassVar[tuple[type, ...]] = (Captions,)
    unit: ClassVar[str] = ""
    higher_means_more_leakage: ClassVar[bool] = True
    perfect: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length is at least 1, got {self.length}")

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return None: it needs nothing."""
        return None

    def __call__(
        self, truth: Pictures, recovery: Recovery, judge: Judge | None = None, gallery: Pictures | None = None
    ) -> Float[Tensor, "b"]:
        """Score every recovered caption; float64, on the CPU.

        Raises:
            SeepageError: the recovery holds no captions.
        """
        values = [distinct([text], self.length) for text in captions_of(recovery, type(self).__name__)]
        return torch.tensor(values, dtype=torch.float64).nan_to_num(0.0)

    def corpus(self, truth: Pictures, recovery: Recovery) -> float | None:
        """Return the share among all captions; None where they have no such run.

        Raises:
            SeepageError: the recovery holds no captions.
        """
        found = distinct(captions_of(recovery, type(self).__name__), self.length)
        return None if math.isnan(found) else found


def repetition(caption: str) -> float:
    """Return the share of a caption's pairs of words that stood in it before; 0 for fewer than two words."""
    pairs = [run for run in runs(words(caption), 2).elements() if len(run) == 2]
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def distinct(captions: Sequence[str], length: int) -> float:
    """Return the share of different runs of `length` words among all of a set; NaN where there is none."""
    found = [run for caption in captions for run in runs(words(caption), length).elements() if len(run) == length]
    return len(set(found)) / len(found) if found else math.nan


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
