"""From a request to the cells it asks for, and what they are expected to take."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..attacks.chores import Laborious
from ..attacks.equipped import Equipped, Placed
from ..defenses import DefenseError
from ..schema import Spec
from ..store import cell_key
from ..types import Attack, SeepageError
from ..victims.cut import NonFiniteError
from ..victims.weights import NonFiniteWeightsError
from .bounds import runs
from .cell import batch_size
from .exposure import NONE, REPEATED, RETRAINED, Exposure, defense_of, pairing, unsuited
from .fits import shared
from .owned import lacking, row_bytes
from .public import require_unseen, require_untaught
from .request import ATTACKERS, RequestError
from .workbench import Workbench

_POISONED = (NonFiniteError, NonFiniteWeightsError)
_PICTURE_BYTES = 1.2  # PNG bytes a pixel of a photograph


@dataclass(frozen=True)
class Job:
    """One cell to run: its key and spec."""

    key: str
    spec: Spec


@dataclass(frozen=True)
class Forecast:
    """What a cell is expected to take: seconds to fit its attack, of that and of its bound, and bytes it writes."""

    fit: float
    attack: float
    bound: float
    bytes: int

    @property
    def seconds(self) -> float:
        """All of them together."""
        return self.fit + self.attack + self.bound


@dataclass(frozen=True)
class Clock:
    """What was timed and counted for a forecast: seconds of a run through each prefix, bounds and fits spoken for."""

    runs: dict[str, float] = field(default_factory=dict)
    bounds: set[Path] = field(default_factory=set)
    fits: set[tuple[Hashable, ...]] = field(default_factory=set)

    def first(self, fit: tuple[Hashable, ...] | None) -> bool:
        """Return whether nobody has spoken for a fit yet, and speak for it; None is nobody else's."""
        known = fit in self.fits
        if fit is not None:
            self.fits.add(fit)
        return not known


def jobs(bench: Workbench) -> tuple[Job, ...]:
    """Return the grid's cells, layer by layer; where its defenses cannot serve a cut, one stands for the reason.

    Raises:
        SeepageError: a victim, layer, attack, metric, judge or picture folder is not as asked for.
    """
    request = bench.request
    for layer in bench.layers:
        try:
            bench.cut(layer)
        except _POISONED:
            continue  # each of its cells will fail with this reason; the other layers can be audited
    bench.require_a_picture()
    _ = bench.stored  # refuses a dump that is not of these pictures
    if bench.gallery is not None:
        bench.gallery.require_a_picture()
    attackers = _attackers(bench)
    bench.require_use_of_judges()
    require_untaught(bench.victim, bench.source)
    for text in bench.attacks:
        require_unseen(bench.attack(text), text, bench.source)
    found = []
    texts = defense_of(bench).texts
    for layer in bench.layers:
        for attacker, text in _everyone(bench, layer, attackers):
            attack = bench.attack(text)
            spec = Spec(
                victim=bench.victim.name,
                weights_sha256=bench.victim.weights_sha256,
                layer=layer,
                size=request.size,
                defenses=() if attacker == NONE else texts,
                wire=bench.wire,
                attack=text,
                adapter_sha256=_equipment(attack),
                attacker=attacker,
                effort=request.effort,
                sends=request.sends if attacker == REPEATED else 1,
                access=attack.access,
                auxiliary=attack.auxiliary,
                data=bench.source.name,
                manifest_sha256=bench.manifest,
                public=request.public,
                public_sha256=None if bench.public is None else bench.public.manifest_sha256(),
                gallery=None if bench.gallery is None else request.gallery,
                gallery_sha256=None if bench.gallery is None else bench.gallery.source.manifest_sha256(),
                metrics=tuple(bench.metrics(attack.recovers)),
                judges=bench.judges(attack.recovers),
                seed=request.seed,
            )
            found.append(Job(cell_key(spec), spec))
    return tuple(found)


def _attackers(bench: Workbench) -> tuple[str, ...]:
    """Return who attacks: nobody's defense is met by one without knowledge of any, a dump's is there from the start.

    Raises:
        SeepageError: a defense is unknown, lacks a law, or cannot serve any of the cuts.
    """
    if not bench.defenses:
        if bench.request.attackers:
            raise RequestError("--attacker says how a defense is attacked, and the dump carries none")
        return (NONE,)
    defense_of(bench)
    reasons = [_unsuited(bench, layer) for layer in bench.layers]
    if all(reasons):
        raise DefenseError(reasons[0])
    known = tuple(name for name in ATTACKERS if name in (bench.request.attackers or ATTACKERS))
    return known if bench.stored is not None else (NONE, *known)


def _unsuited(bench: Workbench, layer: str) -> str:
    try:
        return unsuited(bench, layer)
    except _POISONED:
        return ""  # its cells will fail with that


def _everyone(bench: Workbench, layer: str, attackers: Sequence[str]) -> list[tuple[str, str]]:
    """Return who attacks a layer with what; of those whom its defenses cannot serve, the first stands for all."""
    pairs = [pair for who in attackers for pair in _pairs(bench, layer, who)]
    if not _unsuited(bench, layer):
        return pairs
    return [pair for pair in pairs if pair[0] == NONE] + [pair for pair in pairs if pair[0] != NONE][:1]


def _pairs(bench: Workbench, layer: str, attacker: str) -> list[tuple[str, str]]:
    """Return the attacks of one attacker at a layer; where he can use none, the first stands for the reason."""
    served = [text for text in bench.attacks if _serves(bench.attack(text), layer, bench)]
    able = [text for text in served if not _unpaired(bench.attack(text), attacker)]
    return [(attacker, text) for text in able or served[:1]]


