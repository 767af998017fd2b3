"""Clipping: no row longer, or no number larger, than a limit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..registry import register
from ..types import Leak, Shape
from .base import DefenseError, Payload, by_row, learned, require_positive
from .moments import rows_of
from .transform import Transform

_ON_THE_LIMIT, _NEAR_IT = 1 - 1e-4, 0.9
_FAR = 1.25
"""Where rows usually are so many times the limit, one near it was clipped: noise, means and the wire take a little."""


@register("defense", "clip")
@dataclass(frozen=True)
class Clip(Transform):
    """Clipping to `limit`: of a row's Euclidean norm (`by=norm`) or of every number's size (`by=value`).

    With `relative` the limit is `limit` times the mean norm, or the root mean square of all numbers, of the leaks it is
    fitted on. Before Gaussian noise it makes a differential-privacy guarantee.
    """

    limit: float = 1.0
    by: Literal["norm", "value"] = "norm"
    relative: bool = False
    usual: float | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_positive("limit", self.limit)

    def fit(self, leaks: Iterator[Leak]) -> Clip:
        """Learn how large leaks usually are: what a relative limit goes by, and what a clipped row is lifted to."""
        rows = rows_of(leaks).double().flatten(1)
        usual = rows.norm(dim=1).mean() if self.by == "norm" else rows.square().mean().sqrt()
        return learned(self, "usual", float(usual))

    @property
    def most(self) -> float:
        """The limit in units of the features.

        Raises:
            DefenseError: it is relative to what nothing was fitted on.
        """
        if not self.relative:
            return self.limit
        if self.usual is None:
            raise DefenseError("clip:relative=true is fitted on leaks before it protects any")
        return self.limit * self.usual

    @property
    def continuous(self) -> str:
        """The map that clipping is: noise that comes after it is noise on what it gives."""
        return f"clip to a {self.by} of {self.most!r}"

    def map(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the clipped features."""
        if self.by == "value":
            return features.clamp(-self.most, self.most)
        # Twice, because the first product may be rounded beyond the limit by which privacy is accounted.
        for _ in range(2):
            norm = features.flatten(1).norm(dim=1).clamp_min(self.most)
            features = features * by_row(self.most / norm, features)
        return features

    def lift(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return rows that were clipped, at the norm that rows usually have; single numbers stay as they are."""
        return features * by_row(self.gain(features), features)

    def gain(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
        """Return by how much rows are lifted."""
        norm = features.flatten(1).norm(dim=1)
        if self.by == "value" or self.usual is None or self.usual <= self.most:
            return torch.ones_like(norm)
        near = _NEAR_IT if self.usual > _FAR * self.most else _ON_THE_LIMIT
        lifted: Tensor = (self.usual / norm).where(norm >= near * self.most, 1.0)
        return lifted

    def exact(self, features: Float[Tensor, "b ..."]) -> Bool[Tensor, "b"]:
        """Return which rows nothing was clipped off."""
        flat = features.flatten(1)
        size = flat.norm(dim=1) if self.by == "norm" else flat.abs().amax(1)
        inside: Tensor = size < _ON_THE_LIMIT * self.most
        return inside

    def payload(self, payload: Payload, shape: Shape) -> Payload:
        """Return what was there: zeros stay, there are no more levels, and a row that is scaled stays in a subspace."""
        return payload.entrywise() if self.by == "value" else payload

    def norm_bound(self, shape: Shape) -> float:
        """Return the largest Euclidean norm that a row of this shape can have afterwards."""
        return self.most * (math.sqrt(math.prod(shape)) if self.by == "value" else 1.0)
