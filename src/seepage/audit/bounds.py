"""What stands beside attacks: how much of a picture the leak tells at all, and the least error that noise leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from .. import bounds, data, seeding
from ..bounds import Estimate, NaturalPrior, Spectrum
from ..defenses import DefenseError, Pipeline, pipeline
from ..schema import Bound, Interval, Spec
from ..types import Leak, LeakHeader, Noise, SplitModel
from .workbench import Workbench

_QUICK = "quick: from dFIL alone, looser than what standard computes"

T = TypeVar("T", Estimate, Spectrum)


@dataclass(frozen=True)
class Budget:
    """How much is spent on a cut, once: pictures looked at, and probes, steps and draws for each estimate.

    A step is two runs of the prefix, forward and back, a probe and draw. No `steps` of the spectrum: none is computed.
    Pictures of at most `exact_up_to` numbers have their spectra whole, and `SMALLER` times the probes of what follows.
    """

    pictures: int | None
    probes: int
    steps: int
    draws: int
    exact_up_to: int = bounds.EXACT_UP_TO
    spectrum_probes: int = 4
    spectrum_steps: int = 0


SMALLER = 8

BUDGETS = {
    "quick": Budget(pictures=4, probes=8, steps=0, draws=1),
    "standard": Budget(pictures=2, probes=8, steps=12, draws=4, spectrum_steps=24),
    "full": Budget(
        pictures=None,
        probes=16,
        steps=48,
        draws=8,
        spectrum_probes=8,
        spectrum_steps=48,
    ),
}


def bound(
    bench: Workbench, split: SplitModel, spec: Spec, indices: Sequence[int], defense: Pipeline | None = None
) -> Bound | None:
    """Return the bound of a cell, from the pictures at some of `indices`; None where nothing is asked for.

    `defense` is the spec's, fitted; without it noise that is relative to what it is fitted on is not known. `quick`
    computes dFIL alone, and nothing where there is no noise.
    """
    if not indices:
        return None
    defense = defense or pipeline(spec.defenses)
    law, reason = _law(spec, defense)
    budget = BUDGETS[spec.effort]
    if reason and not budget.spectrum_steps:
        return Bound(reason=reason) if spec.defenses else None
    try:
        found = _Work(bench, split, spec.seed, budget, None if law is None else defense).bound(indices, law, spec.sends)
    except RuntimeError as error:  # a prefix that autograd cannot go back through twice, or memory
        return Bound(reason=f"its Jacobian cannot be had: {(str(error).splitlines() or [''])[0]}")
    return found.model_copy(update={"reason": reason or ("" if budget.steps else _QUICK)})


def runs(
    bench: Workbench, split: SplitModel, spec: Spec, indices: Sequence[int], defense: Pipeline | None, done: set[Path]
) -> float:
    """Return about how often `bound` runs the prefix forward and back for a picture, what is kept on disk left out.

    So is what is kept at the places in `done`, to which those of this cell are added.
    """
    defense = defense or pipeline(spec.defenses)
    law, reason = _law(spec, defense)
    budget = BUDGETS[spec.effort]
    if reason and not budget.spectrum_steps:
        return 0.0
    work = _Work(bench, split, spec.seed, budget, None if law is None else defense)
    parts = {part.place: part.runs for part in work.parts(indices, law, spec.sends)}
    fresh = [place for place in parts if place not in done and not place.exists()]
    done.update(fresh)
    return math.fsum(parts[place] for place in fresh)


def _law(spec: Spec, defense: Pipeline) -> tuple[Noise | None, str]:
    """Return the noise that sets a bound, else None and the reason why none does."""
    known = noise_of(spec, defense)
    reason = known if isinstance(known, str) else bounds.unbounded(known)
    return (known if isinstance(known, Noise) and not reason else None), reason


def noise_of(spec: Spec, stages: Pipeline) -> Noise | str:
    """Return the noise that a spec's defenses leave on the features, else a sentence on why none is known."""
    if not spec.defenses:
        if spec.wire != "fp32":
            return f"no noise: rounding to {spec.wire} has no density from which a bound would follow"
        return bounds.unbounded(None)
    try:
        found = stages.noise()
        first = len(stages.continuous)
    except DefenseError as error:
        return str(error)
    if found is None and first == len(spec.defenses):
        return "clipping alone draws no noise: nothing keeps an attacker from what the features determine"
    if found is None:
        name, place = spec.defenses[first].partition(":")[0], "comes after clipping" if first else "comes first"
        return f"{name}, which {place}, leaves no noise on the features of which a bound is known"
    return found


