"""Scores that ask whose picture was recovered, by an independent network's features and other pictures of people."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..registry import register
from ..types import Images, NotRunError, Pictures, Recovery, SeepageError, Shape
from .base import Judge, pictures_of


class IdentityMetric(ABC):
    """A `types.Metric` on recovered pictures against a gallery: other pictures of the people under audit.

    The judge maps pictures "b 3 h w" in [0, 1] to embeddings "b d"; the truth tells who is on each picture, by its
    identities, else by its classes, and the gallery must not hold the pictures under audit. What is compared is the
    recovered picture, clipped to [0, 1], and the gallery: the original enters by its person's name alone. A recovery
    with a pixel or an embedding that is not finite scores NaN, as does a person whom the gallery does not know.

    No value is perfect: what the original itself scores depends on the judge and the gallery.
    """

    reads: ClassVar[tuple[type, ...]] = (Images,)
    unit: ClassVar[str] = ""
    higher_means_more_leakage: ClassVar[bool]
    perfect: ClassVar[float | None] = None
    least_people: ClassVar[int] = 1

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return None: pictures of any shape can be embedded."""
        return None

    def corpus(self, truth: Pictures, recovery: Recovery) -> float | None:
        """Return None: over pictures the mean is the mean."""
        return None

    @torch.no_grad()
    def __call__(
        self, truth: Pictures, recovery: Recovery, judge: Judge | None = None, gallery: Pictures | None = None
    ) -> Float[Tensor, "b"]:
        """Score every recovered picture against the gallery; float64, on the CPU.

        Raises:
            NotRunError: there is no judge, no gallery, or a gallery of too few people.
            SeepageError: the recovery holds no pictures, or another number of them than the truth.
        """
        name, recovered = type(self).__name__, pictures_of(recovery, type(self).__name__)
        if len(recovered) != len(truth):
            raise SeepageError(f"{name} got {len(recovered)} recovered pictures of {len(truth)} originals")
        if judge is None or gallery is None:
            raise NotRunError(f"{name} needs {needs(judge=judge is None, gallery=gallery is None)}")
        owners = people(gallery)
        if len({owner for owner in owners if owner}) < self.least_people:
            raise NotRunError(f"{name} needs a gallery of at least {self.least_people} people")
        known = judge(gallery.images).double().cpu()
        values = [self._row(person, picture, judge, known, owners) for person, picture in zip(people(truth), recovered)]
        return torch.tensor(values, dtype=torch.float64)

    @abstractmethod
    def score(self, embedding: Float[Tensor, "d"], known: Float[Tensor, "g d"], own: Bool[Tensor, "g"]) -> float:
        """Score one embedding against the gallery's, of which `own` are the true person's; float64."""

    def _row(self, person: str, picture: Tensor, judge: Judge, known: Tensor, owners: tuple[str, ...]) -> float:
        own = torch.tensor([owner == person for owner in owners])
        if not person or not own.any() or not torch.isfinite(picture).all():
            return float("nan")
        embedding = judge(picture.double().clamp(0, 1).float()[None])[0].double().cpu()
        return self.score(embedding, known, own) if torch.isfinite(embedding).all() else float("nan")


@register("metric", "knn_distance")
@dataclass(frozen=True)
class KnnDistance(IdentityMetric):
    """Smallest Euclidean distance from the recovered picture's embedding to those of the true person's gallery.

    On the scale of the judge's features, so only values of one judge and layer compare. Not negative.

    Source: the KNN distance of Arif et al. 2025 (PEEL), with a face network as judge, its training set as gallery.
    """

    higher_means_more_leakage: ClassVar[bool] = False

    def score(self, embedding: Float[Tensor, "d"], known: Float[Tensor, "g d"], own: Bool[Tensor, "g"]) -> float:
        """Return the distance to the nearest of the person's own."""
        return float((known[own] - embedding).norm(dim=1).min())


@register("metric", "rank1")
@dataclass(frozen=True)
class Rank1(IdentityMetric):
    """1 where the gallery picture nearest to the recovered one is of the true person, else 0.

    Nearest by the cosine between embeddings. A tie with somebody else's picture is no identification.
    """

    higher_means_more_leakage: ClassVar[bool] = True
    least_people: ClassVar[int] = 2

    def score(self, embedding: Float[Tensor, "d"], known: Float[Tensor, "g d"], own: Bool[Tensor, "g"]) -> float:
        """Return 1 or 0 for this embedding."""
        normalise = torch.nn.functional.normalize
        cosine = normalise(known, dim=1) @ normalise(embedding, dim=0)
        return float(cosine[own].max() > cosine[~own].max())


def people(pictures: Pictures) -> tuple[str, ...]:
    """Return who is on each picture: its identity where pictures have any, else its class; empty where unknown."""
    if pictures.identities is not None:
        return pictures.identities
    if pictures.labels is None:
        return ("",) * len(pictures)
    names, labels = pictures.classes, pictures.labels.tolist()
    return tuple("" if label < 0 else str(label) if names is None else names[label] for label in labels)


def needs(*, judge: bool, gallery: bool) -> str:
    """Say what is missing, and how to name it."""
    parts = ["a network that tells people apart (--judge face=VICTIM[:LAYER])"] if judge else []
    parts += ["other pictures of the same people (--gallery DATASET/SPLIT or FOLDER)"] if gallery else []
    return " and ".join(parts)
