"""Divide and conquer: one small inverse network a segment, taught apart and then together, applied backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..inverses import sizes
from ..priors import dead_leaves, total_variation
from ..registry import register
from ..solvers import Adam
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
    Recovers,
    Recovery,
    Status,
)
from .backward import Backward
from .chores import Chore
from .inversion import determined, device_of, ended, leak_shape, recover_rows, scaled, white_box
from .learning import Course, Lesson, Pairs, Source, drawing, kept_back, public, rows_to_select_on, synthetic
from .networks import SavedAttackError, drawn, read, write
from .parameters import within

Loss = Callable[[Lesson], Tensor]

_APART = 0.6
_FADE, _OPEN_FADE = 1e-3, 0.2


@register("attack", "divide")
@dataclass(frozen=True)
class Divide:
    """Train an inverse network g_i for each segment f_i, then all of them as one, and apply them from the leak back.

    Dong, Yin, Alvarez, Kautz & Molchanov, "Deep Neural Networks are Surprisingly Reversible: A Baseline for Zero-Shot
    Inversion" (arXiv 2107.06304): divide, conquer, and re-sync the parts by cycle consistency. What the networks and
    losses look like is our reading, not theirs. With a_0 = x and a_i = f_i(a_(i-1)), means over numbers:

    1. apart, for 60 % of `steps`: the sum over i of |g_i(a_i) - a_(i-1)|^2, in units of each channel's deviation;
    2. together, for the rest: |x' - x|^2 in the same units, plus `cycle` times |prefix(x') - a_n|^2 / |a_n|^2, where
       x' = g_1(...g_n(a_n)).

    Pictures are `pictures` dead leaves with `train=synthetic` (auxiliary: synthetic), or the attacker's own with
    `train=public` (auxiliary: public). A step of Adam takes `batch` of them, its rate falling from `lr` along a cosine
    in either part; the weights kept are those that did best on held-out pictures. With `refine` above zero, so many
    steps of Adam on the picture follow, on the relative residual plus total variation with a weight that falls from
    `tv` to a thousandth, or from `open_tv` to a fifth where the leak has fewer numbers than the picture.

    White-box: it sees the prefix by its segments, and one leak. A row has converged at a relative residual of at most
    `tolerance`. A step of refinement is one pass, judging the answer one more; the passes of training are not counted.
    """

    train: Source = "synthetic"
    pictures: int = within(240, least=2)
    steps: int = within(600, least=2)
    batch: int = within(8, least=1)
    lr: float = 3e-3
    width: int = within(48, least=1)
    cycle: float = 0.3
    refine: int = 100
    tv: float = 0.1
    open_tv: float = 3.0
    tolerance: float = 1e-3

    recovers: ClassVar[Recovers] = "images"
    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {
        "quick": {"pictures": 96, "steps": 80, "refine": 40},
        "standard": {},
        "full": {"pictures": 960, "steps": 4000, "refine": 400},
    }

    @property
    def access(self) -> Access:
        """The prefix's segments are needed."""
        return "white-box"

    @property
    def auxiliary(self) -> Auxiliary:
        """Whatever it is trained on."""
        return self.train

    @property
    def budget(self) -> int:
        """One pass a step of refinement, and one to judge the answer."""
        return self.refine + 1

    def fit(
        self,
        knowledge: Knowledge,
        generator: torch.Generator,
        *,
        workdir: Path | None = None,
        progress: Progress | None = None,
    ) -> Recoverer:
        """Train the inverse networks.

        Raises:
            NotRunError: the attacker has no prefix, or none of the pictures that it is to learn from.
            TrainingError: nothing could be learned.
        """
        prefix = white_box(knowledge, "divide")
        device = device_of(prefix)
        lessons, held = self._lessons(knowledge, generator)
        inverse = self._network(prefix, generator)
        inverse.measure(_passed(prefix, lesson[-1].to(device)) for lesson in lessons)

        apart, together = self._losses(prefix, inverse)
        tell = progress or (lambda done, what: None)
        first, then = self._courses()
        first.teach(inverse, apart, lessons, held, generator, lambda done: tell(_APART * done, "segments apart"))
        then.teach(
            inverse, together, lessons, held, generator, lambda done: tell(_APART + (1 - _APART) * done, "all segments")
        )
        return DivideRecoverer(self, prefix, inverse)

    def chores(self, knowledge: Knowledge, rows: int) -> Sequence[Chore]:
        """Return drawing, both parts of the training, walking back and refining.

        Raises:
            NotRunError: the attacker has no prefix.
        """
        prefix = white_box(knowledge, "divide")
        device, generator = device_of(prefix), torch.Generator().manual_seed(0)
        inverse = self._network(prefix, generator)
        images = dead_leaves(1, knowledge.image_shape, generator).to(device)
        inverse.measure([_passed(prefix, images)])
        lesson = (images.expand(self.batch, -1, -1, -1),)
        held = kept_back(self.pictures) if self.train == "synthetic" else rows_to_select_on(knowledge)
        training = [
            course.rehearsal(inverse, loss, lesson, held)
            for course, loss in zip(self._courses(), self._losses(prefix, inverse), strict=True)
        ]
        given = [drawing(self.pictures, knowledge.image_shape)] if self.train == "synthetic" else []
        given.append(Chore(lambda: _passed(prefix, images), fitting=self.pictures))
        together = images.expand(rows, -1, -1, -1).clone().requires_grad_()

        @torch.no_grad()
        def walk() -> Tensor:
            walked: Tensor = inverse(_passed(prefix, images)[-1])
            return walked

        def refine() -> None:
            with torch.enable_grad():
                (prefix(together).square().sum() + total_variation(together).sum()).backward()

        return *given, *training, Chore(walk, each=1), Chore(refine, each=self.budget / rows)

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        """Return the recoverer that was saved to `path`.

        Raises:
            SavedAttackError: the file holds no such attack, or one on another prefix.
        """
        prefix = white_box(knowledge, "divide")
        tensors, said = read(path)
        try:
            attack = Divide(**said["divide"])
            inverse = attack._network(prefix, torch.Generator())
            inverse.load_state_dict(tensors)
        except (KeyError, TypeError, RuntimeError) as error:
            raise SavedAttackError(f"{path} holds no inverse of this prefix: {str(error).splitlines()[0]}") from error
        return DivideRecoverer(attack, prefix, inverse)

    def _courses(self) -> tuple[Course, Course]:
        first = int(_APART * self.steps)
        return Course(first, self.lr, self.batch), Course(self.steps - first, self.lr / 3, self.batch)

    def _losses(self, prefix: Prefix, inverse: Backward) -> tuple[Loss, Loss]:
        """Return what the segments are taught by apart, and together."""
        device = device_of(prefix)

        def apart(lesson: Lesson) -> Tensor:
            return inverse.apart(_passed(prefix, lesson[-1].to(device)))

        def together(lesson: Lesson) -> Tensor:
            truth = lesson[-1].to(device)
            with torch.no_grad():
                leak = prefix(truth)
            pictures = inverse(leak)
            off = (pictures - truth) / inverse.place(0).spread
            again = scaled(lambda x, _: prefix(x))(pictures, (leak, sizes(leak)))
            loss: Tensor = off.square().mean() + self.cycle * again.square().sum(1).mean()
            return loss

        return apart, together

    def _network(self, prefix: Prefix, generator: torch.Generator) -> Backward:
        shapes = [prefix.segments[0].in_shape, *(segment.out_shape for segment in prefix.segments)]
        return drawn(lambda: Backward(shapes, _picture(prefix), self.width), generator, device_of(prefix))

    def _lessons(self, knowledge: Knowledge, generator: torch.Generator) -> tuple[Iterable[Lesson], Iterable[Lesson]]:
        """Return lessons whose last part is pictures."""
        if self.train == "public":
            examples = public(knowledge, "divide")
            return Pairs(examples.train), Pairs(examples.select)
        taught, held = synthetic(self.pictures, knowledge.image_shape, generator)
        return [(images,) for images in taught], [(images,) for images in held]


