"""How far each block of a victim can be undone, before any leak is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import seeding
from ..bounds import jacobian, singular_values
from ..inverses import joined, serving
from ..priors.dead_leaves import dead_leaves
from ..solvers import Problem
from ..solvers.linearise import Linearised
from ..types import Progress, Segment
from ..victims.cut import cut
from ..victims.layers import layers
from ..victims.victim import Victim

EXACT_UP_TO = 1024
"""The most inputs of a block whose Jacobian is computed whole."""
STEPS = 64
"""Lanczos steps on a larger block: products with J, and with its transpose, once a step."""
_STEPS_LARGEST = 16
# What is left of a direction once those before it are taken out is noise below this.
_EXHAUSTED = 1e-5
# What victims' libraries call the way past a block's weights, where it is no plain identity.
_SHORTCUTS = ("downsample", "shortcut", "shortcut_layer", "proj")


@dataclass(frozen=True)
class Spectrum:
    """The ends of the singular values of a Jacobian J, a map of the inputs.

    `exact`: both are J's, to float32. Otherwise `largest` is at most sigma_max and close to it, and `smallest` at
    least sigma_min, perhaps far from it; a smallest of 0 is certain.
    """

    largest: float
    smallest: float
    exact: bool

    @property
    def condition(self) -> float:
        """`largest / smallest`: how much more one change of the input shows than another; at least, unless exact."""
        return math.inf if self.smallest == 0 else self.largest / self.smallest


@dataclass(frozen=True)
class Diagnosis:
    """What undoing one block takes, at one synthetic picture's activations.

    Attributes:
        name: the cut where the block ends.
        kind: its kind, None where code lies between modules.
        rule: the registered inverse that serves it, or the stem that it is walked with; `generic` where none does.
        recovers: what of its input that rule brings back, in a few words.
        inputs: numbers in, a picture.
        outputs: numbers out.
        copy_noise: |y - S(x)| / |x|, how noisy a copy of its input the output is, S its shortcut where it has one and
            else the identity; None where that has another shape than the output.
        spectrum: of its Jacobian there.
    """

    name: str
    kind: str | None
    rule: str
    recovers: str
    inputs: int
    outputs: int
    copy_noise: float | None
    spectrum: Spectrum

    @property
    def loses(self) -> bool:
        """Whether it gives fewer numbers than it takes: many inputs then give the same output."""
        return self.outputs < self.inputs

    @property
    def invertible(self) -> bool | None:
        """Whether nearby inputs give other outputs, to float32's precision; None where only a bound is known."""
        rounding = torch.finfo(torch.float32).eps * math.sqrt(self.inputs) * self.spectrum.largest
        if self.spectrum.smallest <= rounding:
            return False
        return True if self.spectrum.exact else None


def diagnose(
    victim: Victim, *, seed: int = 0, steps: int = STEPS, progress: Progress | None = None
) -> tuple[Diagnosis, ...]:
    """Return a diagnosis a block of the victim, from the pictures to its outputs, in the order they run.

    A block is what lies between two neighbouring block boundaries. Its Jacobian is taken at the activations of one
    dead-leaves picture drawn from `seed`; up to `EXACT_UP_TO` inputs it is computed whole, above by `steps` of Lanczos.

    Raises:
        CutError: the victim cannot be cut at its last boundary, or a block does not run on its own.
    """
    split = cut(victim, layers(victim)[-1].name)
    features = dead_leaves(1, victim.image_shape, seeding.generator(seed, "control", "diagnose")).to(split.device)
    found = []
    rules = _rules(split.prefix.segments)
    for index, segment in enumerate(split.prefix.segments):
        if progress is not None:
            progress(index / len(split.prefix.segments), segment.name)
        with torch.no_grad():
            # A block may work in place on what it is given.
            given = segment.module(features.clone())
        found.append(_diagnosis(segment, rules[index], features, given, steps))
        features = given
    return tuple(found)