@dataclass(frozen=True)
class _Part(Generic[T]):
    """One computation: what determines it, how to do it, and about how many runs forward and back it takes."""

    kind: type[T]
    facts: Mapping[str, object]
    compute: Callable[[], T]
    runs: float

    def value(self) -> T:
        """Return what is kept of it, else compute it."""
        return bounds.kept(self.kind, self.facts, self.compute)

    @property
    def place(self) -> Path:
        """Where it is kept."""
        return bounds.place(self.kind, self.facts)


class _Work:
    """The computations of one cut, each kept on disk under what determines it.

    Noise is what the defense adds to `sent`: the features, mapped by what comes before it.
    """

    def __init__(
        self, bench: Workbench, split: SplitModel, seed: int, budget: Budget, defense: Pipeline | None = None
    ) -> None:
        small = bool(budget.spectrum_steps) and math.prod(split.image_shape) <= budget.exact_up_to
        budget = replace(budget, probes=SMALLER * budget.probes) if small else budget
        self.bench, self.split, self.seed, self.budget, self.defense = bench, split, seed, budget, defense
        self.prior = NaturalPrior(split.image_shape)
        self.continuous = {} if defense is None or not defense.continuous else {"continuous": list(defense.continuous)}

    def sent(self, images: Tensor) -> Tensor:
        """Map pictures to what noise is added to."""
        features: Tensor = self.split.prefix(images)
        if self.defense is None or not self.continuous:
            return features
        return self.defense.mapped(Leak(features, LeakHeader("", "", "", ""))).features

    def bound(self, indices: Sequence[int], noise: Noise | None, sends: int) -> Bound:
        """Return what the budget asks for, at the first pictures of `indices`."""
        pictures = self._pictures(indices)
        spectra = [part.value() for part in self._spectra(pictures)]
        found = _summary(spectra, len(pictures))
        if noise is None:
            return found
        told = [one.energy.times(1 / one.inputs) for one in spectra] if self._whole else self._probed(pictures)
        estimate = self._van_trees(noise, sends).value()
        known = bounds.information(noise, sends)
        return found.model_copy(
            update={
                "mse": max(estimate.low, 0.0),
                "noise": f"{noise.kind} of standard deviation {noise.scale:g}",
                "prior": self.prior.words,
                "estimate": Interval(**asdict(estimate)),
                "dfil": _mean([one.times(known) for one in told]),
                "at_pictures": _mean([part.value() for part in self._at(pictures, noise, sends)]),
            }
        )

    def parts(self, indices: Sequence[int], noise: Noise | None, sends: int) -> list[_Part[Spectrum] | _Part[Estimate]]:
        """Return the computations that `bound` makes of the same."""
        pictures = self._pictures(indices)
        found: list[_Part[Spectrum] | _Part[Estimate]] = [*self._spectra(pictures)]
        if noise is not None:
            found += [self._van_trees(noise, sends), *self._at(pictures, noise, sends)]
            found += [] if self._whole else self._dfils(pictures)
        return found

    @property
    def _whole(self) -> bool:
        """Whether spectra are exact and of what noise is added to: they hold dFIL."""
        budget = self.budget
        small = bool(budget.spectrum_steps) and math.prod(self.split.image_shape) <= budget.exact_up_to
        return small and not self.continuous

    def _pictures(self, indices: Sequence[int]) -> list[Float[Tensor, "1 3 h w"]]:
        found = [
            data.load_batch(self.bench.source, [index], self.split.load).pictures
            for index in indices[: self.budget.pictures]
        ]
        return [pictures.images.to(self.split.device) for pictures in found if pictures is not None]

    def _spectra(self, pictures: Sequence[Tensor]) -> list[_Part[Spectrum]]:
        budget = self.budget
        if not budget.spectrum_steps:
            return []
        most = {"probes": budget.spectrum_probes, "steps": budget.spectrum_steps, "exact_up_to": budget.exact_up_to}
        inputs, outputs = math.prod(self.split.image_shape), math.prod(self.bench.cut(self.split.layer).shape)
        narrow = min(inputs, outputs)
        runs = budget.spectrum_probes * (1.5 + min(budget.spectrum_steps, narrow))
        # Whole, it is the same whatever an estimate would have spent.
        spent = {"exact": True} if inputs <= budget.exact_up_to else most
        return [
            self._part(
                Spectrum,
                {"what": "spectrum", **_named(picture), **spent},
                lambda draws, picture=picture: bounds.spectrum(self.split.prefix, picture, draws, **most),  # type: ignore[misc]
                2 * narrow if inputs <= budget.exact_up_to else runs,
            )
            for picture in pictures
        ]

    def _probed(self, pictures: Sequence[Tensor]) -> list[Estimate]:
        return [part.value() for part in self._dfils(pictures)]

    def _dfils(self, pictures: Sequence[Tensor]) -> list[_Part[Estimate]]:
        # The noise is a factor alone: what is kept serves every strength of it.
        probes, unit = self.budget.probes, Noise("gaussian", 1.0)
        return [
            self._part(
                Estimate,
                {"what": "dfil", "probes": probes, **_named(picture), **self.continuous},
                lambda draws, picture=picture: bounds.dfil(self.sent, picture, unit, draws, probes=probes),  # type: ignore[misc]
                1.5 * probes,
            )
            for picture in pictures
        ]

    def _at(self, pictures: Sequence[Tensor], noise: Noise, sends: int) -> list[_Part[Estimate]]:
        spent = {"probes": self.budget.probes, "steps": self.budget.steps}
        asked = {"noise": asdict(noise), "sends": sends, **self.continuous}
        return [
            self._part(
                Estimate,
                {"what": "at-picture", **asked, **_named(picture), **spent},
                lambda draws, picture=picture: bounds.at_picture(  # type: ignore[misc]
                    self.sent, picture, noise, self.prior, draws, sends=sends, **spent
                ),
                self.budget.probes * (3 + self.budget.steps),
            )
            for picture in (pictures if self.budget.steps else ())
        ]

    def _van_trees(self, noise: Noise, sends: int) -> _Part[Estimate]:
        budget = self.budget
        spent = {"probes": budget.probes, "steps": budget.steps, "draws": budget.draws}
        asked = {"noise": asdict(noise), "sends": sends, **self.continuous}
        like = torch.empty(0, device=self.split.device)
        return self._part(
            Estimate,
            {"what": "van-trees", **asked, "prior": self.prior.words, **spent},
            lambda draws: bounds.van_trees(self.sent, noise, self.prior, draws, sends=sends, like=like, **spent),
            budget.probes * (budget.draws * (2 + budget.steps) + 2),
        )

    def _part(
        self, kind: type[T], facts: dict[str, object], compute: Callable[[torch.Generator], T], runs: float
    ) -> _Part[T]:
        split = self.split
        cut = {"victim": split.name, "weights": split.weights_sha256, "layer": split.layer, "seed": self.seed}
        cut |= {"shape": list(split.image_shape), "preprocessing": split.preprocessing}
        names = [str(facts[name]) for name in ("what", "picture") if name in facts]
        draws = seeding.generator(self.seed, "metric", "bound", split.layer, *names)
        return _Part(kind, {**cut, **facts}, lambda: compute(draws), runs)


