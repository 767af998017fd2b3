"""Labels read from features alone: linear, fully connected and convolutional classifiers of leaks."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..registry import register
from ..types import (
    Access,
    Auxiliary,
    Examples,
    Generators,
    Knowledge,
    Labels,
    Leak,
    NotRunError,
    Pair,
    Progress,
    Recoverer,
    Recovers,
    Recovery,
    Status,
)
from .blocks import Residual
from .chores import Chore
from .inversion import refusals
from .learning import Course, Lesson, Moments, rows_to_select_on
from .networks import SLOPE, SavedAttackError, drawn, read, write
from .parameters import within
from .reading import Labelled, Reading, labelled
from .regression import LogisticRegression, Regression
from .trained import FromFile, Origin, origin_of, said_of

Part = tuple[Tensor, Tensor]
"""Standardised grids and their labels."""
Kind = Literal["linear", "mlp", "conv"]

_MOST: dict[Kind, int] = {"linear": 2048, "mlp": 2048, "conv": 16384}
_LESSON = 512
_ALL = 1.25  # a fifth of the public pictures are read to select on


@register("attack", "probe")
@dataclass(frozen=True)
class Probe(FromFile):
    """Train a classifier on leaks of labelled pictures that the attacker owns, and read labels from leaks with it.

    What any claim of label leakage must beat (Alain & Bengio 2016). A grid of features is averaged over the largest
    square of places, at most 16 a side, that leaves at most 2,048 numbers for `linear` and `mlp` and 16,384 for `conv`;
    of tokens the leading ones that lie nowhere are left out; a vector is read whole. Each channel is standardised.

    `linear` is multinomial logistic regression by L-BFGS, its `ridge` the one that does best on held-out pictures
    unless told (0). `mlp` has one hidden layer of 4 `width` units, `conv` residual blocks of `width` maps on the grid:
    at most `steps` steps of Adam of `batch` pictures each, the rate falling from `lr` along a cosine; the weights kept
    are those that did best on held-out pictures. Classes are those of the public pictures, known by their names.

    Black-box: it sees leaks of pictures of its own. Recovering takes no pass through the victim, and a label cannot be
    checked against its leak, so a row is always `stopped`. Public leaks are read once and held in memory.
    `adapter=FILE` is what `seepage train probe` wrote, for one victim and layer.
    """

    kind: Kind = "linear"
    steps: int = within(1000, least=1)
    batch: int = within(64, least=1)
    lr: float = 1e-3
    width: int = within(64, least=1)
    ridge: float = 0.0
    adapter: Path | None = None

    recovers: ClassVar[Recovers] = "labels"
    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {
        "quick": {"steps": 200},
        "standard": {},
        "full": {"steps": 5000, "width": 128},
    }

    @property
    def access(self) -> Access:
        """Leaks are enough."""
        return "black-box"

    @property
    def auxiliary(self) -> Auxiliary:
        """Labelled pictures of the attacker's own."""
        return "public"

    @property
    def budget(self) -> int:
        """Recovering needs no pass."""
        return 0

    def fit(
        self,
        knowledge: Knowledge,
        generator: torch.Generator,
        *,
        workdir: Path | None = None,
        progress: Progress | None = None,
    ) -> Recoverer:
        """Read the public leaks once, then train.

        Raises:
            NotRunError: the attacker owns no labelled pictures, or all of them are of one class.
            TrainingError: the loss was never finite.
            SavedAttackError: the file that `adapter` names holds no probe.
        """
        if self.adapter is not None:
            return self.load(self.adapter, knowledge)
        tell = progress or (lambda done, what: None)
        examples = _owned(knowledge)
        tell(0.0, "reading leaks")
        train = self._read(examples.train, knowledge)
        if int((train.labels.bincount() > 0).sum()) < 2:
            raise NotRunError("probe tells classes apart, and the labelled public pictures are all of one")
        held = labelled(examples.select, knowledge.image_shape, _MOST[self.kind])
        plan = self._plan(train, held)
        moments = Moments()
        moments.add(train.grid)
        mean, spread = (value.to(train.grid) for value in moments.result())
        network = drawn(lambda: ProbeNetwork(plan), generator, train.grid.device)
        network.mean.copy_(mean)
        network.spread.copy_(spread)
        taught, tested = ((network.standard(part.grid), part.labels) if part else None for part in (train, held))
        assert taught is not None
        what = f"{self.kind} probe"
        tell(0.5, what)
        self._teach(network, taught, tested, generator, lambda done: tell(0.5 + 0.5 * done, what))
        counts = torch.bincount(train.labels.cpu(), minlength=plan.classes)
        return ProbeRecoverer(self, plan, network, train.classes, counts)

    def chores(self, knowledge: Knowledge, rows: int) -> Sequence[Chore]:
        """Return reading the attacker's own pairs, then training on them.

        Raises:
            NotRunError: the attacker owns no labelled pictures.
        """
        if self.adapter is not None:
            return ()
        pairs = _owned(knowledge).train
        train = self._read(itertools.islice(pairs, 1), knowledge)
        batches = max(operator.length_hint(pairs), 1)
        reading = Chore(lambda: next(iter(pairs)), fitting=_ALL * batches)
        plan = self._plan(train, None)
        if self.kind == "linear":
            once, flat = LogisticRegression(1.0, 1), train.grid.flatten(1)
            asked = LogisticRegression(self.ridge).evaluations(rows_to_select_on(knowledge) > 0)
            return reading, Chore(lambda: once.fit(flat, train.labels, plan.classes), fitting=asked * batches)
        network = drawn(lambda: ProbeNetwork(plan), torch.Generator().manual_seed(0), train.grid.device)
        chosen = torch.arange(self.batch) % len(train.labels)
        course = Course(self.steps, self.lr, self.batch)
        lesson = train.grid[chosen], train.labels[chosen, None]
        return reading, course.rehearsal(network, network.loss, lesson, rows_to_select_on(knowledge))

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        """Return the recoverer that was saved to `path`; nothing of the victim is needed.

        Raises:
            SavedAttackError: the file holds no probe, or one of pictures of another size.
        """
        tensors, said = read(path)
        try:
            attack, counts, classes = Probe(**said["probe"]), tensors.pop("counts"), said["classes"]
            reading = Reading(tuple(said["leak_shape"]), tuple(said["image_shape"]), _MOST[attack.kind])
            plan = Plan(attack.kind, reading, attack.width, len(counts))
            network = drawn(lambda: ProbeNetwork(plan), torch.Generator(), torch.device("cpu"))
            network.load_state_dict(tensors)
            origin = origin_of(said)
        except (KeyError, TypeError, RuntimeError) as error:
            raise SavedAttackError(f"{path} holds no probe: {str(error).partition(chr(10))[0]}") from error
        if reading.image_shape != knowledge.image_shape:
            raise SavedAttackError(f"{path} is of pictures {reading.image_shape}, wanted are {knowledge.image_shape}")
        names = None if classes is None else tuple(classes)
        return ProbeRecoverer(attack, plan, network, names, counts, origin)

    def _read(self, pairs: Iterable[Pair], knowledge: Knowledge) -> Labelled:
        found = labelled(pairs, knowledge.image_shape, _MOST[self.kind])
        if found is None:
            raise NotRunError("probe learns labels, and none of the public pictures (--public) has one")
        return found

    def _teach(
        self,
        network: ProbeNetwork,
        train: Part,
        held: Part | None,
        generator: torch.Generator,
        tell: Callable[[float], None],
    ) -> None:
        if self.kind == "linear":
            flat = None if held is None else (held[0].flatten(1), held[1])
            network.adopt(LogisticRegression(self.ridge).fit(train[0].flatten(1), train[1], network.classes, flat))
            return
        # Public pictures may lie class by class, and a course shuffles among as many as it holds.
        lessons = _lessons(train, generator)
        tests = [] if held is None else _lessons(held, generator)
        Course(self.steps, self.lr, self.batch).teach(network, network.loss, lessons, tests, generator, tell)

    def _plan(self, train: Labelled, held: Labelled | None) -> Plan:
        parts = [train] if held is None else [train, held]
        highest = max(int(part.labels.max()) for part in parts)
        return Plan(self.kind, train.reading, self.width, max(highest + 1, len(train.classes or ())))


