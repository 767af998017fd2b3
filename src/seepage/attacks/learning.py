"""What attacks that learn share: whose pictures they learn from, and how long."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..priors import dead_leaves
from ..types import Examples, Knowledge, NotRunError, Pair, SeepageError
from .chores import Chore

Source = Literal["synthetic", "public"]
Lesson = tuple[Tensor, ...]
"""Tensors with one row a picture."""

_CHUNK = 12
_HELD_SHARE = 5
_SHUFFLED = 128
_HELD_ROWS = 64
_CHECKS = 20
_PATIENCE = 6


class TrainingError(SeepageError):
    """A network that could not be trained: its loss was never finite, or there was nothing to learn from."""


def public(knowledge: Knowledge, name: str) -> Examples:
    """Return the attacker's own pictures with their leaks.

    Raises:
        NotRunError: there are none.
    """
    if knowledge.public is None:
        raise NotRunError(f"{name} with train=public learns from pictures that the attacker owns, and has none")
    return knowledge.public


def kept_back(count: int) -> int:
    """Return how many of `count` synthetic pictures are selected on."""
    return max(count // _HELD_SHARE, 1)


def synthetic(
    count: int, image_shape: tuple[int, int, int], generator: torch.Generator
) -> tuple[list[Float[Tensor, "_ 3 h w"]], list[Float[Tensor, "_ 3 h w"]]]:
    """Return dead leaves to train on and, a fifth of `count` and at least one, to select on."""
    held = kept_back(count)
    parts = []
    for total in (max(count - held, 1), held):
        sizes = [min(_CHUNK, total - first) for first in range(0, total, _CHUNK)]
        parts.append([dead_leaves(size, image_shape, generator) for size in sizes])
    return parts[0], parts[1]


@dataclass(frozen=True)
class Pairs:
    """Leaks with their pictures as lessons (features, images): read afresh each time, as they may be protected."""

    pairs: Iterable[Pair]

    def __iter__(self) -> Iterator[Lesson]:
        for leak, pictures in self.pairs:
            yield leak.features.detach().float(), pictures.images


def rows_to_select_on(knowledge: Knowledge) -> int:
    """Return how many of the attacker's own pictures come first when it selects; none where it has none."""
    pairs = () if knowledge.public is None else knowledge.public.select
    return next((len(leak) for leak, _ in pairs), 0)


def drawing(count: int, image_shape: tuple[int, int, int]) -> Chore:
    """Return the drawing of `count` synthetic pictures as a chore."""
    size = min(count, _CHUNK)
    return Chore(lambda: dead_leaves(size, image_shape, torch.Generator().manual_seed(0)), fitting=count / size)


