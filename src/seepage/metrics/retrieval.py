"""Whether the right caption is found among those of other pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..registry import register
from ..types import NotRunError, Pictures, Recovery, Scores, SeepageError, Shape
from .base import Judge
from .tokens import words

GALLERY = 500
"""How many candidates the right one is looked for among, unless there are fewer."""


class Recall:
    """A `types.Metric` on scores of candidates: 1 where the match is among the best `within`, else 0.

    A tie counts against the match, so an attack that likes all candidates the same finds none. NaN where one of a row's
    scores is NaN. An attacker without the features finds `within / k` of k candidates.
    """

    reads: ClassVar[tuple[type, ...]] = (Scores,)
    unit: ClassVar[str] = ""
    higher_means_more_leakage: ClassVar[bool] = True
    perfect: ClassVar[float | None] = 1.0
    within: ClassVar[int]

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return None: it asks nothing but the scores."""
        return None

    def lacks(self, captions: Sequence[Sequence[str]]) -> str | None:
        """Return why these pictures' captions are too few to look among, None where they serve."""
        count = len({words(_first(own)) for own in captions} - {()})
        if count <= self.within:
            return (
                f"{type(self).__name__} looks among the captions of more than {self.within} pictures, and has {count}"
            )
        return None

    def __call__(
        self, truth: Pictures, recovery: Recovery, judge: Judge | None = None, gallery: Pictures | None = None
    ) -> Float[Tensor, "b"]:
        """Score every row; float64, on the CPU.

        Raises:
            NotRunError: there are too few candidates for one to be missed.
            SeepageError: the recovery holds no scores of candidates, or another number of rows than the truth.
        """
        name, value = type(self).__name__, recovery.value
        if not isinstance(value, Scores):
            raise SeepageError(f"{name} reads scores of candidates, got {type(value).__name__}")
        if len(value.scores) != len(truth):
            raise SeepageError(f"{name} got scores of {len(value.scores)} rows for {len(truth)} pictures")
        candidates = value.scores.shape[1]
        if candidates <= self.within:
            raise NotRunError(f"{name} looks among more than {self.within} candidates, got {candidates}")
        scores = value.scores.double().cpu()
        own = scores.gather(1, value.match.cpu()[:, None])
        # The match itself is as good as itself.
        found = ((scores >= own).sum(dim=1) <= self.within).double()
        return found.masked_fill(scores.isnan().any(dim=1), torch.nan)

    def corpus(self, truth: Pictures, recovery: Recovery) -> float | None:
        """Return None: over pictures the mean is the mean."""
        return None


@register("metric", "recall1")
@dataclass(frozen=True)
class Recall1(Recall):
    """1 where the picture's own caption is the best among the candidates, else 0."""

    within: ClassVar[int] = 1


@register("metric", "recall5")
@dataclass(frozen=True)
class Recall5(Recall):
    """1 where the picture's own caption is among the best 5 of the candidates, else 0."""

    within: ClassVar[int] = 5


@register("metric", "recall10")
@dataclass(frozen=True)
class Recall10(Recall):
    """1 where the picture's own caption is among the best 10 of the candidates, else 0."""

    within: ClassVar[int] = 10


def candidates(
    captions: Sequence[Sequence[str]], picture: int, generator: torch.Generator, size: int = GALLERY
) -> tuple[tuple[str, ...], int]:
    """Return the captions that a picture's own is looked for among, and which of them it is.

    One caption a picture, its first with words, of `size` pictures that `generator` draws, or of all where there are
    fewer; no two of the same words. A generator seeded alike draws alike, so the candidates of two pictures differ in
    one caption at most: that of a picture not drawn takes the last one's place.

    Raises:
        NotRunError: the picture has no caption with words.
    """
    own = _first(captions[picture])
    if not own:
        raise NotRunError(f"picture {picture} has no caption to be looked for")
    drawn: dict[tuple[str, ...], str] = {}
    for index in torch.randperm(len(captions), generator=generator).tolist():
        text = _first(captions[index])
        if text:
            drawn.setdefault(words(text), text)
        if len(drawn) == size:
            break
    if words(own) not in drawn:
        drawn.popitem()
        drawn[words(own)] = own
    return tuple(drawn.values()), list(drawn).index(words(own))


def _first(captions: Sequence[str]) -> str:
    return next((caption for caption in captions if words(caption)), "")