@dataclass(frozen=True)
class Plan:
    """What a probe's network is built for: a reading of leaks, how wide, and how many classes."""

    kind: Kind
    reading: Reading
    width: int
    classes: int


class ProbeRecoverer(Recoverer):
    """A trained probe; `counts` says how often it saw each class."""

    def __init__(
        self,
        attack: Probe,
        plan: Plan,
        network: ProbeNetwork,
        classes: tuple[str, ...] | None,
        counts: Int[Tensor, "k"],
        origin: Origin | None = None,
    ) -> None:
        self.origin = origin
        self.attack = attack
        self.plan = plan
        self.network = network.eval().requires_grad_(False)
        self.classes = classes
        self.counts = counts

    def recover(self, leak: Leak, generators: Generators) -> Recovery:
        """Return the log probabilities of the classes; nothing is drawn.

        Raises:
            OriginError: it was trained on leaks of something else.
        """
        if self.origin is not None:
            self.origin.require(leak.header)
        refused = refusals(leak.features, self.plan.reading.leak_shape)
        self.network.to(leak.features.device)
        scores = torch.zeros(len(leak), self.plan.classes)
        for row, reason in enumerate(refused):
            if reason is None:
                scores[row] = self.network(leak.features[row : row + 1])[0].cpu()
        status = tuple(reason or Status("stopped", "read") for reason in refused)
        return Recovery(Labels(scores, self.classes), status, torch.zeros(len(leak), dtype=torch.long))

    def prior(self, n: int, generators: Generators) -> Recovery:
        """Return how often each class was seen; what was seen equally often stands in an order drawn for the row."""
        ties = torch.stack([torch.rand(len(self.counts), generator=generator) for generator in generators])
        return self._unread(self.counts + 0.5 * ties)

    def constant(self, n: int) -> Recovery:
        """Return the class that was seen most often, and the next ones behind it."""
        order = self.counts.argsort(descending=True, stable=True)
        ranks = torch.empty(len(order)).index_copy(0, order, -torch.arange(len(order)).float())
        return self._unread(ranks.repeat(n, 1))

    def save(self, path: Path) -> None:
        """Write weights, class frequencies, and what they are for."""
        reading = self.plan.reading
        shapes = {"leak_shape": reading.leak_shape, "image_shape": reading.image_shape}
        said = {"probe": _plain(self.attack), "classes": self.classes, **shapes, **said_of(self.origin)}
        write(path, {**self.network.state_dict(), "counts": self.counts}, said)

    def _unread(self, scores: Tensor) -> Recovery:
        count = len(scores)
        status = (Status("stopped", "no leak"),) * count
        return Recovery(Labels(scores, self.classes), status, torch.zeros(count, dtype=torch.long))


