"""Scores that ask a judge, a classifier other than the victim, what a picture shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..registry import register
from ..types import NotRunError
from .base import ImageMetric, Judge


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