def spectrum(module: nn.Module, x: Float[Tensor, "1 ..."], *, steps: int = STEPS) -> Spectrum:
    """Return the ends of the singular values of a module's Jacobian at `x`, one sample.

    Of a module that gives fewer numbers than it takes the smallest is 0, whatever its weights.

    Source: Golub & Kahan 1965, with full reorthogonalisation; over any orthonormal V the singular values of J V lie
    between J's own extremes, hence the bounds.
    """
    with torch.no_grad():
        loses = module(x.clone()).numel() < x.numel()
    if x.numel() <= EXACT_UP_TO:
        values = singular_values(jacobian(module, x))
        return Spectrum(float(values[0]), 0.0 if loses else float(values[-1]), exact=True)
    values = _some_values(module, x, _STEPS_LARGEST if loses else steps)
    return Spectrum(float(values[-1]), 0.0 if loses else float(values[0]), exact=False)


def _rules(segments: Sequence[Segment]) -> list[tuple[str, str]]:
    """Return for each segment the rule that the walk has for it, alone or joined to others, and what that recovers."""
    found: list[tuple[str, str]] = []
    for whole in joined(segments):
        name, inverse = serving(whole)
        last = next(index for index, segment in enumerate(segments) if segment.name == whole.name)
        found += [(name, getattr(inverse, "recovers", "what that rule finds"))] * (last + 1 - len(found))
    return found


def _diagnosis(segment: Segment, rule: tuple[str, str], x: Tensor, y: Tensor, steps: int) -> Diagnosis:
    size, skip = float(x.norm()), _skipped(segment.module, x, y)
    copies = skip.shape == y.shape and size > 0
    return Diagnosis(
        name=segment.name,
        kind=segment.kind,
        rule=rule[0],
        recovers=rule[1],
        inputs=x.numel(),
        outputs=y.numel(),
        copy_noise=float((y - skip).norm()) / size if copies else None,
        spectrum=spectrum(segment.module, x, steps=steps),
    )


def _skipped(module: nn.Module, x: Float[Tensor, "1 ..."], y: Float[Tensor, "1 ..."]) -> Float[Tensor, "1 ..."]:
    """Return what a block's shortcut makes of x: x itself where none of its modules is one.

    One is called so, is given x, and does not make y all by itself.
    """
    found: list[Tensor] = []

    def look(part: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        if (
            given[0].shape == x.shape
            and torch.equal(given[0], x)
            and not (made.shape == y.shape and torch.equal(made, y))
        ):
            found.append(made.clone())

    parts = [part for name, part in module.named_modules() if name.rpartition(".")[2] in _SHORTCUTS]
    hooks = [part.register_forward_hook(look) for part in parts]
    try:
        with torch.no_grad():
            module(x.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else x


def _linearised(module: nn.Module, x: Float[Tensor, "b ..."]) -> Linearised:
    return Linearised(*Problem.of(lambda at, _: module(at.clone()), x, ()))


def _some_values(module: nn.Module, x: Float[Tensor, "1 ..."], steps: int) -> Float[Tensor, "k"]:
    """Return the singular values, in rising order, of J on the Krylov space of J^T J from a random start."""
    jacobian = _linearised(module, x)
    generator = seeding.generator(0, "control", "lanczos")
    way = torch.randn(1, x.numel(), generator=generator).to(x)
    basis, images = [way / way.norm()], [jacobian.forward(way / way.norm()).detach()]
    for _ in range(steps - 1):
        way = jacobian.transposed(images[-1])
        before = float(way.norm())
        known = torch.cat(basis)
        for _ in range(2):  # once leaves what rounding put back
            way = way - (way @ known.T) @ known
        if not float(way.norm()) > _EXHAUSTED * before:
            break
        basis.append(way / way.norm())
        images.append(jacobian.forward(basis[-1]).detach())
    return singular_values(torch.cat(images).T).flip(0)
