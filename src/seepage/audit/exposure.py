"""What an attacker sees of a cut's leaks and knows of how they are defended, and what the next stage gets of them."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import data, seeding, wire
from ..attacks.equipped import Equipped
from ..defenses import DefenseError, Payload, Pipeline, pipeline
from ..defenses.pipeline import joined
from ..priors import dead_leaves
from ..types import Attack, Generators, Knowledge, Law, Leak, NotRunError, Secret, SeepageError, SplitModel
from .request import RequestError
from .workbench import Workbench

NONE, NAIVE, ESTIMATE, LIKELIHOOD, RETRAINED, REPEATED = (
    "none", "naive", "aware:estimate", "aware:likelihood", "aware:retrained", "repeated",
)  # fmt: skip
_FITTED_ON = 32
_GREY = 0.5


@dataclass(frozen=True)
class Exposure:
    """One attacker before one cut: `none` where nothing is defended, else what he makes of the defense.

    `naive` takes what is sent for the leak. `aware:estimate`, and `repeated` from `sends` sends of a picture, take the
    law's estimate for it. `aware:likelihood` is handed the law, `aware:retrained` learns from leaks defended alike.
    """

    bench: Workbench
    split: SplitModel
    attacker: str = NONE
    sends: int = 1

    @property
    def defense(self) -> Pipeline | None:
        """The defenses, fitted; None where this attacker meets none."""
        return None if self.attacker == NONE else fitted(self.bench, self.split)

    @property
    def law(self) -> Law | None:
        """What an attacker who uses the law has of it."""
        defense = self.defense
        return defense.law() if defense is not None and self.attacker == LIKELIHOOD else None

    def received(self, indices: Sequence[int], images: Tensor) -> tuple[Leak, list[bool]]:
        """Return what this attacker reads for these pictures, and of which rows the leak itself is finite.

        Each picture is defended alone, with draws that its hash decides: no row depends on its batch.
        """
        if self.defense is None or not len(indices):
            leak = self.bench.received_rows(self.split, indices, images)
            return leak, _finite(leak)
        rows = [self._row(self.defense, index, image) for index, image in zip(indices, images, strict=True)]
        return joined([leak for leak, _ in rows]), [finite for _, finite in rows]

    def restored(self, indices: Sequence[int], images: Tensor) -> tuple[Leak | None, list[float]]:
        """Return what the rightful next stage gets, and the seconds that each picture's defense took.

        None for a dump whose secret is not at hand; no seconds where nothing was protected here.
        """
        defense, bench = self.defense, self.bench
        if defense is None:
            return bench.received_rows(self.split, indices, images), []
        if bench.stored is not None:
            leak = bench.received_rows(self.split, indices, images)
            return None if defense.keeps_secret else defense.restore(leak, None), []
        rows, seconds = [], []
        for index, image in zip(indices, images, strict=True):
            clean = self.split.leak(image[None])
            began = _now(bench.device)
            leak, secret = defense.protect(clean, _draws(bench, bench.hashes[index], 0))
            protected = _now(bench.device) - began
            received = _received(wire.encode(leak, bench.request.wire))
            began = _now(bench.device)
            rows.append(defense.restore(received, secret))
            seconds.append(protected + _now(bench.device) - began)
        return joined(rows), seconds

    def knowledge(self) -> Knowledge:
        """Return what this attacker knows: his own leaks are defended where he learns from such."""
        if self.attacker == RETRAINED and self.defense is not None:
            return self.bench.knowledge(self.split, _afresh(self.bench, self.split, self.defense))
        return replace(self.bench.knowledge(self.split), law=self.law)

    def require(self, attack: Attack, name: str) -> None:
        """Refuse a pair of attacker and attack that is none.

        Raises:
            NotRunError: the defense, its law or the attack does not let this attacker be.
        """
        reason = self._law_is_silent() if self.attacker == LIKELIHOOD else ""
        reason = reason or pairing(attack, name, self.attacker) or self._misshapen()
        if self.attacker == REPEATED and not self._draws():
            reason = "nothing is drawn: every send of a picture is the same, and several say no more than one"
        elif self.attacker == REPEATED and self.sends == 1:
            reason = "one send alone is aware:estimate: --sends K says how many of a picture he has"
        if reason:
            raise NotRunError(reason)

    def bytes_per_image(self) -> int:
        """Return what a picture weighs on the wire, what carries the defenses' secrets included."""
        leak = self.bench.stored.leak if self.bench.stored is not None else None
        defense = self.defense
        if leak is None:
            leak = wire.encode(_grey(self.split), self.bench.request.wire)
        if defense is None:
            return wire.bytes_per_image(leak)
        shape = tuple(leak.features.shape[1:])
        whole = Payload(leak.features[0].numel(), 8 * wire.DTYPES[leak.header.wire].itemsize)
        return defense.payload(whole.beside(4 if leak.header.scale is not None else 0), shape).bytes

    def _draws(self) -> bool:
        return self.defense is not None and self.defense.randomised

    def _law_is_silent(self) -> str:
        law = self.law
        if law is None:
            return ""
        grey = _grey(self.split)
        if law.expected(grey) is not None:
            return ""
        return "what is sent does not depend on the leak: without the secret the law of these defenses tells nothing"

    def _misshapen(self) -> str:
        """Why what is sent cannot be taken for a leak; empty where it can, or is estimated or learned from."""
        defense = self.defense
        if defense is None or self.attacker not in (NAIVE, LIKELIHOOD):
            return ""
        grey = torch.full(self.split.image_shape, _GREY)
        given, clean = sent(self.bench, self.split, defense, grey, "grey", 0)[0], _grey(self.split)
        if given.features.shape == clean.features.shape:
            return ""
        shapes = f"{tuple(given.features.shape[1:])}, the leak {tuple(clean.features.shape[1:])}"
        return f"what is sent has shape {shapes}: only who estimates the leak, or learns from what is sent, can read it"

    def _row(self, defense: Pipeline, index: int, image: Tensor) -> tuple[Leak, bool]:
        times = self.sends if self.attacker == REPEATED else 1
        stored = self.bench.stored
        if stored is not None:
            read = [stored.read(self.bench.source, [index], turn, self.bench.device) for turn in range(times)]
            sends = [wire.decode(leak) for leak in read]
            (finite,) = _finite(sends[0])
        else:
            pairs = [self._sent(defense, image, self.bench.hashes[index], turn) for turn in range(times)]
            (finite,) = _finite(_undone(defense, *pairs[0]))
            sends = [wire.decode(leak) for leak, _ in pairs]
        if self.attacker in (ESTIMATE, REPEATED):
            return defense.law().estimate(sends), finite
        return sends[0], finite

    def _sent(self, defense: Pipeline, image: Tensor, name: str, turn: int) -> tuple[Leak, Secret | None]:
        return sent(self.bench, self.split, defense, image, name, turn)


