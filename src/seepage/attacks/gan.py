"""Search of a generator's latents for the picture that explains a leak."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..inverses import sizes
from ..registry import register
from ..types import (
    Access,
    Auxiliary,
    Generators,
    Images,
    Knowledge,
    Leak,
    NotRunError,
    Prefix,
    Progress,
    Recoverer,
    Recovers,
    Recovery,
    Status,
)
from .chores import Chore
from .generators import FORMS, Generator, load, sha256
from .inversion import GREY, device_of, ended, leak_shape, recover_rows, scaled, white_box

Fit = Callable[[Tensor], Tensor]
"""From pictures "b 3 h w" to how badly each explains its row, "b"."""


@register("attack", "gan")
@dataclass(frozen=True)
class Gan:
    """Search the latents z of a generator G for the picture G(z) whose features are those of the leak.

    `generator=module/...` names a function that returns a network with `latent_shape` or `latent_dim`, from standard
    normal latents to RGB in [0, 1]; a GAN, the decoder of a VAE or any other. Two objectives, each plus `prior` times
    the mean of z^2:

    - `features`: |prefix(G(z)) - leak|^2 / |leak|^2, as GAN-based feature inversion does;
    - `class`: -log p(c | G(z)), after GMI (Zhang et al., CVPR 2020) without its critic: c is the class that the leak
      itself says. The attacker has no suffix, so this runs only where the cut lies at the scores of known classes.

    From each of `starts` latents `steps` of Adam at rate `lr`, which falls along a cosine to a hundredth; the start
    whose end has the lowest objective, the prior left out, is the answer: no truth is looked at. White-box; it sees the
    leak, the prefix and the generator, which was trained on someone's pictures (auxiliary: public) and decides what can
    come back at all. With `features` a row has converged at a relative residual of at most `tolerance`, with `class` at
    a probability that near to one. A step is one pass, judging a start one more.
    """

    generator: str = ""
    objective: Literal["features", "class"] = "features"
    starts: int = 4
    steps: int = 200
    lr: float = 0.05
    prior: float = 0.1
    tolerance: float = 1e-3

    recovers: ClassVar[Recovers] = "images"
    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {
        "quick": {"starts": 2, "steps": 60},
        "standard": {},
        "full": {"starts": 8, "steps": 1000},
    }

    def __post_init__(self) -> None:
        if self.starts < 1:
            raise ValueError(f"starts is at least 1, got {self.starts}")

    @property
    def access(self) -> Access:
        """The prefix is needed."""
        return "white-box"

    @property
    def auxiliary(self) -> Auxiliary:
        """The generator knows pictures."""
        return "public"

    @property
    def budget(self) -> int:
        """One pass a step, and one to judge each start's end."""
        return self.starts * (self.steps + 1)

    def fit(
        self,
        knowledge: Knowledge,
        generator: torch.Generator,
        *,
        workdir: Path | None = None,
        progress: Progress | None = None,
    ) -> Recoverer:
        """Load the generator.

        Raises:
            NotRunError: there is no prefix, no generator is named, or `class` meets a leak that is no class scores.
            GeneratorError: what is named is no generator.
        """
        return GanRecoverer(self, *self._parts(knowledge))

    def chores(self, knowledge: Knowledge, rows: int) -> Sequence[Chore]:
        """Return one step: generator and prefix there and back, for all rows.

        Raises:
            NotRunError, GeneratorError: as `fit` does.
        """
        prefix, drawer = self._parts(knowledge)
        drawing = torch.Generator().manual_seed(0)
        z = torch.cat([drawer.draw(drawing) for _ in range(rows)]).requires_grad_()

        def step() -> None:
            with torch.enable_grad():
                torch.autograd.grad(prefix(drawer(z)).square().sum(), z)

        return (Chore(step, each=self.budget / rows),)

    def equipment_sha256(self) -> str | None:
        """Return the hash of the generator's weights and of the file that makes it."""
        return sha256(self.generator) if self.generator else None

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        """Return the recoverer that was saved to `path`; its generator is loaded anew."""
        saved = Gan(**json.loads(path.read_text(encoding="utf-8")))
        return saved.fit(knowledge, torch.Generator())

    def _parts(self, knowledge: Knowledge) -> tuple[Prefix, Generator]:
        """Return prefix and generator, or refuse what cannot be searched."""
        prefix = white_box(knowledge, "gan")
        if not self.generator:
            raise NotRunError(f"gan searches a generator's latents: name one with gan:generator={FORMS}")
        if self.objective == "class":
            scores = None if knowledge.classes is None else (len(knowledge.classes),)
            if leak_shape(prefix) != scores:
                known = "classes are not known" if scores is None else f"{scores[0]} classes are known"
                raise NotRunError(
                    "gan with objective=class needs a classifier, and the attacker has the prefix alone: it runs where "
                    f"the cut lies at the class scores; here {known} and a row of the leak is {leak_shape(prefix)}"
                )
        device = device_of(prefix)
        return prefix, load(self.generator, knowledge.image_shape, device)


