"""(epsilon, delta) of clipping followed by Gaussian noise, for one send and for several."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from ..schema import LARGEST_EPSILON
from ..types import Shape
from .base import DefenseError
from .clip import Clip
from .noise import Gaussian
from .pipeline import Pipeline

DELTA = 1e-5


@dataclass(frozen=True)
class Guarantee:
    """Whatever the picture, what is sent is (epsilon, delta)-indistinguishable from what any other picture gives.

    An infinite epsilon is one above `LARGEST_EPSILON`. `stage` is the place in the pipeline of the noise that gives it.
    """

    stage: int
    epsilon: float
    delta: float


class NoAccountantError(DefenseError):
    """The accounting library is not installed."""


def guarantee(pipeline: Pipeline, shape: Shape, sends: int) -> Guarantee | None:
    """Return the most that clipping right before Gaussian noise guarantees of a picture that is sent `sends` times.

    Local differential privacy: two pictures' clipped leaks are at most twice the norm bound apart, so that noise of
    deviation s is mu = sqrt(sends) 2 bound / s Gaussian differential privacy (Dong, Roth & Su 2022), composition being
    exact. Opacus turns mu into epsilon at delta = 1e-5. None where nothing is guaranteed. Stages after the noise change
    nothing; a bound or a deviation relative to leaks of other pictures says nothing of this one.

    Raises:
        NoAccountantError: Opacus is not installed.
    """
    found = [
        (math.sqrt(sends) * 2 * before.norm_bound(shape) / after.width, place)
        for place, (before, after) in enumerate(itertools.pairwise(pipeline.stages), start=1)
        if isinstance(before, Clip) and isinstance(after, Gaussian) and after.width > 0
    ]
    if not found:
        return None
    mu, place = min(found)
    return Guarantee(place, _epsilon(mu), DELTA)


def _epsilon(mu: float) -> float:
    try:
        from opacus.accountants.analysis import gdp
    except ImportError as error:
        raise NoAccountantError("the accounting library is missing: pip install 'seepage[dp]'") from error
    if gdp.delta_eps_mu(eps=0.0, mu=mu) <= DELTA:
        return 0.0
    # Not far beyond it the library's own search ends.
    if not gdp.delta_eps_mu(eps=LARGEST_EPSILON, mu=mu) <= DELTA:
        return math.inf
    return float(gdp.eps_from_mu(mu=mu, delta=DELTA))
