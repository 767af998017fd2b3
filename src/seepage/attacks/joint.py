"""The whole prefix inverted at once: a learned start, annealed descent, then Gauss-Newton without a prior."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..priors import Ridge, RidgeDecoder, dead_leaves, total_variation
from ..registry import register
from ..solvers import Adam, LevenbergMarquardt
from ..types import (
    Access,
    Auxiliary,
    Generators,
    Images,
    Knowledge,
    Leak,
    Prefix,
    Progress,
    Recoverer,
    Recovery,
    Status,
)
from .inversion import GREY, determined, ended, leak_shape, recover_rows, scaled, sizes, white_box

# Weights of total variation, and how they are tried where a leak leaves the picture open.
_LADDER = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_MIDDLE = 4
_TRIAL_STEPS = 40
_HELD_OUT = 2
_GREY_TV = 20.0


@register("attack", "joint")
@dataclass(frozen=True)
class Joint:
    """Minimise |prefix(x) - leak|^2 / |leak|^2 over x in [0, 1] in three stages.

    1. A start: `start=ridge` decodes patches of features by a ridge regression fitted on `pictures` synthetic
       dead-leaves pictures (auxiliary: synthetic); `start=grey` needs nothing.
    2. `steps` of Adam at rate `lr` with total variation, its weight falling geometrically from `tv` to `tv_end`.
    3. `newton` steps of Levenberg-Marquardt without a prior, each of at most `inner` products with J^T J.

    Where the leak has fewer numbers than the picture, many pictures explain it and the prior decides between them: in
    place of 2 and 3 come `open_steps` of Adam at rate `open_lr`, the weight falling from `open_tv` to a fifth of it.
    `open_tv=0` takes the weight that serves synthetic pictures best which the start was not fitted on, and stays at the
    start where none improves on it; from a grey start, which uses no pictures, it means 20.

    White-box. A row has converged at a relative residual of at most `tolerance`. A pass is one forward run with or
    without its backward.
    """

    start: Literal["ridge", "grey"] = "ridge"
    pictures: int = 24
    steps: int = 600
    lr: float = 0.05
    tv: float = 0.3
    tv_end: float = 3e-4
    newton: int = 5
    inner: int = 100
    open_steps: int = 100
    open_lr: float = 0.02
    open_tv: float = 0.0
    tolerance: float = 1e-3

    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {
        "quick": {"steps": 60, "lr": 0.03, "tv": 0.1, "tv_end": 1e-3, "newton": 3, "inner": 40, "open_steps": 60},
        "standard": {},
        "full": {"steps": 2000, "newton": 24, "inner": 120, "open_steps": 300},
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
        """Adam's steps, then for each Newton step its products, its trials and its linearisation."""
        return self.steps + 1 + self.newton * (self.inner + 4)

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
            grey = self._descent(prefix, self.open_tv or _GREY_TV)
            return JointRecoverer(self, prefix, knowledge.image_shape, seed, grey, None, None)
        device = next((weight.device for weight in prefix.parameters()), torch.device("cpu"))
        with torch.no_grad():
            decoder, mean = Ridge(self.pictures).fit(
                prefix, knowledge.image_shape, generator, device=device, progress=progress
            )
        weight: float | None = self.open_tv
        if not determined(prefix) and self.open_tv == 0:
            weight = self._choose(prefix, decoder, dead_leaves(_HELD_OUT, knowledge.image_shape, generator).to(device))
        descent = None if weight is None else self._descent(prefix, weight)
        return JointRecoverer(self, prefix, knowledge.image_shape, seed, descent, decoder, mean)

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        """Return the recoverer that was saved to `path`, its start fitted again from the saved seed."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        seed = saved.pop("seed")
        return Joint(**saved).fit(knowledge, torch.Generator().manual_seed(seed))

    def _descent(self, prefix: Prefix, open_tv: float) -> Adam:
        if determined(prefix):
            return Adam(self.steps, self.lr, penalty_start=self.tv, penalty_end=self.tv_end)
        return Adam(self.open_steps, self.open_lr, penalty_start=open_tv, penalty_end=open_tv / 5)

    def _choose(self, prefix: Prefix, decoder: RidgeDecoder, truth: Tensor) -> float | None:
        """Climb the ladder of weights to the one that serves these pictures best; None where the start does."""
        with torch.no_grad():
            features = prefix(truth)
        start = decoder(features)
        z = (features, sizes(features))

        def error(weight: float) -> float:
            adam = replace(self._descent(prefix, weight), steps=min(self.open_steps, _TRIAL_STEPS))
            found = adam.solve(scaled(prefix), start, z, penalty=total_variation, lower=0.0, upper=1.0)
            return _log_error(_images(found.x), truth)

        seen = {place: error(_LADDER[place]) for place in (_MIDDLE, _MIDDLE + 1)}
        step = 1 if seen[_MIDDLE + 1] < seen[_MIDDLE] else -1
        best = min(seen, key=lambda place: seen[place])
        while 0 <= best + step < len(_LADDER):
            seen[best + step] = error(_LADDER[best + step])
            if not seen[best + step] < seen[best]:
                break
            best += step
        return _LADDER[best] if seen[best] < _log_error(start, truth) else None


class JointRecoverer(Recoverer):
    """The search on one prefix, its start fitted."""

    def __init__(
        self,
        attack: Joint,
        prefix: Prefix,
        image_shape: tuple[int, int, int],
        seed: int,
        descent: Adam | None,
        decoder: RidgeDecoder | None,
        mean: Tensor | None,
    ) -> None:
        self.attack = attack
        self.prefix = prefix
        self.image_shape = image_shape
        self.seed = seed
        self.descent = descent
        self.decoder = decoder
        self.mean = mean

    def recover(self, leak: Leak, generators: Generators) -> Recovery:
        """Search for each row's picture."""

        def search(features: Tensor, rows: Sequence[int]) -> tuple[Tensor, Sequence[Status], Tensor]:
            attack, z = self.attack, (features, sizes(features))
            residual = scaled(self.prefix)
            descent = self.descent or Adam(0)
            found = descent.solve(residual, self._start(features), z, penalty=total_variation, lower=0.0, upper=1.0)
            passes = found.passes
            if attack.newton and determined(self.prefix):
                newton = LevenbergMarquardt(attack.newton, attack.inner)
                found = newton.solve(residual, _images(found.x), z, lower=0.0, upper=1.0)
                passes = passes + found.passes
            return _images(found.x), ended(found.residual, found.status, attack.tolerance), passes

        return recover_rows(leak, leak_shape(self.prefix), self.image_shape, search)

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

    def _start(self, features: Tensor) -> Tensor:
        if self.decoder is None:
            return features.new_full((len(features), *self.image_shape), GREY)
        return self.decoder(features)


def _log_error(images: Tensor, truth: Tensor) -> float:
    """The mean log of the mean squared error: minus the mean PSNR, up to a factor."""
    return float((images - truth).square().flatten(1).mean(1).clamp_min(1e-16).log().mean())


def _images(x: Tensor | tuple[Tensor, ...]) -> Tensor:
    return x if isinstance(x, Tensor) else x[0]
