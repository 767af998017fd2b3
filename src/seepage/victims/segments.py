"""A prefix as steps, one a block: called on their own where that is the same, else run through the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..types import Segment, Shape
from .hooks import CutError, Network, Site, capture, features, probe
from .kinds import RESIDUAL
from .layers import boundaries, call_kind, look
from .structure import first, with_first
from .trace import Call, Trace
from .victim import Victim

TOLERANCE = 1e-5
"""What a cut or a segment may differ by from the uncut victim, relative to its norm."""


class Through(nn.Module):
    """The network from one site to another: features of the first in, features of the second out."""

    def __init__(self, network: Network, start: Site | None, stop: Site, image_shape: Shape) -> None:
        super().__init__()
        self.network = network
        self.start = start
        self.stop = stop
        self.image_shape = image_shape

    def forward(self, given: Tensor) -> Tensor:
        """Map the features at `start`, or pictures where there is none, to those at `stop`."""
        if self.start is None:
            return features(self.network, given, self.stop)
        return features(self.network, grey(given, self.image_shape), self.stop, (self.start, given))


class Called(nn.Module):
    """A module called with what else the victim calls it with, giving its first tensor alone."""

    def __init__(self, module: nn.Module, arguments: Any) -> None:
        super().__init__()
        self.module = module
        self.arguments = arguments

    def forward(self, given: Tensor) -> Tensor:
        """Map the module's features as the victim does."""
        args, kwargs = with_first(self.arguments, given)
        found = first(self.module(*args, **kwargs))
        assert found is not None
        return found


class Kept(nn.Module):
    """Hands on a copy, for a module that changes its input in place."""

    def forward(self, given: Tensor) -> Tensor:
        """Map features to the same features."""
        return given.clone()


def grey(like: Tensor, image_shape: Shape) -> Tensor:
    """Return as many grey pictures as there are rows; what they become is thrown away at the injection."""
    return like.new_full((like.shape[0], *image_shape), 0.5)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|, in 2-norms; infinite for other shapes and for what is not finite."""
    if found.shape != expected.shape:
        return float("inf")
    difference = float((found.double() - expected.double()).norm())
    norm = float(expected.double().norm())
    error = difference / norm if norm > 0 else difference
    return error if error == error else float("inf")


@torch.no_grad()
def segments(victim: Victim, network: Network, site: Site) -> tuple[Segment, ...]:
    """Return the steps from the pictures to a legal site, each checked against the network on two noise pictures.

    Raises:
        CutError: a step does not give what the network gives.
    """
    seen = look(victim)
    ends = _ends(victim, seen, site)
    images = probe(network, victim.image_shape, 2, seed=4)
    _, values = capture(network, images, [call.site for call in ends])
    found: list[Segment] = []
    start: Call | None = None
    given = images
    for end in ends:
        expected = values[end.site]
        module, kind = _direct(victim, network, seen, start, end, given, expected)
        if module is None:
            module = Through(network, None if start is None else start.site, end.site, victim.image_shape)
            error = relative_error(module(given.clone()), expected)
            if error > TOLERANCE:
                raise CutError(
                    f"{victim.name}: the step from {'the pictures' if start is None else repr(start.label)} to "
                    f"{end.label!r} differs from the network by {error:.2g} of its norm"
                )
        in_shape = victim.image_shape if start is None else start.shape
        found.append(Segment(end.label, kind, module, in_shape, end.shape))
        start, given = end, expected
    return tuple(found)


def _ends(victim: Victim, seen: Trace, site: Site) -> tuple[Call, ...]:
    """The calls that segments end at: block boundaries, blocks within them, what those start from, the cut itself."""
    target = next(call for call in seen.legal if call.site == site)
    earlier = seen.legal[: seen.legal.index(target)]
    limits = boundaries(victim, seen)
    blocks = [call for call in seen.legal if call_kind(victim.model, call) in RESIDUAL]
    starts = {call.takes for call in (*earlier, target) if call in limits or call in blocks}
    taken = {target.gives, seen.pictures}
    ends: list[Call] = []
    for call in earlier:
        same = [other for other in earlier if other.gives == call.gives]
        wanted = call.gives in starts or any(other in limits or other in blocks for other in same)
        if wanted and call.gives not in taken:
            taken.add(call.gives)
            named = [other for other in same if other in limits] + [other for other in same if other in blocks]
            ends.append(next(iter(named), same[-1]))
    return (*ends, target)


def _direct(
    victim: Victim, network: Network, seen: Trace, start: Call | None, end: Call, given: Tensor, expected: Tensor
) -> tuple[nn.Module | None, str | None]:
    """The modules that lead from one cut to the next when called on their own, and the kind of block they are."""
    source = seen.pictures if start is None else start.gives
    chain = _chain(victim.model, seen, source, end.gives)
    if chain is None:
        return None, None
    steps = [_step(network, call) for call in chain]
    plain = isinstance(network.normalise, nn.Identity)
    if start is None and not plain:
        steps.insert(0, network.normalise)
    module = steps[0] if len(steps) == 1 else nn.Sequential(*(steps or [nn.Identity()]))
    fed = given.clone()
    version = fed._version
    try:
        error = relative_error(module(fed), expected)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        # A module that wants what only the whole network gives it.
        return None, None
    if error > TOLERANCE:
        return None, None
    if fed._version != version:
        module = nn.Sequential(Kept(), module)
    return module, _kind(victim.model, chain, first=start is None, plain=plain)


def _chain(model: nn.Module, seen: Trace, source: int, target: int) -> list[Call] | None:
    """The fewest calls that lead from one value to another, each called on what the one before it gave."""
    if source == target:
        return []

    def rank(call: Call) -> int:
        kind = call_kind(model, call)
        return 2 if kind in RESIDUAL else int(kind is not None)

    # Of the modules that do the same, blocks come first, then the outermost.
    calls = list(reversed(seen.calls))
    calls.sort(key=rank, reverse=True)
    paths: list[tuple[int, list[Call]]] = [(target, [])]
    met = {target}
    for value, path in paths:
        for call in calls:
            if call.gives != value or call.takes is None or call.takes in met:
                continue
            if call.takes == source:
                return [call, *path]
            met.add(call.takes)
            paths.append((call.takes, [call, *path]))
    return None


def _step(network: Network, call: Call) -> nn.Module:
    module = network.model.get_submodule(call.site.module)
    args, kwargs = call.arguments
    alone = len(args) == 1 and isinstance(args[0], Tensor) and not kwargs
    return module if alone and call.bare else Called(module, call.arguments)


def _kind(model: nn.Module, chain: list[Call], *, first: bool, plain: bool) -> str | None:
    kinds = [kind for kind in (call_kind(model, call) for call in chain) if kind is not None]
    if first and not (plain and len(chain) == 1 and kinds and kinds[0] in RESIDUAL):
        return None if any(kind in RESIDUAL for kind in kinds) else "stem"
    return kinds[0] if len(kinds) == 1 else None