def _named(picture: Tensor) -> dict[str, object]:
    return {"picture": seeding.row_hashes(picture)[0]}


def _summary(spectra: Sequence[Spectrum], pictures: int) -> Bound:
    """The means of spectra over pictures, which are all of one shape and so all exact or none."""
    if not spectra:
        return Bound(pictures=pictures)
    return Bound(
        pictures=pictures,
        inputs=spectra[0].inputs,
        outputs=spectra[0].outputs,
        exact=spectra[0].exact,
        levels=bounds.LEVELS,
        spectrum=_means(one.values for one in spectra),
        spectrum_low=_means(one.low for one in spectra),
        spectrum_high=_means(one.high for one in spectra),
        rank=_mean([one.rank for one in spectra]),
        energy=_mean([one.energy for one in spectra]),
        condition=math.fsum(one.condition for one in spectra) / len(spectra),
    )


def _means(rows: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(math.fsum(values) / len(values) for values in zip(*rows, strict=True))


def _mean(found: Sequence[Estimate]) -> Interval | None:
    """The mean, and the means of the intervals' ends, which hold it at least as surely as each holds its own."""
    if not found:
        return None
    value, low, high = (math.fsum(getattr(one, end) for one in found) / len(found) for end in ("value", "low", "high"))
    return Interval(value=value, low=low, high=high)
