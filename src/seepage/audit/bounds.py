"""What stands beside attacks: how much of a picture the leak tells at all, and the least error that noise leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from .. import bounds, data, seeding
from ..bounds import Estimate, NaturalPrior, Spectrum
from ..defenses import DefenseError, Pipeline, pipeline
from ..schema import Bound, Interval, Spec
from ..types import Noise, SplitModel
from .workbench import Workbench

_QUICK = "quick: from dFIL alone, looser than what standard computes"

T = TypeVar("T", Estimate, Spectrum)


@dataclass(frozen=True)
class Budget:
    """How much is spent on a cut, once: pictures looked at, and probes, steps and draws for each estimate.

    A step is two runs of the prefix, forward and back, a probe and draw. No `steps` of the spectrum: none is computed.
    """

    pictures: int | None
    probes: int
    steps: int
    draws: int
    exact_up_to: int = 0
    spectrum_probes: int = 4
    spectrum_steps: int = 0


BUDGETS = {
    "quick": Budget(pictures=4, probes=8, steps=0, draws=1),
    "standard": Budget(pictures=2, probes=8, steps=12, draws=4, spectrum_steps=24),
    "full": Budget(
        pictures=None,
        probes=16,
        steps=48,
        draws=8,
        exact_up_to=bounds.EXACT_UP_TO,
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
    known = noise_of(spec, defense)
    reason = known if isinstance(known, str) else bounds.unbounded(known)
    budget = BUDGETS[spec.effort]
    if reason and not budget.spectrum_steps:
        return Bound(reason=reason) if spec.defenses else None
    law = known if isinstance(known, Noise) and not reason else None
    try:
        found = _Work(bench, split, spec.seed, budget).bound(indices, law, spec.sends)
    except RuntimeError as error:  # a prefix that autograd cannot go back through twice, or memory
        return Bound(reason=f"its Jacobian cannot be had: {(str(error).splitlines() or [''])[0]}")
    return found.model_copy(update={"reason": reason or ("" if budget.steps else _QUICK)})


def noise_of(spec: Spec, defense: Pipeline | None = None) -> Noise | str:
    """Return the noise that a spec's defenses leave on the features, else a sentence on why none is known."""
    if not spec.defenses:
        if spec.wire != "fp32":
            return f"no noise: rounding to {spec.wire} has no density from which a bound would follow"
        return bounds.unbounded(None)
    try:
        found = (defense or pipeline(spec.defenses)).noise()
    except DefenseError as error:
        return str(error)
    if found is None:
        return f"{spec.defenses[0].partition(':')[0]}, which comes first, leaves no noise on the features"
    return found


class _Work:
    """The computations of one cut, each kept on disk under what determines it."""

    def __init__(self, bench: Workbench, split: SplitModel, seed: int, budget: Budget) -> None:
        self.bench, self.split, self.seed, self.budget = bench, split, seed, budget
        self.prior = NaturalPrior(split.image_shape)

    def bound(self, indices: Sequence[int], noise: Noise | None, sends: int) -> Bound:
        """Return what the budget asks for, at the first pictures of `indices`."""
        pictures = self._pictures(indices)
        spectra = [self._spectrum(picture) for picture in pictures] if self.budget.spectrum_steps else []
        found = _summary(spectra, len(pictures))
        if noise is None:
            return found
        estimate = self._van_trees(noise, sends)
        return found.model_copy(
            update={
                "mse": max(estimate.low, 0.0),
                "noise": f"{noise.kind} of standard deviation {noise.scale:g}",
                "prior": self.prior.words,
                "estimate": Interval(**asdict(estimate)),
                "dfil": _mean([self._dfil(picture, noise, sends) for picture in pictures]),
                "at_pictures": _mean([self._at(picture, noise, sends) for picture in pictures if self.budget.steps]),
            }
        )

    def _pictures(self, indices: Sequence[int]) -> list[Float[Tensor, "1 3 h w"]]:
        found = [
            data.load_batch(self.bench.source, [index], self.split.load).pictures
            for index in indices[: self.budget.pictures]
        ]
        return [pictures.images.to(self.split.device) for pictures in found if pictures is not None]

    def _spectrum(self, picture: Tensor) -> Spectrum:
        budget = self.budget
        most = {"probes": budget.spectrum_probes, "steps": budget.spectrum_steps, "exact_up_to": budget.exact_up_to}
        return self._kept(
            Spectrum,
            {"what": "spectrum", **self._named(picture), **most},
            lambda generator: bounds.spectrum(self.split.prefix, picture, generator, **most),
        )

    def _dfil(self, picture: Tensor, noise: Noise, sends: int) -> Estimate:
        # The noise is a factor alone: what is kept serves every strength of it.
        return self._kept(
            Estimate,
            {"what": "dfil", "probes": self.budget.probes, **self._named(picture)},
            lambda generator: bounds.dfil(
                self.split.prefix, picture, Noise("gaussian", 1.0), generator, probes=self.budget.probes
            ),
        ).times(bounds.information(noise, sends))

    def _at(self, picture: Tensor, noise: Noise, sends: int) -> Estimate:
        spent = {"probes": self.budget.probes, "steps": self.budget.steps}
        return self._kept(
            Estimate,
            {"what": "at-picture", "noise": asdict(noise), "sends": sends, **self._named(picture), **spent},
            lambda generator: bounds.at_picture(
                self.split.prefix, picture, noise, self.prior, generator, sends=sends, **spent
            ),
        )

    def _van_trees(self, noise: Noise, sends: int) -> Estimate:
        spent = {"probes": self.budget.probes, "steps": self.budget.steps, "draws": self.budget.draws}
        like = torch.empty(0, device=self.split.device)
        return self._kept(
            Estimate,
            {"what": "van-trees", "noise": asdict(noise), "sends": sends, "prior": self.prior.words, **spent},
            lambda generator: bounds.van_trees(
                self.split.prefix, noise, self.prior, generator, sends=sends, like=like, **spent
            ),
        )

    def _named(self, picture: Tensor) -> dict[str, object]:
        return {"picture": seeding.row_hashes(picture)[0]}

    def _kept(self, kind: type[T], facts: dict[str, object], compute: Callable[[torch.Generator], T]) -> T:
        split = self.split
        cut = {"victim": split.name, "weights": split.weights_sha256, "layer": split.layer, "seed": self.seed}
        cut |= {"shape": list(split.image_shape), "preprocessing": split.preprocessing}
        parts = [str(facts[name]) for name in ("what", "picture") if name in facts]
        draws = seeding.generator(self.seed, "metric", "bound", split.layer, *parts)
        return bounds.kept(kind, {**cut, **facts}, lambda: compute(draws))


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
        spectrum=tuple(math.fsum(values) / len(spectra) for values in zip(*(s.values for s in spectra), strict=True)),
        rank=_mean([one.rank for one in spectra]),
        energy=_mean([one.energy for one in spectra]),
        condition=math.fsum(one.condition for one in spectra) / len(spectra),
    )


def _mean(found: Sequence[Estimate]) -> Interval | None:
    """The mean, and the means of the intervals' ends, which hold it at least as surely as each holds its own."""
    if not found:
        return None
    value, low, high = (math.fsum(getattr(one, end) for one in found) / len(found) for end in ("value", "low", "high"))
    return Interval(value=value, low=low, high=high)