def _unpaired(attack: Attack, attacker: str) -> str:
    try:
        return pairing(attack, "", attacker)
    except SeepageError:
        return ""  # its cell will fail with this reason


def _serves(attack: Attack, layer: str, bench: Workbench) -> bool:
    """Return whether to run an attack at a layer: one that cannot be is left out where nobody asked for the pair."""
    try:
        places = attack.places() if isinstance(attack, Placed) else None
    except SeepageError:
        return True  # its cell will fail with this reason
    if places is None or layer in places:
        return True
    asked = bool(bench.request.layers) or not set(places) & set(bench.layers)
    return bool(bench.request.attacks) and asked


def _equipment(attack: Attack) -> str | None:
    try:
        return attack.equipment_sha256() if isinstance(attack, Equipped) else None
    except SeepageError:
        return None  # the cell will fail with this reason; the others can be run


def forecast(bench: Workbench, cells: Sequence[Job], clock: Clock | None = None) -> list[Forecast]:
    """Return what each cell is expected to take.

    One pass through each prefix is timed and taken as often as the attack's budget says; an attack that trains, or runs
    a network of its own, does each of its chores once for the clock instead. A bound that is kept from earlier costs
    nothing, and a bound or a fit that several cells share is the first one's; so is the victim's run on the attacker's
    own pictures, where their features are not on disk yet.
    """
    clock = clock or Clock()
    count = len(bench.source)
    height, width = bench.victim.image_shape[1:]
    size = 0 if bench.request.redact else int(_PICTURE_BYTES * height * width * count)
    found = []
    for job in cells:
        a_pass = _run_seconds(bench, job.spec.layer, clock)
        fit, attack = _seconds(bench, job.spec, a_pass, clock)
        pictures, kept = _lacking(bench, job.spec, clock)
        bound = bound_seconds(bench, job.spec, clock)
        found.append(Forecast(fit + pictures * a_pass, attack, bound, size + 2000 * count + kept))
    return found


def bound_seconds(bench: Workbench, spec: Spec, clock: Clock) -> float:
    """Return what the bound of a cell is expected to take beside those that the clock has counted."""
    if bench.attack(spec.attack).recovers != "images":
        return 0.0
    try:
        split = bench.split(spec.layer)
        exposure = Exposure(bench, split, spec.attacker, spec.sends)
        exposure.require(bench.attack(spec.attack), "")
        times = runs(bench, split, spec, range(len(bench.source)), exposure.defense, clock.bounds)
    except SeepageError:
        return 0.0  # whatever keeps it from being run is for the cell's own record to say
    return times * _run_seconds(bench, spec.layer, clock)


def _seconds(bench: Workbench, spec: Spec, a_pass: float, clock: Clock) -> tuple[float, float]:
    attack, count = bench.attack(spec.attack), len(bench.source)
    if not isinstance(attack, Laborious):
        return 0.0, attack.budget * count * a_pass
    try:
        split = bench.split(spec.layer)
        rows = min(count, batch_size(split.image_shape, bench.device, attack.budget))
        exposure = Exposure(bench, split, spec.attacker, spec.sends)
        exposure.require(attack, "")
        chores = attack.chores(exposure.knowledge(), rows)
        first = clock.first(shared(bench, spec.layer, spec.attack, spec.attacker))
        fit = each = 0.0
        for chore in chores:
            if first or chore.each:
                taken = _clocked(bench, chore.once)
                fit, each = fit + first * taken * chore.fitting, each + taken * chore.each * count
        return fit, each
    except (SeepageError, RuntimeError, MemoryError):
        return 0.0, 0.0  # whatever keeps it from being run is for the cell's own record to say


def _lacking(bench: Workbench, spec: Spec, clock: Clock) -> tuple[int, int]:
    """Return on how many of the attacker's own pictures a cell has the victim run, and the bytes that are then kept."""
    attack = bench.attack(spec.attack)
    trained = getattr(attack, "adapter", None) is not None
    try:
        if attack.auxiliary != "public" or trained or bench.public is None or spec.attacker == RETRAINED:
            return 0, 0
        split = bench.split(spec.layer)
        public = bench.knowledge(split).public
        if public is None or not clock.first((spec.layer, "public")):
            return 0, 0
        count = lacking(public)
        return count, count * row_bytes(split)
    except (SeepageError, RuntimeError, MemoryError):
        return 0, 0  # whatever keeps it from being run is for the cell's own record to say


def _clocked(bench: Workbench, once: Callable[[], object]) -> float:
    """Time a second run: the first warms up."""
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        once()
        if bench.device.type == "cuda":
            torch.cuda.synchronize(bench.device)
        taken.append(time.perf_counter() - began)
    return taken[-1]


def _run_seconds(bench: Workbench, layer: str, clock: Clock) -> float:
    """Time one forward and backward pass through the prefix, a picture, once."""
    if layer not in clock.runs:
        clock.runs[layer] = _pass_seconds(bench, layer)
    return clock.runs[layer]


def _pass_seconds(bench: Workbench, layer: str) -> float:
    try:
        split = bench.split(layer)
    except _POISONED:
        return 0.0
    size = min(len(bench.source), batch_size(split.image_shape, bench.device, budget=1))
    images = torch.full((size, *split.image_shape), 0.5, device=bench.device, requires_grad=True)
    return _clocked(bench, lambda: split.prefix(images).square().sum().backward()) / size
