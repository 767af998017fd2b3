"""CapRecover's noise: added to a leak, taken away again by whoever runs the next layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..registry import register
from ..types import Generators, Law, Leak, Noise, Secret, Shape
from .base import (
    EAVESDROPPER,
    STORAGE,
    BuiltIn,
    Payload,
    SecretError,
    applied,
    drawn,
    mean_of,
    require_positive,
    spend,
    together,
    undone,
)
from .noise import DEVIATION, density

_NOISE = "noise"


@register("defense", "noise-shift")
@dataclass(frozen=True)
class NoiseShift(BuiltIn):
    """Uniform noise between 0 and `scale` on every number, which the next stage takes away again.

    CapRecover (arXiv 2507.22828, section 5): g((F + e) - e) = g(F), by default e ~ U[0, 1), whatever the features'
    scale, at every layer. Of the leak of one cut that is uniform noise that the receiver removes. The noise itself is
    the secret: it weighs as much as the leak, and floats come back to their rounding, not bit for bit (`mask` does).
    """

    scale: float = 1.0

    holder: ClassVar[str] = "client and provider"
    protects_from: ClassVar[tuple[str, ...]] = (EAVESDROPPER, STORAGE)
    randomised: ClassVar[bool] = True
    affine: ClassVar[bool] = True
    keeps_secret: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive("scale", self.scale, zero=True)

    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, Secret]:
        """Add the noise and keep it."""
        noise = self.scale * drawn(leak, generators, lambda shape, generator: torch.rand(shape, generator=generator))
        return applied(leak, self, leak.features + noise), Secret({_NOISE: noise})

    def restore(self, leak: Leak, secret: Secret | None) -> Leak:
        """Take the noise away, once.

        Raises:
            SecretError: there is no secret, it was used, or it is of a leak of another shape.
        """
        known = None if secret is None else secret.tensors.get(_NOISE)
        if known is not None and known.shape != leak.features.shape:
            raise SecretError(
                f"the secret is of another leak: noise of shape {tuple(known.shape)}, features of "
                f"{tuple(leak.features.shape)}"
            )
        return undone(leak, self, leak.features - spend(secret, _NOISE, "noise-shift").to(leak.features))

    def law(self) -> Law:
        """Return the noise's distribution, which has a mean."""
        return ShiftLaw(self)

    def noise(self) -> Noise:
        """Return the noise about its mean, which anyone may take away."""
        return Noise("uniform", self.scale * DEVIATION["uniform"] / 2)

    def payload(self, payload: Payload, shape: Shape) -> Payload:
        """Return the leak and, for the next stage, as many floats of noise."""
        return payload.filled().beside(4 * torch.Size(shape).numel())


@dataclass(frozen=True)
class ShiftLaw:
    """Uniform noise whose mean can be taken away by anyone."""

    defense: NoiseShift

    def sample(self, clean: Leak, generators: Generators) -> Leak:
        """Return what might be sent."""
        return self.defense.protect(clean, generators)[0]

    def expected(self, clean: Leak) -> Leak:
        """Return the leak, shifted by the noise's mean."""
        return applied(clean, self.defense, clean.features + self.defense.scale / 2)

    def estimate(self, sends: Sequence[Leak]) -> Leak:
        """Return the middle of least and largest send, the noise's mean taken away."""
        return self.unbiased(sends)

    def unbiased(self, sends: Sequence[Leak], *, plain: bool = True) -> Leak:
        """Return `estimate`; the mean in place of the middle where the sends are not plain."""
        stacked = torch.stack([send.features for send in sends])
        alike = len(sends) < 3 or not plain
        middle = mean_of(tuple(sends)) if alike else (stacked.amin(0) + stacked.amax(0)) / 2
        return sends[0].with_features(middle - self.defense.scale / 2)

    def guess(
        self, sends: Sequence[Leak], blur: Float[Tensor, "b"], *, behind: float = 1.0, plain: bool = True
    ) -> Leak:
        """Return `unbiased`: nothing was learned to denoise by."""
        return self.unbiased(sends, plain=plain and not blur.any())

    def carried(self, sent: Leak, blur: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Return the blur with the noise."""
        return together(blur, torch.full((len(sent),), self.defense.scale * DEVIATION["uniform"] / 2))

    def exact(self, sent: Leak) -> Bool[Tensor, "b"]:
        """Return that nothing else is lost."""
        return torch.ones(len(sent), dtype=torch.bool)

    def log_likelihood(self, sent: Leak, clean: Leak) -> Float[Tensor, "b"] | None:
        """Return the density's logarithm, in nats; None for noise of no width."""
        half = self.defense.scale / 2
        if half == 0:
            return None
        return density("uniform", (sent.features - clean.features - half) / half, half)
