"""PEEL's other reading: every stage is inverted from its *true* output, as the authors' scripts do.

That is no attack on one leak: it is given the leak of every stage, and its picture depends on the first of them alone.
It stands here beside the walk from one leak, to tell the two apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from seepage.inverses import Constrained, Inverse, Split, Step, Target, steps, unknowns
from seepage.priors import total_variation
from seepage.types import SplitModel

PASSES = {"quick": 60, "standard": 480, "full": 2400}
"""Runs of each segment by effort, those of `peel`."""
# As `peel` has them.
_TV, _GREY = 0.3, 0.5


@dataclass(frozen=True)
class Restarted:
    """The pictures, "b 3 h w"; by segment what it was found to be given, "b ...", and the relative error a row."""

    images: Float[Tensor, "b 3 h w"]
    inputs: dict[str, Float[Tensor, "b ..."]]
    errors: dict[str, list[float]]


def restart(split: SplitModel, images: Float[Tensor, "b 3 h w"], passes: int, form: str = "least-squares") -> Restarted:
    """Invert each segment of the prefix from what it truly gave for `images`, at most `passes` runs each."""
    given, inputs, errors = images, {}, {}
    found = images
    for step in steps(split.prefix, torch.full_like(images[:1], _GREY)):
        with torch.no_grad():
            gave = step.segment.module(given)
        back = _invert(step, gave, passes, form)
        inputs[step.segment.name] = back
        errors[step.segment.name] = ((back - given).flatten(1).norm(dim=1) / given.flatten(1).norm(dim=1)).tolist()
        found = back if step.first else found
        given = gave
    return Restarted(found, inputs, errors)


def _invert(step: Step, gave: Tensor, passes: int, form: str) -> Tensor:
    start = gave if not step.first and not step.reshapes else step.grey.expand(len(gave), *step.grey.shape[1:]).clone()
    inverse: Inverse = step.served[1]
    if form != "least-squares" and not step.first:
        inverse = Split() if form == "penalty" else Constrained()
    prior = None if len(step.segment.in_shape) != 3 else lambda x: _TV * total_variation(x)
    target = Target(gave, start, step.lower, step.upper, prior, not step.loses, exact=True)
    return unknowns(inverse.invert(step.segment, target, passes))