class DivideRecoverer(Recoverer):
    """The trained inverse of one prefix."""

    def __init__(self, attack: Divide, prefix: Prefix, inverse: Backward) -> None:
        self.attack = attack
        self.prefix = prefix
        self.inverse = inverse.eval().requires_grad_(False)

    def recover(self, leak: Leak, generators: Generators) -> Recovery:
        """Walk back from each row, then refine all; nothing is drawn."""

        def search(features: Tensor, rows: Sequence[int]) -> tuple[Tensor, Sequence[Status], Tensor]:
            start = torch.cat([self.inverse(row) for row in torch.split(features.float(), 1)])
            misfit = scaled(lambda x, _: self.prefix(x))
            target = features, sizes(features)
            found = self._refinement().solve(misfit, start, target, penalty=total_variation, lower=0.0, upper=1.0)
            images = found.x if isinstance(found.x, Tensor) else found.x[0]
            return images, ended(found.residual, found.status, self.attack.tolerance), found.passes

        return recover_rows(leak, leak_shape(self.prefix), _picture(self.prefix), search)

    def prior(self, n: int, generators: Generators) -> Recovery:
        """Return the picture that the mean training leak is walked back to."""
        place = self.inverse.place(-1)
        image = self.inverse.walk(torch.zeros_like(place.mean).expand(1, *place.layout.grid)).clamp(0, 1)
        return Recovery(Images(image.repeat(n, 1, 1, 1)), (Status("stopped", "no leak"),) * n, torch.zeros(n).long())

    def save(self, path: Path) -> None:
        """Write the weights and the configuration."""
        write(path, self.inverse.state_dict(), {"divide": asdict(self.attack)})

    def _refinement(self) -> Adam:
        attack = self.attack
        if determined(self.prefix):
            return Adam(attack.refine, 0.02, penalty_start=attack.tv, penalty_end=attack.tv * _FADE)
        return Adam(attack.refine, 0.02, penalty_start=attack.open_tv, penalty_end=attack.open_tv * _OPEN_FADE)


@torch.no_grad()
def _passed(prefix: Prefix, images: Tensor) -> list[Tensor]:
    """Return pictures and what each segment makes of them."""
    passed = [images]
    for segment in prefix.segments:
        passed.append(segment.module(passed[-1]))
    return passed


def _picture(prefix: Prefix) -> tuple[int, int, int]:
    channels, height, width = prefix.segments[0].in_shape
    return channels, height, width
