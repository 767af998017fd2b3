"""The whole prefix inverted at once: a learned start, annealed descent, then Gauss-Newton without a prior."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..priors import Ridge, RidgeDecoder, total_variation
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


@register("attack", "joint")
@dataclass(frozen=True)
class Joint:
    """Minimise |prefix(x) - leak|^2 / |leak|^2 over x in [0, 1] in three stages.

    1. A start: `start=ridge` decodes patches of features by a ridge regression fitted on `pictures` synthetic
       dead-leaves pictures (auxiliary: synthetic); `start=grey` needs nothing.
    2. `steps` of Adam at rate `lr` with total variation, its weight falling geometrically from `tv` to `tv_end`. Where
       the leak has fewer numbers than the picture, many pictures explain it, and the weight stays at `open_tv`.
    3. `newton` steps of Levenberg-Marquardt without a prior, each of at most `inner` products with J^T J, where the
       leak has at least as many numbers as the picture.

    White-box. A row has converged at a relative residual of at most `tolerance`. A pass is one forward run with or
    without its backward.
    """

    start: Literal["ridge", "grey"] = "ridge"
    pictures: int = 24
    steps: int = 300
    lr: float = 0.02
    tv: float = 3e-3
    tv_end: float = 1e-6
    open_tv: float = 20.0
    newton: int = 8
    inner: int = 60
    tolerance: float = 1e-3

    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {
        "quick": {"steps": 60, "newton": 3, "inner": 40},
        "standard": {},
        "full": {"steps": 1000, "newton": 24, "inner": 120},
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
            return JointRecoverer(self, prefix, knowledge.image_shape, seed, None, None)
        device = next((weight.device for weight in prefix.parameters()), torch.device("cpu"))
        with torch.no_grad():
            decoder, mean = Ridge(self.pictures).fit(
                prefix, knowledge.image_shape, generator, device=device, progress=progress
            )
        return JointRecoverer(self, prefix, knowledge.image_shape, seed, decoder, mean)

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        """Return the recoverer that was saved to `path`, its start fitted again from the saved seed."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        seed = saved.pop("seed")
        return Joint(**saved).fit(knowledge, torch.Generator().manual_seed(seed))


class JointRecoverer(Recoverer):
    """The search on one prefix, its start fitted."""

    def __init__(
        self,
        attack: Joint,
        prefix: Prefix,
        image_shape: tuple[int, int, int],
        seed: int,
        decoder: RidgeDecoder | None,
        mean: Tensor | None,
    ) -> None:
        self.attack = attack
        self.prefix = prefix
        self.image_shape = image_shape
        self.seed = seed
        self.decoder = decoder
        self.mean = mean

    def recover(self, leak: Leak, generators: Generators) -> Recovery:
        """Search for each row's picture."""

        def search(features: Tensor, rows: Sequence[int]) -> tuple[Tensor, Sequence[Status], Tensor]:
            attack, z = self.attack, (features, sizes(features))
            residual = scaled(self.prefix)
            first, last = (attack.tv, attack.tv_end) if determined(self.prefix) else (attack.open_tv, attack.open_tv)
            adam = Adam(attack.steps, attack.lr, penalty_start=first, penalty_end=last)
            found = adam.solve(residual, self._start(features), z, penalty=total_variation, lower=0.0, upper=1.0)
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


def _images(x: Tensor | tuple[Tensor, ...]) -> Tensor:
    return x if isinstance(x, Tensor) else x[0]
