"""The prior that bounds are stated for."""

from ..priors.natural import GREY, NaturalPrior

__all__ = ["GREY", "NaturalPrior"]
