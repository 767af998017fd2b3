"""Cuts x defenses x wires: every candidate is audited by those who know its defense, into one folder that resumes."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..audit.asked import attack_of
from ..audit.exposure import NAIVE, NONE, REPEATED, Exposure, unsuited
from ..audit.fits import shared
from ..audit.plan import Clock, Forecast, Job, bound_seconds, forecast, jobs
from ..audit.request import ATTACKERS, Request
from ..audit.run import Listener, run_audit
from ..audit.workbench import Workbench
from ..defenses import pipeline
from ..schema import Cell
from ..types import Recovers, SeepageError
from .strongest import strongest

UNDEFENDED = "none"
DEFAULTS = ("gaussian:sigma=0.1,0.3,1,relative=true", "quantize:bits=8,4", "prune:keep=0.5")
METRICS: Mapping[Recovers, tuple[str, ...]] = {
    "images": ("mse", "psnr", "ssim"),
    "captions": ("cider", "rouge_l"),
    "labels": ("top1",),
}
"""What a sweep asks of each kind of recovery: what needs no judge. A gallery adds its own."""
_NEXT_STAGE = re.compile(r"\s*\+\s*(?=[A-Za-z])")  # the plus of 1e+3 is followed by a digit


class SweepError(SeepageError):
    """A sweep that cannot be read, or has nothing in it."""


@dataclass(frozen=True)
class Setting:
    """What is done to a leak before it is sent: defenses in order, each with all its parameters, and the wire."""

    defenses: tuple[str, ...]
    wire: str


@dataclass(frozen=True)
class Candidate:
    """A place to cut and what is done there."""

    layer: str
    setting: Setting


@dataclass(frozen=True)
class Task:
    """A cell to run, with the bench that it is run on."""

    bench: Workbench
    job: Job


def settings(defenses: Sequence[str], wires: Sequence[str]) -> tuple[Setting, ...]:
    """Return every setting of a sweep: the undefended one and each strength of each defense, on every wire.

    Raises:
        SeepageError: no such defense or parameter, or a strength that it cannot have.
    """
    asked = [(), *(found for text in defenses or DEFAULTS for found in strengths(text))]
    return tuple(dict.fromkeys(Setting(stages, wire) for wire in wires or ("fp32",) for stages in asked))


def strengths(text: str) -> list[tuple[str, ...]]:
    """Return what `NAME:key=value,value,...` stands for: a pipeline for each combination of the values.

    `A+B` is one defense after another; `none` is no defense.

    Raises:
        SeepageError: it cannot be read, or is no such defense.
    """
    if text.strip() == UNDEFENDED:
        return [()]
    stages = [_spread(stage) for stage in _NEXT_STAGE.split(text.strip())]
    return [pipeline(combination).texts for combination in itertools.product(*stages)]


def _spread(text: str) -> list[str]:
    name, _, tail = text.partition(":")
    values: dict[str, list[str]] = {}
    for part in filter(None, (item.strip() for item in tail.split(","))):
        key, equals, value = (item.strip() for item in part.partition("="))
        if equals and key in values:
            raise SweepError(f"--defense {text!r}: {key!r} is set twice; {key}=A,B sweeps both")
        if equals:
            values[key] = [value]
        elif values:
            values[list(values)[-1]].append(part)
        else:
            raise SweepError(f"--defense {text!r}: expected NAME:key=value,value,..., got {part!r}")
    if not values:
        return [name]
    return [
        f"{name}:{','.join(f'{key}={value}' for key, value in zip(values, found, strict=True))}"
        for found in itertools.product(*values.values())
    ]


class Sweep:
    """The candidates of a request at every setting, and the cells that audit each.

    `attackers` meet the defended ones: unless told all but the naive, who is no worse for not knowing. Several `sends`
    add `repeated`. Of the attacks those are run that recover what is `wanted`.
    """

    def __init__(
        self,
        asked: Request,
        swept: Sequence[Setting],
        attackers: Sequence[str] = (),
        sends: int = 1,
        wanted: Collection[Recovers] = tuple(METRICS),
    ) -> None:
        self.base = Workbench(replace(asked, wire="fp32"))
        self.settings = tuple(swept)
        aware = [name for name in ATTACKERS if name != NAIVE and (name != REPEATED or sends > 1)]
        self.attackers = tuple(attackers) or tuple(aware)
        self.sends = sends
        self._wanted = frozenset(wanted)
        self._benches: dict[tuple[Setting, Recovers, str], Workbench] = {}
        self._tasks: dict[tuple[Setting, str], tuple[Task, ...]] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """The cuts, the earliest first."""
        found = self.base.layers
        return tuple(sorted(found, key=lambda layer: self.base.cut(layer).index))

    @cached_property
    def attacks(self) -> Mapping[Recovers, tuple[str, ...]]:
        """The attacks as they were named, by what they recover; the strongest that can be run where none was."""
        named = self.base.request.attacks or strongest(self.base)
        found: dict[Recovers, list[str]] = defaultdict(list)
        for text in dict.fromkeys(named):
            found[attack_of(self.base.request, text).recovers].append(text)
        return {recovers: tuple(texts) for recovers, texts in found.items() if recovers in self._wanted}

    def candidates(self) -> tuple[Candidate, ...]:
        """Return cuts x settings, cut by cut, without those whose defenses cannot serve the cut."""
        return tuple(item for item in self._all() if not self._unsuited(item))

    def left_out(self) -> list[str]:
        """Say of every setting where it is not run, since its defenses cannot serve the cut, and why."""
        found: dict[Setting, list[tuple[str, str]]] = {}
        for item in self._all():
            if reason := self._unsuited(item):
                found.setdefault(item.setting, []).append((item.layer, reason))
        return [
            f"{' + '.join(setting.defenses)}: not run at {', '.join(layer for layer, _ in places)}: {places[0][1]}"
            for setting, places in found.items()
        ]

    def _all(self) -> Iterator[Candidate]:
        yield from (Candidate(layer, setting) for layer in self.layers for setting in self.settings)

    def _unsuited(self, candidate: Candidate) -> str:
        bench = self.bench(candidate.setting, next(iter(self.attacks)), self.base.request.effort)
        return unsuited(bench, candidate.layer)

    def bench(self, setting: Setting, recovers: Recovers, effort: str) -> Workbench:
        """Return the bench of one setting and one kind of attack."""
        key = setting, recovers, effort
        if key not in self._benches:
            asked, pictured = self.base.request, recovers == "images"
            _ = self.base.victim, self.base.source, self.base.hashes, self.base.public  # loaded once for all
            request = replace(
                asked,
                attacks=self.attacks.get(recovers, ()),
                metrics=METRICS[recovers],
                defenses=setting.defenses,
                attackers=self.attackers if setting.defenses else (),
                sends=self.sends if setting.defenses else 1,
                wire=setting.wire,
                gallery=asked.gallery if pictured else None,
                judges=asked.judges if pictured else (),
                effort=effort,
            )
            self._benches[key] = self.base.beside(request)
        return self._benches[key]

    def exposure(self, candidate: Candidate) -> Exposure:
        """Return what somebody who knows nothing sees of a candidate: what is sent, and what comes of it."""
        setting = candidate.setting
        bench = self.bench(setting, next(iter(self.attacks)), self.base.request.effort)
        return Exposure(bench, bench.split(candidate.layer), NAIVE if setting.defenses else NONE)

    def tasks(self, candidates: Iterable[Candidate], effort: str | None = None) -> list[Task]:
        """Return the cells that audit these candidates.

        Raises:
            SeepageError: a victim, layer, attack, defense or picture folder is not as asked for.
        """
        found = []
        for candidate in candidates:
            for task in self._of(candidate.setting, effort or self.base.request.effort):
                if task.job.spec.layer == candidate.layer and candidate_of(task.job) == candidate:
                    found.append(task)
        return found

    def _of(self, setting: Setting, effort: str) -> tuple[Task, ...]:
        if (setting, effort) not in self._tasks:
            benches = [self.bench(setting, recovers, effort) for recovers in self.attacks]
            self._tasks[setting, effort] = tuple(Task(bench, job) for bench in benches for job in jobs(bench))
        return self._tasks[setting, effort]


def candidate_of(job: Job | Cell) -> Candidate:
    """Return the candidate that a cell audits."""
    return Candidate(job.spec.layer, Setting(job.spec.defenses, job.spec.wire))


def run(tasks: Sequence[Task], folder: Path, listener: Listener | None = None, debug: bool = False) -> list[Cell]:
    """Run these cells into a folder, or take what it holds of them; return their records in the tasks' order.

    Raises:
        SeepageError: the folder cannot be written.
    """
    found: dict[str, Cell] = {}
    for bench, own in _rounds(tasks):
        cells = run_audit(bench.request, folder, listener=listener, bench=bench, grid=own, debug=debug)
        found |= {cell.key: cell for cell in cells}
    return [found[task.job.key] for task in tasks]


def expected(tasks: Sequence[Task]) -> dict[str, tuple[float, int]]:
    """Return the seconds and bytes that each cell is expected to take, by its key.

    Each attack is timed once a cut: what a defense adds is little beside it. Bounds are each cell's own.
    """
    timing = Clock()
    clock = Clock(timing.runs)
    known: dict[tuple[str, str], Forecast] = {}
    found = {}
    for task in tasks:
        bench, spec = task.bench, task.job.spec
        if (spec.layer, spec.attack) not in known:
            (known[spec.layer, spec.attack],) = forecast(bench, [task.job], timing)
        item = known[spec.layer, spec.attack]
        fit = item.fit if clock.first(shared(bench, spec.layer, spec.attack, spec.attacker)) else 0.0
        found[task.job.key] = fit + item.attack + bound_seconds(bench, spec, clock), item.bytes
    return found


def _rounds(tasks: Sequence[Task]) -> Iterator[tuple[Workbench, list[Job]]]:
    """Yield what is run together. One process goes cut by cut: it keeps what attackers learn alike there.

    Several processes keep nothing, and take all cells of a bench at once.
    """
    grouped: dict[tuple[str, int], tuple[Workbench, list[Job]]] = {}
    for task in tasks:
        cut = task.job.spec.layer if task.bench.request.workers == 1 else ""
        grouped.setdefault((cut, id(task.bench)), (task.bench, []))[1].append(task.job)
    yield from grouped.values()
