"""What all scores of recovered pictures share: pairing, clipping, and what becomes of a pixel that is no number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..types import Images, NotRunError, Pictures, Recovery, SeepageError, Shape

Judge = Callable[[Tensor], Tensor]
"""Maps pictures "b 3 h w" in [0, 1] to scores "b classes", or to embeddings "b d"."""


class ImageMetric(ABC):
    """A `types.Metric` on recovered pictures.

    Both pictures are clipped to [0, 1] in float64 and compared one at a time, so a value does not depend on the batch.
    A recovery (or a truth) with a pixel that is not finite scores NaN.
    """

    reads: ClassVar[tuple[type, ...]] = (Images,)
    unit: ClassVar[str]
    higher_means_more_leakage: ClassVar[bool]
    perfect: ClassVar[float | None]

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return why pictures of this shape cannot be scored here, None where they can; asked before an audit runs."""
        return None

    @torch.no_grad()
    def __call__(
        self, truth: Pictures, recovery: Recovery, judge: Judge | None = None, gallery: Pictures | None = None
    ) -> Float[Tensor, "b"]:
        """Score every recovered picture against the original in the same row; float64, on the CPU.

        Raises:
            NotRunError: this metric cannot be had here; the message says why.
            SeepageError: the recovery holds no pictures, or others in number or shape than the truth.
        """
        originals, recovered = truth.images, pictures_of(recovery, type(self).__name__)
        if recovered.shape != originals.shape:
            raise SeepageError(
                f"{type(self).__name__} compares pictures of one shape, got {tuple(recovered.shape)} recovered and "
                f"{tuple(originals.shape)} original"
            )
        reason = self.unavailable(tuple(originals.shape[1:]))
        if reason is not None:
            raise NotRunError(reason)
        pairs = zip(originals, recovered.to(originals.device), strict=True)
        return torch.tensor([self._guarded(*pair, judge) for pair in pairs], dtype=torch.float64)

    def corpus(self, truth: Pictures, recovery: Recovery) -> float | None:
        """Return None: over pictures the mean is the mean."""
        return None

    @abstractmethod
    def score(self, original: Float[Tensor, "3 h w"], recovered: Float[Tensor, "3 h w"], judge: Judge | None) -> float:
        """Score one finite pair in [0, 1], float64."""

    def _guarded(self, original: Tensor, recovered: Tensor, judge: Judge | None) -> float:
        if not (torch.isfinite(original).all() and torch.isfinite(recovered).all()):
            return float("nan")
        return self.score(original.double().clamp(0, 1), recovered.double().clamp(0, 1), judge)


def pictures_of(recovery: Recovery, name: str) -> Tensor:
    """Return the recovered pictures.

    Raises:
        SeepageError: the recovery holds something else; the message names the metric.
    """
    if not isinstance(recovery.value, Images):
        raise SeepageError(f"{name} scores recovered pictures, got {type(recovery.value).__name__}")
    return recovery.value.images
