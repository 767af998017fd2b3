"""What an attacker may assume of pictures before seeing a leak: smoothness, synthetic pictures, a linear decoder."""

from __future__ import annotations

from .corrections import CorrectedDecoder, Corrections, log_error
from .dead_leaves import dead_leaves
from .natural import NaturalPrior
from .ridge import Ridge, RidgeDecoder
from .spectrum import Spectrum
from .tv import total_variation

__all__ = [
    "CorrectedDecoder",
    "Corrections",
    "NaturalPrior",
    "Ridge",
    "RidgeDecoder",
    "Spectrum",
    "dead_leaves",
    "log_error",
    "total_variation",
]
