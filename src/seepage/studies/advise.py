"""The decision: the cut, wire and defense that keep to every limit at least cost, or the limit that cannot be kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..audit.exposure import NONE
from ..audit.run import Listener
from ..schema import Cell
from ..types import Recovers
from .costs import Costing, Costs
from .leakage import Worst, wilson, worst_of
from .limits import Limit, LimitError
from .sweep import Candidate, Sweep, Task, run
from .unrun import reasons, unrun

SCREEN = "quick"
SCREENING = (NONE, "aware:estimate", "aware:retrained")
"""Who screens: the undefended leak's attacker, and of a defense's those who take its law's guess or learn from it."""

Status = Literal["advised", "refused", "struck", "unmeasured", "unconfirmed", "skipped"]
"""Found; breaks a limit on cost or utility, or in the screen; breaks one in confirmation; breaks none, and nothing was
measured of one; not looked at, since as many as might be confirmed were struck; not looked at, since it costs more than
the one found."""


@dataclass
class Row:
    """One candidate: what it costs, what is known of it by limit, and what became of it.

    `unknown` says by limit why nothing was measured of it, `unrun` who could not be run, `stage` the effort at which it
    was attacked last and `confirmed` that this was no screen.
    """

    candidate: Candidate
    costs: Costs
    status: Status = "skipped"
    values: dict[str, float | None] = field(default_factory=dict)
    leaks: dict[str, Worst] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    unrun: list[str] = field(default_factory=list)
    stage: str = ""
    confirmed: bool = False

    def fails(self, limits: Sequence[Limit]) -> list[Limit]:
        """Return the limits that are known to be broken, or that nothing was measured of."""
        return [limit for limit in limits if limit.kind.key in self.values and not limit.holds(self._value(limit))]

    def breaks(self, limits: Sequence[Limit]) -> list[Limit]:
        """Return the limits that are known to be broken."""
        return [limit for limit in self.fails(limits) if self._value(limit) is not None]

    def _value(self, limit: Limit) -> float | None:
        return self.values[limit.kind.key]


