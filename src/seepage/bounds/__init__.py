"""What no attack can do better: the Jacobian's spectrum, Fisher information, and bounds on the mean squared error."""

from .estimate import Estimate
from .fisher import at_picture, dfil, information, unbounded, van_trees
from .jacobian import LEVELS, Spectrum, jacobian, singular_values, spectrum
from .prior import NaturalPrior

__all__ = [
    "LEVELS",
    "Estimate",
    "NaturalPrior",
    "Spectrum",
    "at_picture",
    "dfil",
    "information",
    "jacobian",
    "singular_values",
    "spectrum",
    "unbounded",
    "van_trees",
]
