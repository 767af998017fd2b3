"""Quantisation to a few bits a number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from ..registry import register
from ..types import Shape
from .base import Payload, by_row
from .transform import Transform

_RANGE_BYTES = 8


@register("defense", "quantize")
@dataclass(frozen=True)
class Quantize(Transform):
    """Rounding to the nearest of 2^`bits` levels, evenly from a row's least to its largest number.

    Least and largest travel beside the row. To an aware inversion the rounding is the identity on the way back
    (straight-through: Bengio et al., arXiv 1308.3432), so that its steps hide no gradient.
    """

    bits: Literal[8, 4, 2, 1] = 8

    moves_zeros: ClassVar[bool] = True

    def map(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the levels."""
        flat = features.detach().flatten(1)
        low, high = by_row(flat.amin(1), features), by_row(flat.amax(1), features)
        step = ((high - low) / (2**self.bits - 1)).clamp_min(1e-30)
        levels = ((features.detach() - low) / step).round() * step + low
        return features + (levels - features).detach()

    def blur(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
        """Return the rounding's deviation."""
        flat = features.detach().flatten(1)
        return (flat.amax(1) - flat.amin(1)) / (2**self.bits - 1) / math.sqrt(12)

    def payload(self, payload: Payload, shape: Shape) -> Payload:
        """Return `bits` a number and the row's range."""
        return payload.rounding(self.bits, _RANGE_BYTES)