@dataclass(frozen=True)
class Course:
    """At most `steps` steps of Adam over batches of `batch`, the rate falling from `lr` to zero along a cosine.

    Twenty times on the way the loss on held-out lessons is taken. The weights that did best there are kept; six times
    without a better one end the course.
    """

    steps: int
    lr: float
    batch: int

    def teach(
        self,
        network: nn.Module,
        loss: Callable[[Lesson], Tensor],
        lessons: Iterable[Lesson],
        held: Iterable[Lesson],
        generator: torch.Generator,
        tell: Callable[[float], None],
    ) -> float:
        """Train the network in place; return its best loss on the held-out lessons.

        Raises:
            TrainingError: there are no lessons, or the loss was not finite before the first check.
        """
        tests = _sound(_joined(_some(iter(held), _HELD_ROWS)), _HELD_ROWS)
        adam = torch.optim.Adam(network.parameters(), lr=self.lr)
        best, kept, since = math.inf, None, 0
        every = max(self.steps // _CHECKS, 1)
        batches = _forever(lessons, self.batch, generator)
        for step in range(self.steps):
            for group in adam.param_groups:
                group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            with torch.enable_grad():
                value = loss(next(batches))
            if not torch.isfinite(value):
                break
            adam.zero_grad()
            torch.autograd.backward(value)
            adam.step()
            if (step + 1) % every and step + 1 < self.steps:
                continue
            tell((step + 1) / self.steps)
            found = self._test(loss, tests) if len(tests[0]) else float(value.detach())
            since += 1
            if found < best:
                best, kept, since = found, copy.deepcopy(network.state_dict()), 0
            if since == _PATIENCE:
                break
        tell(1.0)
        if kept is None:
            raise TrainingError("the loss was not finite before the first check: try a lower lr")
        network.load_state_dict(kept)
        return best

    def rehearsal(self, network: nn.Module, loss: Callable[[Lesson], Tensor], lesson: Lesson, held: int) -> Chore:
        """Return the course as a chore: a step on `lesson`, as often as steps and `held` rows to check by make it."""
        adam = torch.optim.Adam(network.parameters(), lr=self.lr)

        def step() -> None:
            adam.zero_grad()
            with torch.enable_grad():
                torch.autograd.backward(loss(lesson))
            adam.step()

        # A check runs forward alone, a third of a step's work.
        checks = min(self.steps, _CHECKS) * min(held, _HELD_ROWS) / self.batch / 3
        return Chore(step, fitting=self.steps + checks)

    @torch.no_grad()
    def _test(self, loss: Callable[[Lesson], Tensor], tests: Lesson) -> float:
        parts = zip(*(torch.split(part, self.batch) for part in tests), strict=True)
        values = [float(loss(part)) * len(part[0]) for part in parts]
        return math.fsum(values) / len(tests[0])


def _forever(lessons: Iterable[Lesson], batch: int, generator: torch.Generator) -> Iterator[Lesson]:
    """Yield batches pass after pass, shuffled among as many rows as are held at once."""
    while True:
        count = 0
        reading = iter(lessons)
        while pool := list(_some(reading, _SHUFFLED)):
            rows = _sound(_joined(pool), None)
            count += len(rows[0])
            order = torch.randperm(len(rows[0]), generator=generator)
            for chosen in torch.split(order, batch) if len(order) else ():
                yield tuple(part[chosen.to(part.device)] for part in rows)
        if not count:
            raise TrainingError("there is nothing to learn from: no picture with finite features")


def _some(reading: Iterator[Lesson], rows: int) -> Iterator[Lesson]:
    seen = 0
    for lesson in reading:
        yield lesson
        seen += len(lesson[0])
        if seen >= rows:
            return


def _joined(lessons: Iterable[Lesson]) -> Lesson:
    found = list(lessons)
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True)) if found else (torch.zeros(0),)


def _sound(lesson: Lesson, limit: int | None) -> Lesson:
    """Return the rows that are finite in every part."""
    if not len(lesson[0]):
        return lesson
    finite = torch.stack([torch.isfinite(part.flatten(1)).all(1).cpu() for part in lesson]).all(0)
    rows = finite.nonzero().flatten()[:limit]
    return tuple(part[rows.to(part.device)] for part in lesson)


class Moments:
    """Each channel's mean and deviation over pictures, those that are not finite left out."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: tuple[Tensor, Tensor] | None = None

    def add(self, grid: Float[Tensor, "b c h w"]) -> None:
        """Count in a batch."""
        for row in grid[torch.isfinite(grid.flatten(1)).all(1)].double():
            sums = row.sum((1, 2)), row.square().sum((1, 2))
            self.sums = sums if self.sums is None else (self.sums[0] + sums[0], self.sums[1] + sums[1])
            self.count += row[0].numel()

    def result(self) -> tuple[Float[Tensor, "1 c 1 1"], Float[Tensor, "1 c 1 1"]]:
        """Return mean and standard deviation, the latter 1 where nothing varies.

        Raises:
            TrainingError: nothing was counted.
        """
        if self.sums is None:
            raise TrainingError("there is nothing to learn from: no picture with finite features")
        mean = self.sums[0] / self.count
        spread = (self.sums[1] / self.count - mean.square()).clamp_min(0).sqrt()
        spread = torch.where(spread > 1e-6 * mean.abs().clamp_min(1e-6), spread, 1.0)
        return mean.float().view(1, -1, 1, 1), spread.float().view(1, -1, 1, 1)
