"""Scores of what a recovery says a picture shows: by a judge, a classifier other than the victim, or by its labels."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..registry import register
from ..types import Images, Labels, NotRunError, Pictures, Recovery, SeepageError, Shape
from .base import ImageMetric, Judge

_UNKNOWN = -1


@register("metric", "agreement")
@dataclass(frozen=True)
class Agreement(ImageMetric):
    """1 where the judge's first label for the recovered picture is its first label for the original, else 0.

    It asks no true label: the judge may be wrong of both. NaN where the judge's scores are not finite.
    """

    unit: ClassVar[str] = ""
    higher_means_more_leakage: ClassVar[bool] = True
    perfect: ClassVar[float | None] = 1.0

    def score(self, original: Float[Tensor, "3 h w"], recovered: Float[Tensor, "3 h w"], judge: Judge | None) -> float:
        """Return 1 or 0 for this pair.

        Raises:
            NotRunError: there is no judge.
        """
        if judge is None:
            raise NotRunError("agreement needs a judge: a classifier other than the victim (--judge VICTIM)")
        said = torch.cat([judge(picture[None].float()) for picture in (original, recovered)])
        if not torch.isfinite(said).all():
            return float("nan")
        labels = said.argmax(dim=1)
        return float(labels[0] == labels[1])


class TopLabels(ABC):
    """A `types.Metric`: 1 where the true label is among the best `within` that a recovery says, else 0.

    Recovered labels say it themselves. Of a recovered picture the judge says it, a classifier other than the victim:
    what comes of rebuilding the picture first. Labels go by the names of their classes, whatever the case of letters,
    and by their numbers where one side has no names. A picture without a label scores NaN, as do scores that are no
    numbers. A label that the other side has no name for is never among the best, and a tie counts against the true
    one.
    """

    reads: ClassVar[tuple[type, ...]] = (Labels, Images)
    unit: ClassVar[str] = ""
    higher_means_more_leakage: ClassVar[bool] = True
    perfect: ClassVar[float | None] = 1.0
    within: ClassVar[int]

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return None: labels can be compared whatever they are of."""
        return None

    @torch.no_grad()
    def __call__(
        self, truth: Pictures, recovery: Recovery, judge: Judge | None = None, gallery: Pictures | None = None
    ) -> Float[Tensor, "b"]:
        """Score every row; float64, on the CPU.

        Raises:
            NotRunError: the pictures have no labels, none of their classes can be said, or there is no judge.
            SeepageError: the recovery holds neither labels nor pictures, or another number than the truth.
        """
        name, value = type(self).__name__, recovery.value
        if not isinstance(value, Labels | Images):
            raise SeepageError(f"{name} scores recovered labels or pictures, got {type(value).__name__}")
        if truth.labels is None:
            raise NotRunError(f"{name} needs pictures with labels, and these come with none")
        scores, classes = _said(value, judge, name)
        if len(scores) != len(truth):
            raise SeepageError(f"{name} got labels of {len(scores)} rows for {len(truth)} pictures")
        reason = strangers(truth.classes, classes, scores.shape[1])
        if reason is not None:
            raise NotRunError(f"{name}: {reason}")
        wanted = own_columns(truth.labels.tolist(), truth.classes, classes, scores.shape[1])
        return torch.tensor([self._row(*pair) for pair in zip(scores, wanted, strict=True)], dtype=torch.float64)

    def corpus(self, truth: Pictures, recovery: Recovery) -> float | None:
        """Return None: over pictures the mean is the mean."""
        return None

    def _row(self, scores: Tensor, own: Sequence[int] | None) -> float:
        if own is None or not torch.isfinite(scores).all():
            return float("nan")
        if not own:
            return 0.0
        best = scores[list(own)].max()
        # Columns of one name are one class: they do not stand in each other's way.
        as_good = int((scores >= best).sum()) - int((scores[list(own)] >= best).sum())
        return float(as_good < self.within)


@register("metric", "top1")
@dataclass(frozen=True)
class Top1(TopLabels):
    """1 where the true label is the best that the attack gives, or the judge for the recovered picture, else 0."""

    within: ClassVar[int] = 1


@register("metric", "top5")
@dataclass(frozen=True)
class Top5(TopLabels):
    """1 where the true label is among the best 5 that the attack gives, or the judge for the picture, else 0."""

    within: ClassVar[int] = 5


def own_columns(
    labels: Sequence[int], known: Sequence[str] | None, said: Sequence[str] | None, width: int
) -> list[tuple[int, ...] | None]:
    """Return the columns of each true label among `width` scores, none where it has none; None for no label.

    `known` names the labels' classes, `said` the columns.
    """
    if known is None or said is None or _folded(known) == _folded(said):
        return [None if label <= _UNKNOWN else (label,) if label < width else () for label in labels]
    places: dict[str, tuple[int, ...]] = {}
    for column, name in enumerate(_folded(said)):
        places[name] = (*places.get(name, ()), column)
    names = _folded(known)
    return [None if label <= _UNKNOWN else places.get(names[label], ()) for label in labels]


def strangers(known: Sequence[str] | None, said: Sequence[str] | None, width: int) -> str | None:
    """Return why labels of the classes `known` cannot be found among the `width` columns `said`, None where they can.

    Without names on one side both must have as many classes, where both numbers are known.
    """
    if known is None or said is None:
        if known is None or len(known) == width:
            return None
        return f"the pictures are of {len(known)} classes, and the scores of {width} that have no names"
    if set(_folded(known)) & set(_folded(said)):
        return None
    return f"none of the pictures' classes ({known[0]}, ...) is among those that can be said ({said[0]}, ...)"


def _said(value: Labels | Images, judge: Judge | None, name: str) -> tuple[Tensor, tuple[str, ...] | None]:
    """Scores "b classes" in float64 and the names of their columns; those of a picture that is not finite are NaN."""
    if isinstance(value, Labels):
        return value.scores.double().cpu(), value.classes
    if judge is None:
        raise NotRunError(f"{name} of recovered pictures needs a judge: a classifier other than the victim")
    finite = torch.isfinite(value.images.flatten(1)).all(1).cpu()
    said = judge(torch.nan_to_num(value.images).clamp(0, 1).float()).double().cpu()
    return said.masked_fill(~finite[:, None], torch.nan), getattr(judge, "classes", None)


def _folded(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(name.replace("_", " ").casefold().split()) for name in names)