def pairing(attack: Attack, name: str, attacker: str) -> str:
    """Return why an attack cannot be this attacker's, whatever the defense; empty where it can."""
    if attacker == LIKELIHOOD and not getattr(attack, "reads_law", False):
        return f"{name} has no place for a law: joint and rmle do"
    if attacker == RETRAINED and isinstance(attack, Equipped) and attack.equipment_sha256() is not None:
        return f"{name} comes trained, on leaks without the defense: without its weights it learns from --public"
    if attacker == RETRAINED and attack.access == "white-box" and not getattr(attack, "learns", False):
        return f"{name} learns from no leaks: --attack decoder, probe or caprecover does"
    return ""


def sent(
    bench: Workbench, split: SplitModel, defense: Pipeline, image: Tensor, name: str, turn: int
) -> tuple[Leak, Secret | None]:
    """Return one send of one picture, defended and in the wire's format, and what is kept.

    `name` is the picture's hash, by which draws are seeded.
    """
    leak, secret = defense.protect(split.leak(image[None]), _draws(bench, name, turn))
    return wire.encode(leak, bench.request.wire), secret


def fitted(bench: Workbench, split: SplitModel) -> Pipeline:
    """Return the request's defenses fitted to this cut, on leaks of public pictures, else of synthetic ones.

    Raises:
        DefenseError: one of them cannot serve this leak.
        SeepageError: no such defense, or one whose next stage cannot go on from what it makes of the leak.
    """
    if split.layer not in bench.fitted_defenses:
        shape = tuple(_grey(split).features.shape)
        defense = defense_of(bench).fit(_owned(bench, split))
        example, secret = sent(bench, split, defense, torch.full(split.image_shape, _GREY), "grey", 0)
        after = tuple(_undone(defense, example, secret).features.shape)
        if after != shape:
            raise RequestError(
                f"--defense {' '.join(bench.defenses)} turns a leak of {shape[1:]} into one of {after[1:]}, which the "
                f"rest of {split.name} does not take: its restore() must give the shape back"
            )
        bench.fitted_defenses[split.layer] = defense
    return bench.fitted_defenses[split.layer]