@dataclass
class Advisor:
    """Screens the candidates that keep to the limits on cost and utility, and confirms the cheapest that pass.

    Screening and confirming go by cost, cheapest first, and end at the first that is confirmed: whatever costs more
    could not be the answer. At most `most` are confirmed. What nobody among the screeners can measure is no failure: it
    is confirmed unscreened.
    """

    sweep: Sweep
    limits: tuple[Limit, ...]
    minimise: str
    costing: Costing
    folder: Path
    effort: str = "standard"
    most: int = 5
    watch: Callable[[Sequence[Task]], AbstractContextManager[Listener]] | None = None
    debug: bool = False
    cells: dict[str, Cell] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """Return every candidate with what became of it, the cheapest first.

        Raises:
            LimitError: the limits contradict each other for this victim.
        """
        found = [Row(item, self.costing.of(item)) for item in self.sweep.candidates()]
        for row in found:
            row.values |= {limit.kind.key: self._cost(row.costs, limit.kind.key) for limit in self._limits(leaks=False)}
            row.unknown |= {key: "its answers cannot be compared" for key, value in row.values.items() if value is None}
        self._require_room(found)
        found.sort(key=self._order)
        confirmed = 0
        for row in found:
            if row.fails(self.limits):
                row.status = "refused"
                continue
            if confirmed >= self.most:
                row.status = "unconfirmed"
                continue
            self._screen(row)
            if row.breaks(self.limits):
                row.status = "refused"
                continue
            row.confirmed = self._audit(row, self.sweep.tasks([row.candidate], self.effort), self.effort)
            confirmed += row.confirmed
            if not row.fails(self.limits):
                row.status = "advised"
                break
            row.status = "struck" if row.breaks(self.limits) else "unmeasured"
        return found

    def record(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the decision as JSON has it."""
        answer = next((row for row in rows if row.status == "advised"), None)
        return {
            "name": self.sweep.base.victim.name,
            "data": self.sweep.base.source.name,
            "n": len(self.sweep.base.source),
            "minimise": self.minimise,
            "effort": self.effort,
            "attacks": [text for texts in self.sweep.attacks.values() for text in texts],
            "attackers": list(self.sweep.attackers),
            "limits": [{"key": i.kind.key, "value": i.value, "unit": i.kind.unit} for i in self.limits],
            "answer": None if answer is None else self._said(answer),
            "unmet": [] if answer is not None else self._unmet(rows),
            "unmeasured": {} if answer is not None else self._unmeasured(rows),
            "rows": [self._said(row) for row in rows],
            "missing": [*self.sweep.left_out(), *unrun(list(self.cells.values()))],
        }

    def _limits(self, *, leaks: bool) -> list[Limit]:
        return [limit for limit in self.limits if bool(limit.kind.leaks) == leaks]

    def _cost(self, costs: Costs, key: str) -> float | None:
        return {
            "min-utility": costs.utility.get("agreement", costs.utility.get("cosine")),
            "max-bytes": costs.bytes,
            "max-device-macs": costs.macs_before,
            "max-server-macs": costs.macs_after,
            "max-milliseconds": costs.device_ms.median,
        }[key]

    def _order(self, row: Row) -> tuple[float, float, float, int]:
        costs = row.costs
        cost = {"device-macs": costs.macs_before, "bytes": costs.bytes, "milliseconds": costs.device_ms.median}
        kept = costs.utility.get("agreement", costs.utility.get("cosine", 0.0))
        return cost[self.minimise], -kept, costs.bytes, len(row.candidate.setting.defenses)

    def _require_room(self, rows: Sequence[Row]) -> None:
        """Refuse limits on cost and utility that candidates keep to one by one, and none to all."""
        known = self._limits(leaks=False)
        alone = [[row for row in rows if limit.holds(row.values[limit.kind.key])] for limit in known]
        if known and all(alone) and not any(not row.fails(known) for row in rows):
            names = " and ".join(f"--{limit.kind.key} {limit.value:.15g}" for limit in known)
            raise LimitError(
                f"{names} contradict each other: each is kept by some of the {len(rows)} candidates, all of them by "
                "none; another --layer, --defense or --wire may"
            )

    def _screen(self, row: Row) -> None:
        tasks = self.sweep.tasks([row.candidate], SCREEN)
        if self.effort != SCREEN:
            tasks = [task for task in tasks if task.job.spec.attacker in SCREENING]
        self._audit(row, tasks, SCREEN)

    def _audit(self, row: Row, tasks: Sequence[Task], effort: str) -> bool:
        """Attack a candidate, note what leaks by limit, and return whether anybody could be run."""
        with nullcontext() if self.watch is None else self.watch(tasks) as listener:
            cells = run(tasks, self.folder, listener, self.debug)
        self.cells |= {cell.key: cell for cell in cells}
        row.leaks, row.unrun = {}, reasons(cells)
        for limit in self._limits(leaks=True):
            key, kind = limit.kind.key, limit.kind
            worst = worst_of(cells, kind.leaks, kind.statistic)
            row.values[key] = None if worst is None else getattr(worst, kind.statistic)
            row.unknown.pop(key, None)
            if worst is not None and row.values[key] is not None:
                row.leaks[key] = worst
            else:
                row.unknown[key] = _why(cells, kind.leaks)
        if attacked := any(cell.status != "not_run" for cell in cells):
            row.stage = effort
        return attacked

    def _unmet(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the limits that no candidate kept, each with how near one came; where each was kept, the nearest miss.

        Of a limit on what leaks the candidates count that were attacked: the others break a limit already.
        """
        found = []
        for limit in self.limits:
            asked = [row for row in rows if limit.kind.key in row.values]
            known = [row for row in asked if row.values[limit.kind.key] is not None] or asked
            if known and not any(limit.holds(row.values[limit.kind.key]) for row in known):
                nearest = min(known, key=lambda row: limit.excess(row.values[limit.kind.key]))
                found.append(self._miss(limit, nearest, alone=True, among=len(known)))
        if found or not rows:
            return found
        nearest = min(rows, key=lambda row: self._distance(row))
        return [self._miss(limit, nearest, alone=False, among=len(rows)) for limit in nearest.fails(self.limits)]

    def _unmeasured(self, rows: Sequence[Row]) -> dict[str, str]:
        """Return the limits on what leaks that were asked of candidates and measured at none, each with the reason."""
        found = {}
        for key in (limit.kind.key for limit in self._limits(leaks=True)):
            asked = [row for row in rows if key in row.values]
            if asked and all(row.values[key] is None for row in asked):
                found[key] = asked[0].unknown[key]
        return found

    def _distance(self, row: Row) -> tuple[bool, bool, int, float]:
        broken = row.fails(self.limits)
        shares = [limit.excess(row.values[limit.kind.key]) / max(abs(limit.value), 1e-9) for limit in broken]
        # One that was stopped by its cost is not known to leak less than one that was attacked.
        return not row.stage, bool(row.unknown), len(broken), sum(shares) if broken else math.inf

    def _miss(self, limit: Limit, row: Row, *, alone: bool, among: int) -> dict[str, Any]:
        key = limit.kind.key
        value = row.values[key]
        return {
            "key": key,
            "limit": limit.value,
            "unit": limit.kind.unit,
            "value": value,
            "excess": None if value is None else limit.excess(value),
            **self._uncertainty(limit, row),
            "alone": alone,
            "among": among,
            "reason": row.unknown.get(key, ""),
            "nearest": _named(row),
        }

    def _uncertainty(self, limit: Limit, row: Row) -> dict[str, Any]:
        """Return what a value rests on: the number in the middle, the ends around it, of how many, and by whom."""
        key, costs = limit.kind.key, row.costs
        if worst := row.leaks.get(key):
            middle, low, high = worst.around(limit.kind.statistic)
            by = {"attack": worst.attack, "attacker": worst.attacker, "lower_bound": worst.lower_bound}
            tested = {"stage": row.stage, "confirmed": row.confirmed, "n_failed": worst.n_failed, **by}
            return {"middle": middle, "low": low, "high": high, "n": worst.n, **tested}
        count = len(self.sweep.base.source)
        if key == "min-utility" and (share := costs.utility.get("agreement")) is not None:
            low, high = wilson(share, count)
            return {"low": low, "high": high, "n": count}
        if key == "min-utility":
            return {"n": count}
        if key == "max-milliseconds":
            return {"low": costs.device_ms.least, "high": costs.device_ms.most}
        return {}

    def _said(self, row: Row) -> dict[str, Any]:
        return {
            **_named(row),
            **asdict(row.costs),
            "status": row.status,
            "stage": row.stage,
            "confirmed": row.confirmed,
            "fails": [limit.kind.key for limit in row.breaks(self.limits)],
            "unknown": row.unknown,
            "unrun": row.unrun,
            "values": row.values,
            "leaks": {key: asdict(worst) for key, worst in row.leaks.items()},
        }


def needed(limits: Sequence[Limit]) -> frozenset[Recovers]:
    """Return what has to be attacked for these limits: pictures, words, labels.

    Raises:
        LimitError: nothing limits what leaks.
    """
    found = frozenset(limit.kind.recovers for limit in limits if limit.kind.recovers is not None)
    if not found:
        raise LimitError(
            "no limit on what leaks: with those on cost alone the cheapest cut is the answer, however much comes back; "
            "add --max-psnr, --max-ssim, --max-caption-gain, --max-top1 or --max-rank1"
        )
    return found


def require_measurable(sweep: Sweep, limits: Sequence[Limit]) -> None:
    """Refuse a limit on what no attack here would measure.

    Raises:
        LimitError: the limit and what it lacks.
    """
    lacking = {
        "images": "--attack joint",
        "captions": "an adapter for this victim, --public with captions or --attack caprecover:adapter=FILE",
        "labels": "labels of the pictures, and --public with labels or --attack probe:adapter=FILE",
    }
    for limit in limits:
        kind = limit.kind
        if kind.recovers is None:
            continue
        if kind.recovers not in sweep.attacks:
            raise LimitError(f"--{kind.key} needs an attack that reads {kind.recovers}: {lacking[kind.recovers]}")
        bench = sweep.bench(sweep.settings[0], kind.recovers, SCREEN)
        if kind.leaks not in bench.metrics(kind.recovers):
            raise LimitError(
                f"--{kind.key} needs --gallery, with other pictures of the same people, and a face --judge"
            )
        reason = bench.unavailable(kind.recovers).get(kind.leaks)
        if reason is not None:
            raise LimitError(f"--{kind.key} cannot be had: {reason}")


def _named(row: Row) -> dict[str, Any]:
    setting = row.candidate.setting
    return {"layer": row.candidate.layer, "wire": setting.wire, "defenses": list(setting.defenses)}


def _why(cells: Sequence[Cell], metric: str) -> str:
    """Return why none of these cells measured a metric."""
    asked = [cell for cell in cells if metric in cell.spec.metrics]
    told = "; ".join(reasons(asked)) or "no attack on it was asked for"
    if all(cell.status == "not_run" for cell in asked):
        return f"nobody could be run: {told}"
    if all(cell.status != "done" for cell in asked):
        return f"every attack failed: {told}"
    lacking = next((cell.unavailable[metric] for cell in asked if metric in cell.unavailable), "")
    return f"not measured: {lacking or 'it has no value, or no control that it could be told from'}"
