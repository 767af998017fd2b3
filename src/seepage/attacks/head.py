"""How far a walk back comes by itself, and the prefix that is left before that, for a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..inverses import Step, Target, unknowns
from ..priors import dead_leaves
from ..types import Attack, Knowledge, Prefix, Recoverer, Segment

# So many synthetic pictures are walked back to, and what a block was given must come back to this share of its norm.
_WALKED, _BACK = 2, 1e-3

Searches = Callable[[int], Recoverer]
Penalty = Callable[[Tensor], Tensor]


class Head(Prefix):
    """The first segments of a prefix."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        super().__init__()
        self._segments = tuple(segments)
        self.parts = nn.ModuleList(segment.module for segment in segments)
        self.training = False

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments."""
        return self._segments

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b ..."]:
        """Map RGB in [0, 1] to what the last of them gives."""
        for part in self.parts:
            images = part(images)
        return images


def remaining(path: Sequence[Step], seed: int, passes: int, prior: Callable[[Step], Penalty | None]) -> int:
    """Return how many segments are left where the walk cannot go on by itself, at least one.

    Synthetic pictures tell, whose way is known: it goes on through a block where every one of them comes back from the
    block's output, to what the block was given and not to another input that gives the same.
    """
    _, *image_shape = path[0].grey.shape
    channels, height, width = image_shape
    pictures = dead_leaves(_WALKED, (channels, height, width), torch.Generator().manual_seed(seed)).to(path[0].grey)
    given = [pictures]
    with torch.no_grad():
        for step in path:
            given.append(step.segment.module(given[-1]))
    features = given[-1]
    for place in range(len(path) - 1, 0, -1):
        step = path[place]
        if step.reshapes:
            return place + 1
        start, bounds = step.start_at(features), (step.lower, step.upper)
        target = Target(features, start, *bounds, prior(step), identified=True, exact=True, known=step.known)
        found = unknowns(step.served[1].invert(step.segment, target, passes))
        missed = (found - given[place]).flatten(1).norm(dim=1) / given[place].flatten(1).norm(dim=1)
        if not bool((missed <= _BACK).all()):
            return place + 1
        features = found
    return 1


def searches(path: Sequence[Step], knowledge: Knowledge, seed: int, search: Attack) -> Searches:
    """Return how to get an attack fitted to so many of the first segments, once for each number."""
    image_shape = knowledge.image_shape

    @cache
    def fitted(count: int) -> Recoverer:
        whole = count == len(path)
        prefix = knowledge.prefix if whole else Head([step.segment for step in path[:count]])
        known = Knowledge(image_shape, prefix, law=knowledge.law if whole else None)
        return search.fit(known, torch.Generator().manual_seed(seed))

    return fitted
