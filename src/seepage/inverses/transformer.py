"""Transformer blocks: two residuals, undone one after the other, the second token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..registry import register
from ..solvers import DenseMarquardt, NewtonKrylov, Solution
from ..types import Segment, Status
from .halves import Halves, halves
from .identity_residual import IdentityResidual
from .rule import Target, better, in_double, sizes, unknowns

# A step takes at most so many products: of one token's equations, and of all tokens'.
_TOKEN, _ALL = 60, 100
_STEPS, _EXACT_STEPS = 12, 14
_LARGEST = 2048
# Where tokens miss more than this of what they gave, Newton's method is on no way to an answer.
_NEAR = 5e-2
# Newton's first steps may take one pass in so many, and no more than so many: what they can solve is solved by then.
_EARLY, _ENOUGH = 3, 100
# One pass in so many is kept for attention.
_LATE = 6
# A half is solved to this part of the tolerance, in float64: what it misses comes back many times over.
_WITHIN = 1e-2
# What a look at the block, the judgement and Newton's last steps may take beside, and too few passes to begin with.
_OVERHEAD, _FEWEST = 16, 24


@register("inverse", "transformer")
@dataclass(frozen=True)
class Transformer:
    """Undo u + mlp(norm u) = y token by token, then x + attention(norm x) = u (Vaswani et al. 2017, pre-norm).

    Both are as many equations as unknowns, solved by Newton's method with GMRES from the target's start, in float64: a
    token's condition is in the hundreds. A token's own equations are few: some tokens are had in a handful of products,
    and the others are solved exactly from the start again (`DenseMarquardt`), as far as the passes reach: where
    Newton's method was led astray is no place to begin. A run of a half for all tokens is half a pass. Tokens that are
    known, such as a class token before the first block, are held, and what the block made of them is not asked for.
    Blocks without such halves and outputs that are not exact go by the rule for other residuals, and pictures that are
    left do so with the passes that are left. `tolerance` is relative to what each half gave.
    """

    recovers: ClassVar[str] = "all of it, near the start or where each token has one answer"

    tolerance: float = 1e-6

    def fits(self, segment: Segment) -> bool:
        """Return whether the block keeps its shape, hence has a skip to follow, and has the two halves."""
        if not IdentityResidual().fits(segment):
            return False
        weight = next(segment.module.parameters(), torch.zeros(()))
        return halves(segment.module, _like(segment).to(weight)) is not None

    def invert(self, segment: Segment, target: Target, passes: int) -> Solution:
        """Return the block's input. Shapes as in `Target`."""
        other = IdentityResidual(tolerance=self.tolerance)
        free, left = _free(target), passes - _OVERHEAD
        if not target.identified or not bool(free.any()) or left < _FEWEST:
            return other.invert(segment, target, passes)
        parts = None
        if other.fits(segment):
            parts = halves(in_double(segment).module, _like(segment).to(target.start).double())
        if parts is None:
            return other.invert(segment, target, passes)
        early, late = min(left // _EARLY, _ENOUGH), left // _LATE
        tokens = _Tokens.of(parts, target, free, early, _WITHIN * self.tolerance)
        tokens.solve_exactly(left - late, _WITHIN * self.tolerance)
        found = self._attention(segment, parts, target, tokens, late)
        ended = torch.tensor([status.kind != "stopped" for status in found.status], device=found.residual.device)
        rows = (~ended).nonzero().flatten()
        more = passes - int(found.passes[rows].max()) if len(rows) else 0
        return better(found, other.invert(segment, target.rows(rows), more), rows) if more >= _FEWEST else found

    def _attention(self, segment: Segment, parts: Halves, target: Target, tokens: _Tokens, passes: int) -> Solution:
        """Return what the first half was given, judged by the whole block. Rows that are not near stay at the start."""
        free, between, held = tokens.free, tokens.between, target.start.double()

        def placed(x: Tensor, whole: Tensor) -> Tensor:
            whole = whole.clone()
            whole[:, free] = x
            return whole

        def residual(x: Tensor, z: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            off: Tensor = parts.first(placed(x, z[0]))[:, free] - z[1]
            return off.flatten(1) / z[2]

        near, found = tokens.near.nonzero().flatten(), held.clone()
        passed = tokens.passes
        if len(near):
            inner = max(min(_ALL, passes), 1)
            wanted = between[near][:, free]
            z = (held[near], wanted, sizes(wanted))
            newton = NewtonKrylov(_STEPS, inner, _WITHIN * self.tolerance, passes=max(2 * passes - inner, 1))
            solved = newton.solve(residual, held[near][:, free], z)
            found[near] = placed(unknowns(solved), held[near])
            passed[near] += (solved.passes + 1) // 2
        sound = torch.isfinite(target.features).flatten(1).all(1) & torch.isfinite(held).flatten(1).all(1)
        with torch.no_grad():
            found = found.to(target.start.dtype)
            off = (segment.module(found) - target.features)[:, free].flatten(1).norm(dim=1)
        missed = torch.where(sound, off / sizes(target.features[:, free])[:, 0], math.inf)
        status = tuple(
            _status(ok, one, self.tolerance) for ok, one in zip(sound.tolist(), missed.tolist(), strict=True)
        )
        return Solution(found, missed, status, torch.zeros_like(passed), passed + 4)


@dataclass
class _Tokens:
    """What the second half was given in several pictures, a row a token that is sought, as far as it was found."""

    parts: Halves
    free: Bool[Tensor, "t"]
    start: Float[Tensor, "b t d"]
    z: tuple[Tensor, Tensor]
    x: Float[Tensor, "n d"]
    residual: Float[Tensor, "n"]
    runs: Int[Tensor, "n"]
    near: Bool[Tensor, "b"]

    @staticmethod
    def of(parts: Halves, target: Target, free: Bool[Tensor, "t"], passes: int, tolerance: float) -> _Tokens:
        """Return the tokens after Newton's steps from what the start gives."""
        with torch.no_grad():
            start = parts.first(target.start.double())
        wanted = target.features[:, free].flatten(0, 1).double()
        z = wanted, sizes(wanted)
        inner = min(_TOKEN, passes)
        newton = NewtonKrylov(_STEPS, inner, tolerance, passes=max(2 * passes - inner, 1))
        found = newton.solve(partial(_missed, parts), start[:, free].flatten(0, 1), z)
        off = (found.residual * z[1][:, 0]).view(len(start), -1).norm(dim=1)
        near = off <= _NEAR * wanted.view(len(start), -1).norm(dim=1)
        return _Tokens(parts, free, start, z, unknowns(found), found.residual, found.passes, near)

    def solve_exactly(self, passes: int, tolerance: float) -> None:
        """Solve what is left of near pictures from the start again, the nearest first, while there are passes."""
        begun = self.start[:, self.free].flatten(0, 1)
        count, width = len(self.x) // len(self.start), self.x.shape[1]
        each, exact = _EXACT_STEPS * (width + 8) + 1, DenseMarquardt(_EXACT_STEPS, tolerance=tolerance)
        for picture in self.near.nonzero().flatten().tolist() if width <= _LARGEST else ():
            own = torch.arange(picture * count, (picture + 1) * count, device=self.x.device)
            left = own[self.residual[own] > tolerance]
            left = left[self.residual[left].argsort()]
            while len(left) and (some := (2 * passes * count - int(self.runs[own].sum())) // each) > 0:
                rows = left[:some]
                found = exact.solve(partial(_missed, self.parts), begun[rows], (self.z[0][rows], self.z[1][rows]))
                less = found.residual < self.residual[rows]
                self.x[rows[less]], self.residual[rows[less]] = unknowns(found)[less], found.residual[less]
                self.runs[rows] += found.passes
                left = left[some:]

    @property
    def between(self) -> Float[Tensor, "b t d"]:
        """All tokens between the halves."""
        found = self.start.clone()
        found[:, self.free] = self.x.view(len(found), -1, found.shape[2])
        return found

    @property
    def passes(self) -> Int[Tensor, "b"]:
        """Half of the runs of a picture's tokens over their number."""
        return (self.runs.view(len(self.start), -1).double().mean(1) / 2).ceil().long()


def _missed(parts: Halves, u: Float[Tensor, "k d"], z: tuple[Tensor, Tensor]) -> Float[Tensor, "k d"]:
    """Return by how much the second half of tokens misses what it gave, relative to its norm."""
    return (parts.second(u[:, None])[:, 0] - z[0]) / z[1]


def _like(segment: Segment) -> Float[Tensor, "1 ..."]:
    """Return something of the shape of the block's input to run it on."""
    return torch.randn(1, *segment.in_shape, generator=torch.Generator().manual_seed(0))


def _free(target: Target) -> Bool[Tensor, "t"]:
    """Return which tokens are sought: those that are not known in every number."""
    if target.known is None:
        return torch.ones(target.start.shape[1], dtype=torch.bool, device=target.start.device)
    return ~target.known.all(1)


def _status(sound: bool, residual: float, tolerance: float) -> Status:
    if not sound or not math.isfinite(residual):
        return Status("failed", "what the block gave, or where to start, is not finite")
    # The halves' residuals add up.
    return Status("converged" if residual <= 10 * tolerance else "stopped", f"residual {residual:.3g}")