class GanRecoverer(Recoverer):
    """The search on one prefix with one generator."""

    def __init__(self, attack: Gan, prefix: Prefix, drawer: Generator) -> None:
        self.attack = attack
        self.prefix = prefix
        self.drawer = drawer

    def recover(self, leak: Leak, generators: Generators) -> Recovery:
        """Search for each row's latent, from starts of its own."""

        def search(features: Tensor, rows: Sequence[int]) -> tuple[Tensor, Sequence[Status], Tensor]:
            misfit = self._features(features) if self.attack.objective == "features" else self._class(features)
            best = torch.full((len(rows),), math.inf, device=features.device)
            images = torch.full((len(rows), *self.drawer.image_shape), GREY, device=features.device)
            for _ in range(self.attack.starts):
                found = self._descend(torch.cat([self.drawer.draw(generators[row]) for row in rows]), misfit)
                with torch.no_grad():
                    value = misfit(found)
                nearer = value < best  # False for NaN
                best = torch.where(nearer, value, best)
                images[nearer] = found[nearer]
            return images, self._ended(best), torch.full((len(rows),), self.attack.budget)

        return recover_rows(leak, leak_shape(self.prefix), self.drawer.image_shape, search)

    @torch.no_grad()
    def prior(self, n: int, generators: Generators) -> Recovery:
        """Return what the generator draws from each row's first latent."""
        images = torch.cat([self.drawer(self.drawer.draw(generator)) for generator in generators[:n]])
        return Recovery(Images(images), (Status("stopped", "no leak"),) * n, torch.zeros(n).long())

    def save(self, path: Path) -> None:
        """Write the configuration, the generator's name in it."""
        path.write_text(json.dumps(asdict(self.attack)), encoding="utf-8")

    def _features(self, target: Float[Tensor, "b ..."]) -> Fit:
        residual, size = scaled(lambda x, _: self.prefix(x)), sizes(target)
        return lambda images: residual(images, (target, size)).square().sum(1)

    def _class(self, scores: Float[Tensor, "b k"]) -> Fit:
        wanted: Int[Tensor, "b"] = scores.argmax(1)
        return lambda images: torch.nn.functional.cross_entropy(self.prefix(images), wanted, reduction="none")

    def _descend(self, start: Float[Tensor, "b ..."], misfit: Fit) -> Float[Tensor, "b 3 h w"]:
        """Return the pictures that Adam ends at; it goes number by number, so rows do not touch each other."""
        z = start.clone().requires_grad_()
        adam = torch.optim.Adam([z], lr=self.attack.lr)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(self.attack.steps, 1), self.attack.lr / 100)
        for _ in range(self.attack.steps):
            with torch.enable_grad():
                loss = misfit(self.drawer(z)) + self.attack.prior * z.square().flatten(1).mean(1)
                (z.grad,) = torch.autograd.grad(loss.sum(), z)
            adam.step()
            rate.step()
        with torch.no_grad():
            return self.drawer(z)

    def _ended(self, best: Float[Tensor, "b"]) -> list[Status]:
        failed = Status("failed", f"from none of {self.attack.starts} starts is the objective finite")
        solved = [Status("stopped") if math.isfinite(value) else failed for value in best.tolist()]
        if self.attack.objective == "features":
            return ended(best.sqrt(), solved, self.attack.tolerance)
        found = []
        for one, probability in zip(solved, (-best).exp().tolist(), strict=True):
            sure = probability >= 1 - self.attack.tolerance
            said = Status("converged" if sure else "stopped", f"probability {probability:.4f} of the class")
            found.append(one if one.kind == "failed" else said)
        return found
