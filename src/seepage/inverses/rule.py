"""What every inverse is given and gives, and which one serves a kind of block."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .. import registry
from ..solvers import Solution
from ..types import Segment, Status

FALLBACK = "generic"
AFFINE = "affine"
_PICTURE = 0.5


@dataclass(frozen=True)
class Target:
    """What a segment gave, and what is known of what it was given.

    `features` is "b" x the segment's `out_shape`; `start` and the bounds are those of its input. `prior` maps inputs to
    a penalty a row, beside |segment(x) - features|^2 / |features|^2. `identified` says that the features are exact and
    no fewer than the unknowns: the prior may then fade, where it otherwise decides what the features leave open.
    `exact` claims the first alone, where they are fewer. `known` are numbers of the input that are the same for every
    picture, and that the start has: a rule may use them.
    """

    features: Float[Tensor, "b ..."]
    start: Float[Tensor, "b ..."]
    lower: float | None = None
    upper: float | None = None
    prior: Callable[[Tensor], Tensor] | None = None
    identified: bool = True
    exact: bool = False
    known: Bool[Tensor, "..."] | None = None

    @property
    def size(self) -> Float[Tensor, "b 1"]:
        """The norm of each row of features, never zero."""
        return sizes(self.features)

    @property
    def scale(self) -> Float[Tensor, "b ..."]:
        """The root mean square of each row's start, at most one half: a picture's, and that of a start at zero."""
        rms: Tensor = self.start.flatten(1).square().mean(1).sqrt()
        rms = torch.where(rms > 0, rms, _PICTURE).clamp_max(_PICTURE)
        return rms.view(-1, *[1] * (self.start.ndim - 1))

    def rows(self, index: Int[Tensor, "k"]) -> Target:
        """Return the same target for some of its rows."""
        return dataclasses.replace(self, features=self.features[index], start=self.start[index])


@runtime_checkable
class Inverse(Protocol):
    """A frozen dataclass whose fields are its configuration, registered under the block kind that it serves.

    A ClassVar `recovers` may say in a few words what of its input a block gives back under it.
    """

    def invert(self, segment: Segment, target: Target, passes: int) -> Solution:
        """Return x with segment(x) = features in at most `passes` runs of the segment, with or without their backward.

        The solution's residual is |segment(x) - features| / |features|, whatever the rule minimises, and a row has
        converged where its status says so. Rows are solved apart; what goes wrong in one is its status.
        """
        ...


def rule(kind: str | None) -> tuple[str, Inverse]:
    """Return the rule that serves a kind of block, and its name: its own, or the generic one where it has none."""
    name = kind if kind is not None and kind in registry.names("inverse") else FALLBACK
    inverse: Inverse = registry.build("inverse", name)
    return name, inverse


def misfit(segment: Segment) -> Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]:
    """Return x, (features, size) -> (segment(x) - features) / size: one weight of a prior then suits every block.

    In float64 the segment is run as a copy of itself in float64.
    """
    finer: list[nn.Module] = []

    def residual(x: Tensor, z: tuple[Tensor, Tensor]) -> Tensor:
        features, size = z
        if x.dtype == torch.float64 and not finer:
            finer.append(in_double(segment).module)
        missed: Tensor = (finer[0] if x.dtype == torch.float64 else segment.module)(x) - features
        return missed.flatten(1) / size

    return residual


def in_double(segment: Segment) -> Segment:
    """Return a copy of a segment that computes in float64."""
    return dataclasses.replace(segment, module=copy.deepcopy(segment.module).double())


@runtime_checkable
class Selective(Protocol):
    """A rule that serves some blocks of its kind: those that it does not are tried for an affine map, else generic."""

    def fits(self, segment: Segment) -> bool:
        """Return whether the rule has more to say of the segment than the generic one."""
        ...


_NEXT: Mapping[str, tuple[str, ...]] = {"transformer": ("residual",)}


def serving(segment: Segment) -> tuple[str, Inverse]:
    """Return the rule that serves a segment, and its name: its kind's, where that fits, affine, or generic.

    A transformer block that has no halves (windows on a map, branches side by side) is a residual like others.
    """
    for name in (rule(segment.kind)[0], *_NEXT.get(segment.kind or "", ()), AFFINE):
        inverse: Inverse = registry.build("inverse", name)
        if name != FALLBACK and (not isinstance(inverse, Selective) or inverse.fits(segment)):
            return name, inverse
    return rule(None)


Fit = tuple[Callable[..., Tensor], tuple[Tensor, ...]]
"""A residual of x and z, and that z: what a solver is handed."""


def plain(segment: Segment) -> Callable[[Target], Fit]:
    """Return what is fitted where nothing more is known of a segment: what it gives, relative to the features' norm."""
    return lambda target: (misfit(segment), (target.features, target.size))


def sizes(rows: Float[Tensor, "b ..."]) -> Float[Tensor, "b 1"]:
    """Return each row's norm, never zero."""
    norms: Tensor = rows.flatten(1).norm(dim=1, keepdim=True)
    return norms.clamp_min(torch.finfo(torch.float32).tiny)


def unknowns(solution: Solution) -> Float[Tensor, "b ..."]:
    """Return the solution of a problem in one tensor, or the first of several."""
    return solution.x if isinstance(solution.x, Tensor) else solution.x[0]


def better(first: Solution, second: Solution, rows: Int[Tensor, "k"]) -> Solution:
    """Return `first`, in `rows` what misses less of it and `second`; steps and passes add up."""
    found = followed(first, second, rows)
    worse = rows[second.residual >= first.residual[rows]]
    x, residual, status = unknowns(found), found.residual, list(found.status)
    x[worse], residual[worse] = unknowns(first)[worse], first.residual[worse]
    for row in worse.tolist():
        status[row] = first.status[row]
    return dataclasses.replace(found, status=tuple(status))


def followed(first: Solution, second: Solution, rows: Int[Tensor, "k"]) -> Solution:
    """Return `first` with `rows` of it taken further by `second`; steps and passes add up."""
    x, residual = unknowns(first).clone(), first.residual.clone()
    steps, passes = first.steps.clone(), first.passes.clone()
    status: list[Status] = list(first.status)
    x[rows], residual[rows] = unknowns(second), second.residual
    steps[rows] += second.steps
    passes[rows] += second.passes
    for row, one in zip(rows.tolist(), second.status, strict=True):
        status[row] = one
    return Solution(x, residual, tuple(status), steps, passes)
