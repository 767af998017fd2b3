"""Several defenses one after another, restored in reverse, with one law."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .. import registry, seeding
from ..types import Defense, Generators, Law, Leak, Noise, Secret, Shape, Telling
from .base import BuiltIn, DefenseError, Payload, Weighed
from .mask import Mask

_DRAWS = 32


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
        return any(map(_randomised, self.stages))

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
            for leak in pool:
                draws = seeding.generators(0, "fit", seeding.row_hashes(leak.features))
                for stage in fitted[:upto]:
                    leak = stage.law().sample(leak, draws)
                yield leak

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
            leak, secret = stage.protect(leak, generators)
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
        return PipelineLaw(self)

    def payload(self, payload: Payload, shape: Shape) -> Payload:
        """Return what a row weighs after all stages, what carries their secrets included.

        A stage that does not say is taken to undo what those before it save.
        """
        for stage in self.stages:
            payload = stage.payload(payload, shape) if isinstance(stage, Weighed) else payload.filled()
        return payload

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


@dataclass(frozen=True)
class PipelineLaw:
    """The stages' laws composed; a likelihood only where one stage draws, and draws last."""

    pipeline: Pipeline

    def sample(self, clean: Leak, generators: Generators) -> Leak:
        """Return what might be sent."""
        for stage in self.pipeline.stages:
            clean = stage.law().sample(clean, generators)
        return clean

    def expected(self, clean: Leak) -> Leak | None:
        """Return the mean of what would be sent: by the stages' formulas where these compose, else over 32 draws."""
        drew = False
        found: Leak | None = clean
        for stage in self.pipeline.stages:
            if drew and not getattr(stage, "affine", False):
                return self._averaged(clean)
            found = None if found is None else stage.law().expected(found)
            if found is None:
                return None
            drew = drew or _randomised(stage)
        return found

    def matched(self, clean: Leak, sent: Leak) -> Leak | None:
        """Return what is expected given what the last stage shows of its draw; None where it shows nothing."""
        *before, last = self.pipeline.stages
        law = last.law()
        if not isinstance(law, Telling):
            return None
        reaching = PipelineLaw(Pipeline(tuple(before))).expected(clean)
        return None if reaching is None else law.matched(reaching, sent)

    def estimate(self, sends: Sequence[Leak]) -> Leak:
        """Return the best guess at the clean leak, stage by stage from the last."""
        stages = self.pipeline.stages
        found = list(sends)
        for stage in reversed(stages):
            found = [stage.law().estimate(found)]
        return found[0]

    def log_likelihood(self, sent: Leak, clean: Leak) -> Float[Tensor, "b"] | None:
        """Return that of the last stage, given what the stages before it, none of them drawing, make of the leak."""
        *before, last = self.pipeline.stages
        if any(map(_randomised, before)):
            return None
        for stage in before:
            expected = stage.law().expected(clean)
            if expected is None:
                return None
            clean = expected
        return last.law().log_likelihood(sent, clean)

    def _averaged(self, clean: Leak) -> Leak | None:
        # A mean that does not depend on the leak is none, and what is sent has then no formula either.
        if any(stage.law().expected(clean) is None for stage in self.pipeline.stages):
            return None
        rows = [str(row) for row in range(len(clean))]
        sends = [self.sample(clean, seeding.generators(0, "law", rows, turn)) for turn in range(_DRAWS)]
        return sends[0].with_features(torch.stack([send.features for send in sends]).mean(0))


def _randomised(stage: Defense) -> bool:
    """A defense that does not say is taken to draw."""
    return bool(getattr(stage, "randomised", True))


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