class ProbeNetwork(nn.Module):
    """From features "b ..." to log probabilities "b classes"; `mean` and `spread` are those of the channels."""

    mean: Tensor
    spread: Tensor

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.reading, self.classes = plan.reading, plan.classes
        channels, rows, columns = plan.reading.shape
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("spread", torch.ones(1, channels, 1, 1))
        numbers, width = channels * rows * columns, plan.width
        if plan.kind == "conv":
            halved = nn.AvgPool2d(2) if min(rows, columns) > 3 else nn.Identity()
            corners = 2 if min(rows, columns) > 1 else 1
            before = nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(SLOPE), Residual(width), halved
            after = Residual(width), nn.LeakyReLU(SLOPE), nn.AdaptiveAvgPool2d(corners), nn.Flatten()
            self.body, numbers = nn.Sequential(*before, *after), width * corners**2
        elif plan.kind == "mlp":
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(numbers, 4 * width), nn.LeakyReLU(SLOPE))
            numbers = 4 * width
        else:
            self.body = nn.Sequential(nn.Flatten())
        self.end = nn.Linear(numbers, plan.classes)

    def forward(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b k"]:
        """Return log probabilities."""
        scores: Tensor = self.end(self.body(self.standard(self.reading(features))))
        return scores.log_softmax(1)

    def standard(self, grid: Float[Tensor, "b c r s"]) -> Float[Tensor, "b c r s"]:
        """Return a grid in units of each channel's deviation."""
        return (grid - self.mean) / self.spread

    def loss(self, lesson: Lesson) -> Float[Tensor, ""]:
        """Return the mean of -log p(label) over standardised grids and their labels "b 1"."""
        grid, labels = lesson
        return nn.functional.cross_entropy(self.end(self.body(grid)), labels[:, 0])

    def adopt(self, found: Regression) -> None:
        """Take over a regression's weights, of a linear probe."""
        with torch.no_grad():
            self.end.weight.copy_(found.weight)
            self.end.bias.copy_(found.bias)


def _plain(attack: Probe) -> dict[str, object]:
    return {key: value for key, value in asdict(attack).items() if key != "adapter"}


def _owned(knowledge: Knowledge) -> Examples:
    if knowledge.public is None:
        raise NotRunError("probe learns labels from labelled pictures that the attacker owns (--public), and has none")
    return knowledge.public


def _lessons(part: Part, generator: torch.Generator) -> list[Lesson]:
    order = torch.randperm(len(part[1]), generator=generator).to(part[1].device)
    return [(part[0][chosen], part[1][chosen, None]) for chosen in torch.split(order, _LESSON)]
