"""A prefix as steps, one a block: called on their own where that is the same, else run through the network."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
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
    return float("inf") if math.isnan(error) else error


@torch.no_grad()
def segments(victim: Victim, network: Network, site: Site) -> tuple[Segment, ...]:
    """Return the steps from the pictures to a legal site, each checked against the network on two noise pictures.

    Raises:
        CutError: a step does not give what the network gives.
    """
    way = _Way(victim, network, look(victim))
    ends = way.ends(site)
    images = probe(network, victim.image_shape, 2, seed=4)
    _, values = capture(network, images, [call.site for call in ends])
    starts: list[Call | None] = [None, *ends[:-1]]
    return tuple(
        way.segment(start, end, images if start is None else values[start.site], values[end.site])
        for start, end in zip(starts, ends)
    )


@dataclass(frozen=True)
class _Way:
    """A victim as its trace shows it, taken apart."""

    victim: Victim
    network: Network
    seen: Trace

    def ends(self, site: Site) -> tuple[Call, ...]:
        """Return where segments end: block boundaries, blocks within them, what those start from, the cut itself."""
        legal = self.seen.legal
        target = next(call for call in legal if call.site == site)
        earlier = legal[: legal.index(target)]
        limits = boundaries(self.victim, self.seen)
        blocks = [call for call in legal if self._kind(call) in RESIDUAL]
        starts = {call.takes for call in (*earlier, target) if call in limits or call in blocks}
        taken = {target.gives, self.seen.pictures}
        ends: list[Call] = []
        for call in earlier:
            same = [other for other in earlier if other.gives == call.gives]
            named = [other for other in same if other in limits] + [other for other in same if other in blocks]
            if (named or call.gives in starts) and call.gives not in taken:
                taken.add(call.gives)
                ends.append(next(iter(named), same[-1]))
        return (*ends, target)

    def segment(self, start: Call | None, end: Call, given: Tensor, expected: Tensor) -> Segment:
        """Return one step, its modules called on their own where that gives what is expected."""
        in_shape = self.victim.image_shape if start is None else start.shape
        chain = self._chain(self.seen.pictures if start is None else start.gives, end)
        for module in () if chain is None else self._modules(chain, first=start is None):
            fed = given.clone()
            version = fed._version
            if _error(module, fed, expected) <= TOLERANCE:
                whole = module if fed._version == version else _apart(module)
                assert chain is not None
                return Segment(end.label, self._segment_kind(chain, start), whole, in_shape, end.shape)
        through = Through(self.network, None if start is None else start.site, end.site, self.victim.image_shape)
        error = relative_error(through(given.clone()), expected)
        if error > TOLERANCE:
            origin = "the pictures" if start is None else repr(start.label)
            raise CutError(f"{self.victim.name}: the step from {origin} to {end.label!r} is off by {error:.2g}")
        return Segment(end.label, None, through, in_shape, end.shape)

    def _chain(self, source: int, end: Call) -> list[Call] | None:
        """The fewest calls that lead from a value to a call's, each called on what the one before it gave."""
        if source == end.gives:
            return []
        if source == end.takes:
            return [end]
        # Of the modules that do the same, blocks come first, then the outermost.
        calls = list(reversed(self.seen.calls))
        calls.sort(key=lambda call: self._kind(call) not in RESIDUAL)
        paths: list[tuple[int, list[Call]]] = [(end.gives, [])]
        met = {end.gives}
        for value, path in paths:
            for call in calls:
                if call.gives != value or call.takes is None or call.takes in met:
                    continue
                if call.takes == source:
                    return [call, *path]
                met.add(call.takes)
                paths.append((call.takes, [call, *path]))
        return None

    def _modules(self, chain: list[Call], *, first: bool) -> Iterator[nn.Module]:
        """The chain as one module: bare where nothing stands around the features, then as the victim calls it."""
        before = [self.network.normalise] if first and not self._plain else []
        steps = [self.network.model.get_submodule(call.site.module) for call in chain]
        if all(call.bare for call in chain):
            yield _one(before + steps)
        if chain:
            yield _one(before + [Called(step, call.arguments) for step, call in zip(steps, chain)])

    def _segment_kind(self, chain: list[Call], start: Call | None) -> str | None:
        kinds = [kind for kind in map(self._kind, chain) if kind is not None]
        block = any(kind in RESIDUAL for kind in kinds)
        if start is None and not (block and self._plain):
            # With a normalisation before it, a block is no longer what its kind says.
            return None if block else "stem"
        if kinds == ["conv"] and len(chain[-1].shape) == 1:
            return "head"
        return kinds[0] if len(kinds) == 1 else None

    def _kind(self, call: Call) -> str | None:
        return call_kind(self.victim.model, call)

    @property
    def _plain(self) -> bool:
        return isinstance(self.network.normalise, nn.Identity)


def _apart(module: nn.Module) -> nn.Module:
    """Return what computes the same and leaves its input as it was: an activation stays one, for its rule to see."""
    if getattr(module, "inplace", False) and next(module.children(), None) is None:
        found = copy.copy(module)
        vars(found)["inplace"] = False
        return found
    return nn.Sequential(Kept(), module)


def _one(steps: list[nn.Module]) -> nn.Module:
    return steps[0] if len(steps) == 1 else nn.Sequential(*(steps or [nn.Identity()]))


def _error(module: nn.Module, given: Tensor, expected: Tensor) -> float:
    try:
        found = module(given)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        # It wants what only the whole network gives it.
        return float("inf")
    return relative_error(found, expected) if isinstance(found, Tensor) else float("inf")
