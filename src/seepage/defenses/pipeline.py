"""Several defenses one after another, restored in reverse, with one law."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import registry, seeding
from ..types import Defense, Generators, Law, Leak, Noise, Secret, Shape
from .base import BuiltIn, DefenseError, Payload, Weighed, channel_axis, randomised
from .composed import PipelineLaw
from .mask import Mask


def pipeline(texts: Iterable[str]) -> Pipeline:
    """Build the defenses `NAME[:key=value,...]` that are applied in this order.

    Raises:
        SeepageError: no such defense or parameter, one without a law, or an order that cannot be.
    """
    stages = tuple(_built(text) for text in texts)
    for stage, following in itertools.pairwise(stages):
        if isinstance(stage, Mask):
            name = registry.name_of("defense", following)
            raise DefenseError(f"mask comes last: its bits are no numbers that {name} could be applied to")
    return Pipeline(stages)


def _built(text: str) -> Defense:
    stage = registry.build("defense", text)
    if not isinstance(stage, Defense):
        lacking = [part for part in ("fit", "protect", "restore", "law") if not callable(getattr(stage, part, None))]
        said = f"has no {', '.join(lacking)}()" if lacking else "does not say its holder and protects_from"
        adaptive = ", so that no attacker who knows it could be run" if "law" in lacking else ""
        raise DefenseError(f"defense {text!r} {said}{adaptive}; the contract is seepage.types.Defense")
    return stage


@dataclass(frozen=True)
class Pipeline:
    """Defenses in the order in which they are applied; itself a defense."""

    stages: tuple[Defense, ...]

    holder: ClassVar[str] = "each stage's own"
    protects_from: ClassVar[tuple[str, ...]] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The stages, each with all its parameters."""
        return tuple(registry.spec("defense", stage) for stage in self.stages)

    @property
    def randomised(self) -> bool:
        """Whether two sends of a leak differ."""
        return any(map(randomised, self.stages))

    @property
    def keeps_secret(self) -> bool:
        """Whether a stage is undone with a secret."""
        return any(getattr(stage, "keeps_secret", False) for stage in self.stages)

    def fit(self, leaks: Iterator[Leak]) -> Pipeline:
        """Fit each stage on what the stages before it make of these leaks, which are looked at once."""
        pool, known = list[Leak](), False
        fitted = list[Defense]()

        def reaching(upto: int) -> Iterator[Leak]:
            nonlocal known
            if not known:
                pool.extend(leaks)
                known = True
            before = Pipeline(tuple(fitted[:upto])).law()
            for leak in pool:
                yield before.sample(leak, seeding.generators(0, "fit", seeding.row_hashes(leak.features)))

        for place, stage in enumerate(self.stages):
            fitted.append(stage.fit(reaching(place)))
            if not isinstance(fitted[-1].law(), Law):
                raise DefenseError(
                    f"defense {registry.name_of('defense', stage)!r}: its law() gives no law (sample, expected, "
                    "estimate, log_likelihood), so that no attacker who knows it could be run"
                )
        return Pipeline(tuple(fitted))

    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, Secret | None]:
        """Apply every stage; return what is sent and what all of them keep, numbered."""
        kept: dict[str, Tensor] = {}
        for place, stage in enumerate(self.stages):
            given = leak
            leak, secret = stage.protect(given, generators)
            leak = self.kept(place, given, leak)
            if secret is not None:
                kept |= {f"{place}.{name}": value for name, value in secret.tensors.items()}
        return leak, Secret(kept) if kept else None

    def restore(self, leak: Leak, secret: Secret | None) -> Leak:
        """Undo the stages in reverse; what the secret holds is spent.

        Raises:
            SecretError: it is missing, was used, or is of another leak.
        """
        for place in reversed(range(len(self.stages))):
            stage, own = self.stages[place], f"{place}."
            part = None
            if secret is not None and getattr(stage, "keeps_secret", True):
                part = Secret({n.removeprefix(own): v for n, v in secret.tensors.items() if n.startswith(own)})
            leak = stage.restore(leak, part)
            # Only now: a leak that a stage refuses spends nothing.
            for name in [name for name in secret.tensors if name.startswith(own)] if secret is not None else ():
                assert secret is not None
                del secret.tensors[name]
        return leak

    def law(self) -> Law:
        """Return the law of all stages together."""
        return PipelineLaw(self.stages, self.kept)

    def payload(self, payload: Payload, shape: Shape) -> Payload:
        """Return what a row weighs after all stages, what carries their secrets included.

        A stage that does not say is taken to undo what those before it save.
        """
        for stage in self.stages:
            payload = stage.payload(payload, shape) if isinstance(stage, Weighed) else payload.filled()
        return payload

    def kept(self, place: int, given: Leak, made: Leak) -> Leak:
        """Return what a stage makes of a leak, but zeros for those that its reader is told of: they are not sent."""
        if not getattr(self.stages[place], "moves_zeros", False):
            return made
        shape = tuple(given.features.shape[1:])
        saving = Pipeline(self.stages[:place]).payload(Payload(math.prod(shape), math.inf), shape).saving
        zero = given.features == 0
        if saving.numbers == 1:
            known = torch.zeros_like(zero)
            if saving.tokens < 1:
                known = known | zero.all(2, keepdim=True)
            if saving.channels < 1 and not saving.subspace:
                axis = 1 + channel_axis(shape)
                known = known | zero.all([other for other in range(1, zero.ndim) if other != axis], keepdim=True)
            zero = known
        return made.with_features(made.features.masked_fill(zero, 0.0))

    def noise(self) -> Noise | None:
        """Return the noise of the first stage that `mapped` leaves out: what comes later can only lose more."""
        first = next(iter(self.stages[len(self.continuous) :]), None)
        return first.noise() if isinstance(first, BuiltIn) else None

    @property
    def continuous(self) -> tuple[str, ...]:
        """What names the continuous maps that come first."""
        named = (stage.continuous if isinstance(stage, BuiltIn) else None for stage in self.stages)
        return tuple(itertools.takewhile(lambda name: name is not None, named))  # type: ignore[arg-type]

    def mapped(self, leak: Leak) -> Leak:
        """Apply the continuous maps that come first; gradients pass through them."""
        for stage in self.stages[: len(self.continuous)]:
            leak = stage.protect(leak, ())[0]
        return leak


def protect_one_by_one(
    defense: Defense, leak: Leak, draw: Callable[[int], Generators]
) -> list[tuple[Leak, Secret | None]]:
    """Protect each row of a leak alone: what is drawn and what is rounded then do not depend on its batch."""
    return [defense.protect(leak.rows(row, row + 1), draw(row)) for row in range(len(leak))]


def joined(leaks: Sequence[Leak]) -> Leak:
    """Return leaks of one row each as one leak."""
    first = leaks[0]
    scales = [leak.header.scale for leak in leaks]
    scale = None if first.header.scale is None else tuple(value for part in scales for value in part or ())
    header = dataclasses.replace(first.header, scale=scale)
    ids = tuple(name for leak in leaks for name in leak.ids or ())
    return Leak(torch.cat([leak.features for leak in leaks]), header, ids if first.ids is not None else None)
