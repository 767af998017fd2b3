"""The whole prefix inverted at once: a learned start, annealed descent, then Gauss-Newton without a prior."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..inverses import better, unknowns
from ..priors import CorrectedDecoder, Corrections, Spectrum, dead_leaves, log_error, total_variation
from ..registry import register
from ..solvers import Adam, LevenbergMarquardt, Solution
from ..solvers.cg import Operator
from ..types import (
    Access,
    Auxiliary,
    Generators,
    Images,
    Knowledge,
    Law,
    Leak,
    Prefix,
    Progress,
    Recoverer,
    Recovers,
    Recovery,
    Status,
)
from .chores import Chore
from .inversion import GREY, Target, determined, device_of, ended, leak_shape, recover_rows, white_box
from .learning import drawing

# Weights of total variation, and how they are tried where a leak leaves the picture open.
_LADDER = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_MIDDLE = 2
_TRIAL_STEPS = 40
_RATES = (0.004, 0.03)
_HELD_OUT = 2
# Both rates at one weight, then commonly one weight to each side and one beyond.
_TRIALS = 5
# Products of the first Newton step.
_FIRST = 10
# What a product with J^T J takes of a pass: a directional derivative and a backward run.
_PRODUCT = 1.0
_GREY_TV = 3.0
# The decibels from which a start is not to be smoothed.
_NEAR = 30.0
# How a picture is moved to be searched for from elsewhere: by this root mean square, or by so many steps at this rate.
_MOVED = 0.1
_SMOOTHING, _SMOOTH_LR = 300, 0.01


@register("attack", "joint")
@dataclass(frozen=True)
class Joint:
    """Minimise |prefix(x) - leak|^2 / |leak|^2 over x in [0, 1] in four stages.

    1. A start: `start=ridge` decodes patches of features by a ridge regression fitted on `pictures` synthetic
       dead-leaves pictures, then takes up to `corrections` learned steps, each of which looks at what its picture would
       have leaked (`priors.Corrections`; auxiliary: synthetic; 0 pictures means as many as hold a million pixels,
       between 24 and 256). `start=grey` needs nothing.
    2. `steps` of Adam at rate `lr` with total variation, its weight falling geometrically from `tv` to a thousandth of
       it, in coordinates in which natural pictures are white (`priors.Spectrum`). A learned start may be better without
       them: two synthetic pictures which it was not fitted on tell, taken both ways to the end. Where they come within
       30 dB by the start alone nobody asks: what is right already must not be smoothed away.
    3. `newton` steps of Levenberg-Marquardt without a prior, each of at most `inner` products with J^T J (few to begin
       with), preconditioned and damped by what the corrections learned.

    4. Up to `again` times, for rows whose relative residual is above `tolerance`: stage 3 from elsewhere, in turns
       from the best picture so far moved at random by a tenth, as natural pictures vary, and from what 300 steps of
       stage 2 make of it (basin hopping, Wales & Doye 1997). The picture that leaks most like the leak is kept. Not
       where a defense's law is known.

    Where the leak has fewer numbers than the picture, many pictures explain it and the prior decides between them: in
    place of 2 to 4 come `open_steps` of Adam at rate `open_lr`, the weight falling from `open_tv` to a fifth of it.
    `open_tv=0` takes rate and weight that serve synthetic pictures best which the start was not fitted on, and stays at
    the start where none improves on it; from a grey start, which uses no pictures, it means 3 at the rate given.

    An attacker who knows a defense's law compares with what it expects. Under a likelihood he seeks the likeliest
    picture (`inversion.Target`), by stage 3 from stage 1's start.

    White-box. A row has converged at a relative residual of at most `tolerance`. A pass is one forward run with or
    without its backward.
    """

    start: Literal["ridge", "grey"] = "ridge"
    pictures: int = 0
    corrections: int = 8
    steps: int = 600
    lr: float = 0.03
    tv: float = 0.3
    newton: int = 30
    inner: int = 120
    again: int = 0
    open_steps: int = 100
    open_lr: float = 0.004
    open_tv: float = 0.0
    tolerance: float = 1e-3

    recovers: ClassVar[Recovers] = "images"
    reads_law: ClassVar[bool] = True
    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {
        "quick": {"corrections": 4, "steps": 60, "lr": 0.02, "tv": 0.1, "newton": 8, "inner": 30, "open_steps": 60},
        "standard": {},
        "full": {"corrections": 16, "steps": 2000, "newton": 60, "inner": 300, "again": 6, "open_steps": 300},
    }

    @property
    def access(self) -> Access:
        """The prefix is needed."""
        return "white-box"

    @property
    def auxiliary(self) -> Auxiliary:
        """Synthetic pictures, where the start is learned."""
        return "synthetic" if self.start == "ridge" else "none"

    @property
    def budget(self) -> int:
        """The corrections, Adam's steps, for each Newton step its products, trials and linearisation; and all again."""
        steps, inner = self.newton_steps
        newton = steps * (inner + 4)
        return self.corrections + self.steps + 1 + newton + self.again * newton + self.again // 2 * (_SMOOTHING + 1)

    def fit(
        self,
        knowledge: Knowledge,
        generator: torch.Generator,
        *,
        workdir: Path | None = None,
        progress: Progress | None = None,
    ) -> Recoverer:
        """Fit the start on synthetic pictures.

        Raises:
            NotRunError: the attacker has no prefix.
        """
        prefix = white_box(knowledge, "joint")
        seed = generator.initial_seed()
        if self.start == "grey":
            grey = None if determined(prefix) else self._descent(prefix, self.open_tv or _GREY_TV, self.open_lr)
            return JointRecoverer(self, prefix, knowledge.image_shape, seed, grey, None, None, knowledge.law)
        device = device_of(prefix)
        decoder, mean = replace(self._corrections, preconditioned=determined(prefix)).fit(
            prefix, knowledge.image_shape, generator, device=device, progress=progress
        )

        def searching(descent: Adam | None) -> JointRecoverer:
            return JointRecoverer(self, prefix, knowledge.image_shape, seed, descent, decoder, mean, knowledge.law)

        descent = self._descent(prefix, self.open_tv, self.open_lr)
        truth = dead_leaves(_HELD_OUT, knowledge.image_shape, generator).to(device)
        if not determined(prefix):
            return searching(self._choose(prefix, decoder, truth) if self.open_tv == 0 else descent)
        direct = searching(None)
        if decoder.psnr >= _NEAR or not self.steps:
            return direct
        smoothed = searching(descent)
        return min((direct, smoothed), key=lambda one: one.error(truth))

    def chores(self, knowledge: Knowledge, rows: int) -> Sequence[Chore]:
        """Return drawing and passes, where the corrections gain to the last and Newton steps take all their products.

        The corrections' regressions are left out: on all but the smallest networks the passes outweigh them.

        Raises:
            NotRunError: the attacker has no prefix.
        """
        prefix = white_box(knowledge, "joint")
        device = device_of(prefix)
        images = torch.full((rows, *knowledge.image_shape), GREY, device=device, requires_grad=True)

        def passed() -> None:
            with torch.enable_grad():
                prefix(images).square().mean().backward()

        open_leak = not determined(prefix)
        steps, inner = self.newton_steps
        newton = steps * (_PRODUCT * inner + 4)
        if self.start == "grey":
            return (Chore(passed, each=(self.open_steps + 1 if open_leak else newton) / rows),)
        searching = self.open_steps + 1 if open_leak else self.steps + 1 + newton
        count = self._corrections.count(knowledge.image_shape)
        fitting = float(count * (self.corrections + 1))
        if open_leak and self.open_tv == 0:
            fitting += _HELD_OUT * _TRIALS * min(self.open_steps, _TRIAL_STEPS)
        if not open_leak and self.steps:
            fitting += _HELD_OUT * (searching + newton)
        learned = Chore(passed, fitting=fitting / rows, each=(self.corrections + searching) / rows)
        return drawing(count, knowledge.image_shape), learned

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        """Return the recoverer that was saved to `path`, its start fitted again from the saved seed."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        seed = saved.pop("seed")
        return Joint(**saved).fit(knowledge, torch.Generator().manual_seed(seed))

    @property
    def newton_steps(self) -> tuple[int, int]:
        """Newton steps, and the products of each."""
        return (2 * self.newton, self.inner // 6) if self.start == "grey" else (self.newton, self.inner)

    @property
    def _corrections(self) -> Corrections:
        return Corrections(self.corrections, self.pictures)

    def _descent(self, prefix: Prefix, open_tv: float, open_lr: float) -> Adam:
        if determined(prefix):
            return Adam(self.steps, self.lr, penalty_start=self.tv, penalty_end=self.tv / 1000)
        return Adam(self.open_steps, open_lr, penalty_start=open_tv, penalty_end=open_tv / 5)

    def _choose(self, prefix: Prefix, decoder: CorrectedDecoder, truth: Tensor) -> Adam | None:
        """Take the rate, then climb the ladder of weights to the descent that serves these pictures best.

        None where the start does.
        """
        with torch.no_grad():
            features = prefix(truth)
        start = decoder(features)
        target = Target.of_clean(features)

        def error(place: int, rate: float) -> float:
            adam = replace(self._descent(prefix, _LADDER[place], rate), steps=min(self.open_steps, _TRIAL_STEPS))
            return log_error(_descended(adam, target.residual(prefix), start, target.z)[0], truth)

        least, rate = min((error(_MIDDLE, rate), rate) for rate in _RATES)
        best = _MIDDLE
        for step in (1, -1):
            while 0 <= best + step < len(_LADDER) and (found := error(best + step, rate)) < least:
                least, best = found, best + step
            if best != _MIDDLE:
                break
        return self._descent(prefix, _LADDER[best], rate) if least < log_error(start, truth) else None


class JointRecoverer(Recoverer):
    """The search on one prefix, its start fitted."""

    def __init__(
        self,
        attack: Joint,
        prefix: Prefix,
        image_shape: tuple[int, int, int],
        seed: int,
        descent: Adam | None,
        decoder: CorrectedDecoder | None,
        mean: Tensor | None,
        law: Law | None = None,
    ) -> None:
        self.attack = attack
        self.prefix = prefix
        self.image_shape = image_shape
        self.seed = seed
        self.descent = descent
        self.decoder = decoder
        self.mean = mean
        self.law = law

    def recover(self, leak: Leak, generators: Generators) -> Recovery:
        """Search for each row's picture."""

        def search(features: Tensor, rows: Sequence[int]) -> tuple[Tensor, Sequence[Status], Tensor]:
            target = Target.of(leak, features, self.law, self.image_shape)
            images, found, passes = self._search(target)
            for turn in range(self.attack.again if self._undefended else 0):
                images, found, spent = self._again(turn, target, images, found, [generators[row] for row in rows])
                passes = passes + spent
            return images, ended(target.relative(found.residual), found.status, self.attack.tolerance), passes

        return recover_rows(leak, leak_shape(self.prefix), self.image_shape, search)

    def under(self, law: Law) -> JointRecoverer:
        """Return the same search by somebody who knows a defense's law: nothing that was fitted depends on it."""
        known = copy(self)
        known.law = law
        return known

    def error(self, truth: Float[Tensor, "b 3 h w"]) -> float:
        """Return the mean log error of what the search makes of these pictures' undefended leaks."""
        with torch.no_grad():
            features = self.prefix(truth)
        return log_error(self._search(Target.of_clean(features))[0], truth)

    def _search(self, target: Target) -> tuple[Tensor, Solution, Tensor]:
        """Return pictures, how the last solver ended, and all passes."""
        residual = target.residual(self.prefix)
        images = self._start(target.guess)
        likeliest = target.prior is not None
        if self.descent is not None and not likeliest:
            images, found = _descended(self.descent, residual, images, target.z)
        else:
            found = Adam(0).solve(residual, images, target.z)
        passes = found.passes + (len(self.decoder.corrections) if self.decoder is not None else 0)
        if self.attack.newton and (likeliest or determined(self.prefix)):
            found = self._newton(target, images)
            images, passes = _images(found.x), passes + found.passes
        return images, found, passes

    def _newton(self, target: Target, images: Float[Tensor, "b 3 h w"]) -> Solution:
        newton = LevenbergMarquardt(*self.attack.newton_steps, preconditioner=self._preconditioner, first=_FIRST)
        residual = target.residual(self.prefix)
        return newton.solve(residual, images, target.z, penalty=target.prior, lower=0.0, upper=1.0)

    @property
    def _undefended(self) -> bool:
        """Whether Newton's steps end the search and the residual alone says how far it came."""
        return bool(self.attack.newton) and self.law is None and determined(self.prefix)

    def _again(
        self, turn: int, target: Target, images: Tensor, found: Solution, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Solution, Tensor]:
        """Return pictures and solution, those that are not there yet searched for from elsewhere, and the passes."""
        sound = torch.tensor([one.kind != "failed" for one in found.status], device=found.residual.device)
        rows = (sound & (target.relative(found.residual) > self.attack.tolerance)).nonzero().flatten()
        spent = torch.zeros_like(found.passes)
        if not len(rows):
            return images, found, spent
        left = target.rows(rows)
        if turn % 2:
            descent = Adam(_SMOOTHING, _SMOOTH_LR, penalty_start=self.attack.tv, penalty_end=self.attack.tv / 1000)
            start, smoothed = _descended(descent, left.residual(self.prefix), images[rows], left.z)
            spent[rows] += smoothed.passes
        else:
            drawn = torch.stack([_varied(images[row], generators[row]) for row in rows.tolist()])
            start = (images[rows] + _MOVED * drawn).clamp(0, 1)
        other = self._newton(left, start)
        spent[rows] += other.passes
        kept = better(replace(found, x=images), other, rows)
        return unknowns(kept), kept, spent

    def prior(self, n: int, generators: Generators) -> Recovery:
        """Return the start that the mean synthetic leak gives: what the attack believes before it sees one."""
        if self.mean is None:
            images = torch.full((n, *self.image_shape), GREY)
        else:
            images = self._start(self.mean).expand(n, -1, -1, -1)
        return Recovery(Images(images), (Status("stopped", "no leak"),) * n, torch.zeros(n).long())

    def save(self, path: Path) -> None:
        """Write the configuration and the seed that the start was fitted by."""
        path.write_text(json.dumps({**asdict(self.attack), "seed": self.seed}), encoding="utf-8")

    @property
    def _preconditioner(self) -> Operator:
        if self.decoder is not None and self.decoder.preconditioner is not None:
            return self.decoder.preconditioner
        return lambda v: Spectrum().covariance(v.view(-1, *self.image_shape)).flatten(1)

    def _start(self, features: Tensor) -> Tensor:
        if self.decoder is None:
            return features.new_full((len(features), *self.image_shape), GREY)
        return self.decoder(features)


def _descended(
    descent: Adam,
    residual: Callable[[Tensor, tuple[Tensor, Tensor]], Tensor],
    start: Tensor,
    z: tuple[Tensor, Tensor],
) -> tuple[Tensor, Solution]:
    """Descend from pictures in the spectrum's coordinates; return pictures, and the solution in coordinates."""
    spectrum = Spectrum()
    found = descent.solve(
        lambda u, target: residual(spectrum.decode(u), target),
        spectrum.encode(start),
        z,
        penalty=lambda u: total_variation(spectrum.decode(u)),
    )
    return spectrum.decode(_images(found.x)), found


def _varied(picture: Float[Tensor, "3 h w"], generator: torch.Generator) -> Float[Tensor, "3 h w"]:
    """Return a picture's size of noise of unit variance that varies as natural pictures do."""
    white = torch.randn(picture.shape, generator=generator)[None]
    noise = Spectrum().decode(white)[0]
    return (noise / noise.square().mean().sqrt()).to(picture)


def _images(x: Tensor | tuple[Tensor, ...]) -> Tensor:
    return x if isinstance(x, Tensor) else x[0]
