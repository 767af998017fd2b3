"""Projection of the channels of every place onto fewer directions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..registry import register
from ..types import Leak, Secret, Shape
from .base import DefenseError, Payload, channel_axis, learned, require_share
from .moments import Channels
from .transform import Transform

_FLOOR = 1e-9


@register("defense", "project")
@dataclass(frozen=True)
class Project(Transform):
    """Of the channels of every place only the share `keep` of directions is sent; the leak is read from them again.

    `onto=random` projects orthogonally onto directions drawn from `seed`, `onto=pca` onto those along which the leaks
    it is fitted on vary most. The directions are no secret: whoever reads the leak, the next stage and an aware
    attacker alike, takes what is likeliest behind a projection, by the mean and covariance of those leaks.
    """

    keep: float = 0.25
    onto: Literal["random", "pca"] = "pca"
    seed: int = 0
    mean: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    covariance: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    affine: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_share("keep", self.keep)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is a whole number from 0 to below 2^63, got {self.seed}")

    def fit(self, leaks: Iterator[Leak]) -> Project:
        """Learn mean and covariance of channels."""
        known = Channels.of(leaks, whole=True)
        return learned(learned(self, "mean", known.mean), "covariance", known.covariance)

    def map(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the projection, about the mean where directions are the principal ones."""
        axis = 1 + channel_axis(tuple(features.shape[1:]))
        basis = self._basis(features.shape[axis]).to(features)
        vectors = features.movedim(axis, -1)
        mean = self._mean(features.shape[axis]).to(features) if self.onto == "pca" else 0.0
        projected: Tensor = ((vectors - mean) @ basis @ basis.T + mean).movedim(-1, axis)
        return projected

    def lift(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return what is likeliest behind a random projection; behind a principal one it is the projection itself."""
        if self.onto == "pca" or self.covariance is None:
            return features
        axis = 1 + channel_axis(tuple(features.shape[1:]))
        basis, mean = self._basis(features.shape[axis]), self._mean(features.shape[axis])
        seen = basis.T @ self.covariance @ basis
        floor = _FLOOR * seen.diagonal().mean().clamp_min(_FLOOR)
        gain = self.covariance @ basis @ torch.linalg.inv(seen + floor * torch.eye(len(seen), dtype=seen.dtype))
        vectors = features.movedim(axis, -1).double().cpu() @ basis
        lifted: Tensor = (vectors - mean @ basis) @ gain.T + mean
        return torch.movedim(lifted, -1, axis).to(features)

    def blur(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
        """Return infinity: a zero is no zero in other directions."""
        return features.new_full((len(features),), math.inf)

    def restore(self, leak: Leak, secret: Secret | None) -> Leak:
        """Return the likeliest leak: the directions are known to the next stage."""
        return leak.with_features(self.lift(leak.features))

    def exact(self, features: Float[Tensor, "b ..."]) -> Bool[Tensor, "b"]:
        """Return that none is: what lies across the directions is lost."""
        return torch.zeros(len(features), dtype=torch.bool)

    def payload(self, payload: Payload, shape: Shape) -> Payload:
        """Return a number a direction and place, whatever was saved before."""
        count = shape[channel_axis(shape)]
        return payload.projected(self._count(count) / count)

    def _count(self, channels: int) -> int:
        return max(1, math.ceil(self.keep * channels))

    def _mean(self, channels: int) -> Float[Tensor, "c"]:
        if self.mean is None or self.covariance is None:
            raise DefenseError("project:onto=pca is fitted on leaks before it protects any")
        if len(self.mean) != channels:
            raise DefenseError(f"project was fitted on leaks of {len(self.mean)} channels, this has {channels}")
        return self.mean

    def _basis(self, channels: int) -> Float[Tensor, "c k"]:
        """Return orthonormal directions."""
        if self.onto == "pca":
            self._mean(channels)
            assert self.covariance is not None
            vectors = torch.linalg.eigh(self.covariance).eigenvectors.flip(1)
        else:
            generator = torch.Generator().manual_seed(self.seed)
            # Square and then cut, so that a direction more leaves the others as they are.
            vectors = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.double)).Q
        kept: Tensor = vectors[:, : self._count(channels)]
        return kept
