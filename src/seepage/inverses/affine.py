"""Segments whose output is an affine map of their input: the exact part of the input, and what decides the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..registry import register
from ..solvers import Problem, Solution, cg
from ..solvers.linearise import Linearised
from ..types import Segment, Status
from .generic import Generic
from .patches import patchwise
from .rule import AFFINE, Target, misfit, unknowns

Undo = Callable[[Tensor], Tensor]
_LARGEST = 2**24
_AFFINE = 1e-4
_ROUNDING = 1e-6
_TURNS, _ROUNDS = 2, 30
# Answers beyond the bounds are tried again without the directions below this share of the strongest.
_COARSER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# Whether the map is affine, its reading, twice for patches, and what the result gives.
_OVERHEAD = 4


@register("inverse", "head")
@register("inverse", AFFINE)
@dataclass(frozen=True)
class Affine:
    """Return the input nearest to the start of all that A x + b = y leaves open, by the pseudo-inverse of A.

    Linear heads, flattening, norms with fixed statistics, added tokens and positions, averages. What comes back exactly
    is the part of the input in A's row space: a linear head of c classes gives at most c directions of its input, an
    average one number a window. Where that is not all of it and the target has a prior, the prior decides the rest; the
    exact part is then put back. Bounds are met by projecting in turn on them and on the inputs that explain y, as the
    nearest of those may leave them. Where that does not end, y is a little off and the map's weakest directions magnify
    it: as many of those are left at the start as makes it explain y best between the bounds. Patch embeddings are
    undone patch by patch, maps of up to 2^24 entries by their singular values in float64, those below `cutoff` of the
    largest taken for zero; larger ones by conjugate gradients.
    Reading A off the segment depends on no leak and counts as one pass. A segment that is not affine is left to the
    generic rule, and so is a target that no input gives, unless the segment loses numbers anyway.
    """

    recovers: ClassVar[str] = "the part in the row space of the map, exactly"

    cutoff: float = 1e-6
    tolerance: float = 1e-6

    def fits(self, segment: Segment) -> bool:
        """Return whether the segment is an affine map, seen at four points."""
        generator = torch.Generator().manual_seed(0)
        a, b = torch.randn(2, *segment.in_shape, generator=generator).to(_like(segment))
        with torch.no_grad():
            values = segment.module(torch.stack([a, b, a + b, torch.zeros_like(a)]))
        first, second, both, none = values.flatten(1).double()
        size = max(float((part - none).norm()) for part in (first, second, both))
        return float((both + none - first - second).norm()) <= _AFFINE * size

    def invert(self, segment: Segment, target: Target, passes: int) -> Solution:
        """Return the block's input. Shapes as in `Target`."""
        loses = math.prod(segment.out_shape) < math.prod(segment.in_shape)
        if not self.fits(segment) or (not target.identified and not loses):
            return Generic().invert(segment, target, passes - 1)
        decided = target.prior is not None and not target.identified
        turns = 2 * _TURNS if decided else _TURNS
        undo = pseudo_inverse(segment, self.cutoff, (passes // (2 if decided else 1) - _OVERHEAD) // turns - 1)
        x, spent = self._nearest(segment, target, undo, target.start), _OVERHEAD + turns
        rest = passes // 2 - spent
        if decided and rest > 0:
            smooth = Generic().invert(segment, target, rest)
            spent += int(smooth.passes.max())
            sound = torch.tensor([status.kind != "failed" for status in smooth.status]).view(target.scale.shape)
            x = self._nearest(segment, target, undo, torch.where(sound.to(x.device), unknowns(smooth), x))
        spent += undo.spent if isinstance(undo, _MatrixFree) else 0
        if (target.lower, target.upper) != (None, None):
            x, rounds = self._between(segment, target, undo, x, min(_ROUNDS, (passes - spent) // 2))
            spent += 2 * rounds
            if not isinstance(undo, _MatrixFree) and passes - spent > len(_COARSER) * (_TURNS + 1):
                x, more = self._coarser(segment, target, x)
                spent += more
        with torch.no_grad():
            residual = misfit(segment)(x, (target.features, target.size)).norm(dim=1)
        count = torch.full((len(x),), min(spent, passes), device=x.device)
        return Solution(x, residual, tuple(map(self._status, residual.tolist())), torch.ones_like(count), count)

    @torch.no_grad()
    def _nearest(self, segment: Segment, target: Target, undo: Undo, x: Tensor) -> Tensor:
        # A second turn takes back what rounding left of the first.
        for _ in range(_TURNS):
            x = x + undo(target.features - segment.module(x))
        return x

    @torch.no_grad()
    def _between(self, segment: Segment, target: Target, undo: Undo, x: Tensor, rounds: int) -> tuple[Tensor, int]:
        """Return a point between the bounds by projecting on them and on what explains y in turn, and the turns."""
        for turn in range(rounds):
            inside = x.clamp(target.lower, target.upper)
            if float((inside - x).norm()) <= _ROUNDING * float(x.norm()):
                return inside, turn
            x = inside + undo(target.features - segment.module(inside))
        return x.clamp(target.lower, target.upper), max(rounds, 0)

    @torch.no_grad()
    def _coarser(self, segment: Segment, target: Target, x: Tensor) -> tuple[Tensor, int]:
        """Return the rows that explain y best between the bounds, of x and with larger cutoffs, and the runs."""
        z, spent = (target.features, target.size), 1
        missed = misfit(segment)(x, z).norm(dim=1)
        for cutoff in _COARSER if bool((missed > _ROUNDING).any()) else ():
            undo = pseudo_inverse(segment, max(cutoff, self.cutoff), 0)
            other = self._nearest(segment, target, undo, target.start).clamp(target.lower, target.upper)
            off = misfit(segment)(other, z).norm(dim=1)
            x = torch.where((off < missed).view(target.scale.shape), other, x)
            missed, spent = torch.minimum(off, missed), spent + _TURNS + 1
        return x, spent

    def _status(self, residual: float) -> Status:
        if not math.isfinite(residual):
            return Status("failed", "the features are not finite")
        return Status("converged" if residual <= self.tolerance else "stopped", f"residual {residual:.3g}")


def pseudo_inverse(segment: Segment, cutoff: float, steps: int) -> Undo:
    """Return the map from a change of the segment's output, "b ...", to the least change of its input that makes it.

    `steps` bounds the products of conjugate gradients, where they are needed.
    """
    undo = patchwise(segment, _like(segment), cutoff)
    if undo is not None:
        return undo
    inputs, outputs = math.prod(segment.in_shape), math.prod(segment.out_shape)
    return _dense(segment, cutoff) if inputs * outputs <= _LARGEST else _MatrixFree(segment, steps)


def _dense(segment: Segment, cutoff: float) -> Undo:
    x = torch.zeros(1, *segment.in_shape).to(_like(segment)).requires_grad_()
    with torch.enable_grad():
        out = segment.module(x.clone()).flatten()
        rows = [torch.autograd.grad(value, x, retain_graph=True)[0].flatten() for value in out]
    inverse = torch.linalg.pinv(torch.stack(rows).double(), rtol=cutoff)

    def undo(change: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        least: Tensor = (change.flatten(1).double() @ inverse.T).to(change.dtype)
        return least.view(-1, *segment.in_shape)

    return undo


@dataclass
class _MatrixFree:
    """Least squares by conjugate gradients on A^T A, from zero; counts its products."""

    segment: Segment
    steps: int
    spent: int = 0

    def __call__(self, change: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        x = torch.zeros(len(change), *self.segment.in_shape).to(change)
        line = Linearised(*Problem.of(lambda at, _: self.segment.module(at.clone()), x, ()))
        # Of the two normal equations the one that has a solution where the change is none that the map can make.
        right = line.transposed(change.flatten(1))
        found = cg(lambda v: line.transposed(line.forward(v)), right, steps=self.steps, tolerance=_ROUNDING)
        self.spent += int(found.steps.max()) + 1
        return found.x.view_as(x)


def _like(segment: Segment) -> Tensor:
    """Return an empty tensor of the segment's own type, on its device."""
    weight = next((item for item in segment.module.parameters() if item.is_floating_point()), torch.zeros(()))
    return torch.empty(0, dtype=weight.dtype, device=weight.device)