@functools.lru_cache(maxsize=256)
def unsuited(bench: Workbench, layer: str) -> str:
    """Return why the request's defenses cannot serve a cut; empty where they can.

    Raises:
        SeepageError: as `fitted` and `Workbench.split` do, of what is wrong whatever the cut.
    """
    if not bench.defenses:
        return ""
    try:
        fitted(bench, bench.split(layer))
    except DefenseError as error:
        return str(error)
    return ""


def defense_of(bench: Workbench) -> Pipeline:
    """Return the request's defenses before they are fitted, those of a dump by what it says.

    Raises:
        SeepageError: no such defense, or no such order of them.
    """
    try:
        return pipeline(bench.defenses)
    except SeepageError as error:
        if bench.stored is None or bench.request.defenses:
            raise
        raise RequestError(
            f"--leak {bench.request.leak} carries {' + '.join(bench.defenses)}: {error}; --defense names what "
            "was applied"
        ) from error


def _owned(bench: Workbench, split: SplitModel) -> Iterator[Leak]:
    """Yield leaks of a few public pictures, else of as many synthetic ones."""
    if bench.public is None:
        # Whoever defends and whoever knows how must come to the same.
        generator = seeding.generator(0, "fit", "defense")
        for _ in range(_FITTED_ON // 4):
            yield split.leak(dead_leaves(4, split.image_shape, generator))
        return
    few = bench.public.subset(range(min(len(bench.public), 2 * _FITTED_ON)))
    for batch in data.batches(few, split.load, 4):
        if batch.pictures is not None:
            yield split.leak(batch.pictures.images)


def _afresh(bench: Workbench, split: SplitModel, defense: Pipeline) -> Callable[[Tensor], Leak]:
    """Return pictures -> leaks as they are received, defended anew each time that a picture comes again."""
    turns: Counter[str] = Counter()

    def receive(images: Tensor) -> Leak:
        rows = []
        for image, name in zip(images, seeding.row_hashes(images), strict=True):
            rows.append(wire.decode(sent(bench, split, defense, image, name, turns[name])[0]))
            turns[name] += 1
        return joined(rows)

    return receive


def _undone(defense: Pipeline, leak: Leak, secret: Secret | None) -> Leak:
    return defense.restore(_received(leak), secret)


def _received(leak: Leak) -> Leak:
    """What whoever undoes the defense reads: a mask's bits as they are."""
    return leak if leak.features.dtype == wire.MASKED else wire.decode(leak)


def _draws(bench: Workbench, name: str, turn: int) -> Generators:
    return seeding.generators(bench.request.seed, "defense", [name], turn)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _grey(split: SplitModel) -> Leak:
    return split.leak(torch.full((1, *split.image_shape), _GREY))


def _finite(leak: Leak) -> list[bool]:
    found: list[bool] = torch.isfinite(leak.features.flatten(1)).all(1).tolist()
    return found
