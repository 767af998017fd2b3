"""What no attack can do better: the Jacobian's spectrum, Fisher information, and bounds on the mean squared error."""

from ..priors.natural import NaturalPrior
from .estimate import Estimate
from .fisher import at_picture, dfil, information, unbounded, van_trees
from .jacobian import EXACT_UP_TO, LEVELS, ROUNDING, Spectrum, jacobian, singular_values, spectrum
from .kept import kept, place

__all__ = [
    "EXACT_UP_TO",
    "LEVELS",
    "ROUNDING",
    "Estimate",
    "NaturalPrior",
    "Spectrum",
    "at_picture",
    "dfil",
    "information",
    "jacobian",
    "kept",
    "place",
    "singular_values",
    "spectrum",
    "unbounded",
    "van_trees",
]
