"""Pruning: small numbers, or whole channels, are not sent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..registry import register
from ..types import Leak, Shape
from .base import DefenseError, Payload, channel_axis, learned, require_share
from .moments import Channels
from .transform import Transform


@register("defense", "prune")
@dataclass(frozen=True)
class Prune(Transform):
    """Only the share `keep` is sent, the rest is zero.

    `by=magnitude` keeps each row's largest numbers, `by=channel` the channels that vary most over the leaks it is
    fitted on, the same for every row; their receiver knows which.
    """

    keep: float = 0.5
    by: Literal["magnitude", "channel"] = "magnitude"
    mean: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    kept: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    affine: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_share("keep", self.keep)

    def fit(self, leaks: Iterator[Leak]) -> Prune:
        """Learn which channels vary most, and the mean of the others."""
        if self.by == "magnitude":
            return self
        known = Channels.of(leaks, whole=False)
        mean = known.mean
        order = known.variances.argsort(descending=True, stable=True)
        kept = torch.zeros(len(mean), dtype=torch.bool)
        kept[order[: self._count(len(mean))]] = True
        return learned(learned(self, "kept", kept), "mean", mean.float())

    def map(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the features with zeros for what is not kept."""
        if self.by == "channel":
            return features * self._by_channel(features)[0]
        flat = features.flatten(1)
        largest = flat.detach().abs().topk(self._count(flat.shape[1]), dim=1).indices
        return (flat * torch.zeros_like(flat).scatter(1, largest, 1.0)).view_as(features)

    def lift(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the mean of the channels that were not sent in their place."""
        if self.by == "magnitude":
            return features
        kept, mean = self._by_channel(features)
        return features * kept + mean * ~kept

    def exact(self, features: Float[Tensor, "b ..."]) -> Bool[Tensor, "b"]:
        """Return that none is: what was not sent is lost."""
        return torch.zeros(len(features), dtype=torch.bool)

    def payload(self, payload: Payload, shape: Shape) -> Payload:
        """Return the numbers kept and, where that is not the same for all rows, a bit a number to say which."""
        if self.by == "channel":
            channels = shape[channel_axis(shape)]
            return payload.keeping_channels(self._count(channels) / channels)
        count = math.prod(shape)
        return payload.keeping(self._count(count) / count, math.ceil(count / 8))

    def _count(self, total: int) -> int:
        return max(1, math.ceil(self.keep * total))

    def _by_channel(self, features: Tensor) -> tuple[Tensor, Tensor]:
        if self.kept is None or self.mean is None:
            raise DefenseError("prune:by=channel is fitted on leaks before it protects any")
        shape = [1] * features.ndim
        shape[1 + channel_axis(tuple(features.shape[1:]))] = len(self.kept)
        return self.kept.to(features.device).view(shape), self.mean.to(features).view(shape)
