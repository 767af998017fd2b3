"""Regularised maximum likelihood: gradient descent on the picture, with total variation and a norm prior."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..priors import total_variation
from ..registry import register
from ..solvers import Adam
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
from .inversion import GREY, Target, determined, ended, leak_shape, recover_rows, white_box


@register("attack", "rmle")
@dataclass(frozen=True)
class RMLE:
    """Descend on |prefix(x) - leak|^2 / |leak|^2 + tv TV(x) + norm mean((2x - 1)^6), x in [0, 1], from grey.

    Mahendran & Vedaldi (CVPR 2015), He et al. (ACSAC 2019). Adam with a rate `lr` that decays along a cosine; the
    weight of both priors falls geometrically to `fade` of itself. Where the leak has fewer numbers than the picture,
    many pictures explain it, and `open_tv` and `open_fade` take their place. The data term is relative to the leak's
    energy, so one setting serves every layer. White-box; no auxiliary pictures. A row has converged at a relative
    residual of at most `tolerance`. A step is one pass. An attacker who knows a defense's law compares with what it
    expects, and under a likelihood searches for the likeliest picture (`inversion.Target`) with no prior of its own.
    """

    steps: int = 800
    lr: float = 0.05
    tv: float = 1.0
    fade: float = 1e-3
    open_tv: float = 30.0
    open_fade: float = 1e-2
    norm: float = 1e-4
    noise: float = 0.01
    tolerance: float = 1e-3

    recovers: ClassVar[Recovers] = "images"
    reads_law: ClassVar[bool] = True
    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {
        "quick": {"steps": 80},
        "standard": {},
        "full": {"steps": 4000},
    }

    @property
    def access(self) -> Access:
        """The prefix is needed."""
        return "white-box"

    @property
    def auxiliary(self) -> Auxiliary:
        """Nothing is needed beside the leak."""
        return "none"

    @property
    def budget(self) -> int:
        """One pass a step, and one to judge the last."""
        return self.steps + 1

    def fit(
        self,
        knowledge: Knowledge,
        generator: torch.Generator,
        *,
        workdir: Path | None = None,
        progress: Progress | None = None,
    ) -> Recoverer:
        """Return the recoverer; there is nothing to learn.

        Raises:
            NotRunError: the attacker has no prefix.
        """
        return RMLERecoverer(self, white_box(knowledge, "rmle"), knowledge.image_shape, knowledge.law)

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        """Return the recoverer that was saved to `path`."""
        saved = RMLE(**json.loads(path.read_text(encoding="utf-8")))
        return RMLERecoverer(saved, white_box(knowledge, "rmle"), knowledge.image_shape, knowledge.law)


class RMLERecoverer(Recoverer):
    """The search on one prefix."""

    def __init__(self, attack: RMLE, prefix: Prefix, image_shape: tuple[int, int, int], law: Law | None = None) -> None:
        self.attack = attack
        self.prefix = prefix
        self.image_shape = image_shape
        self.law = law

    def recover(self, leak: Leak, generators: Generators) -> Recovery:
        """Search for each row's picture, from grey and a little noise of its own."""

        def search(features: Tensor, rows: Sequence[int]) -> tuple[Tensor, Sequence[Status], Tensor]:
            start = self._start([generators[row] for row in rows]).to(features)
            target = Target.of(leak, features, self.law, self.image_shape)
            adam = self._adam() if target.prior is None else Adam(self.attack.steps, self.attack.lr)
            found = adam.solve(
                target.residual(self.prefix),
                start,
                target.z,
                penalty=target.prior or self._prior,
                lower=0.0,
                upper=1.0,
            )
            images = found.x if isinstance(found.x, Tensor) else found.x[0]
            return images, ended(target.relative(found.residual), found.status, self.attack.tolerance), found.passes

        return recover_rows(leak, leak_shape(self.prefix), self.image_shape, search)

    def prior(self, n: int, generators: Generators) -> Recovery:
        """Descend on the priors alone, from the same start."""
        start = self._start(generators[:n])
        # A residual that is the same everywhere: none would count as solved before the first step.
        found = self._adam().solve(lambda x, z: torch.ones(len(x), 1), start, start, penalty=self._prior)
        images = found.x if isinstance(found.x, Tensor) else found.x[0]
        return Recovery(Images(images.clamp(0, 1)), (Status("stopped", "no leak"),) * n, torch.zeros(n).long())

    def save(self, path: Path) -> None:
        """Write the configuration."""
        path.write_text(json.dumps(asdict(self.attack)), encoding="utf-8")

    def _adam(self) -> Adam:
        attack = self.attack
        fade = attack.fade if determined(self.prefix) else attack.open_fade
        return Adam(attack.steps, attack.lr, penalty_start=1.0, penalty_end=fade)

    def _start(self, generators: Generators) -> Tensor:
        noise = [torch.randn(self.image_shape, generator=generator) for generator in generators]
        return (GREY + self.attack.noise * torch.stack(noise)).clamp(0, 1)

    def _prior(self, x: Tensor) -> Tensor:
        spread = (2 * x - 1).pow(6).flatten(1).mean(1)
        tv = self.attack.tv if determined(self.prefix) else self.attack.open_tv
        return tv * total_variation(x) + self.attack.norm * spread
