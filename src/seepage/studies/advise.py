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
from .leakage import Worst, worst_of
from .limits import Limit, LimitError
from .sweep import Candidate, Sweep, Task, run

SCREEN = "quick"
SCREENING = (NONE, "aware:estimate", "aware:retrained")
"""Who screens: the undefended leak's attacker, and of a defense's those who take its law's guess or learn from it."""

Status = Literal["advised", "refused", "struck", "unconfirmed", "skipped"]
"""Found; breaks a limit on cost or utility, or in the screen; breaks one in confirmation; not looked at, since as many
as might be confirmed were struck; not looked at, since it costs more than the one found."""


@dataclass
class Row:
    """One candidate: what it costs, what is known of it by limit, and what became of it."""

    candidate: Candidate
    costs: Costs
    status: Status = "skipped"
    values: dict[str, float | None] = field(default_factory=dict)
    leaks: dict[str, Worst] = field(default_factory=dict)
    stage: str = ""
    reason: str = ""

    def fails(self, limits: Sequence[Limit]) -> list[Limit]:
        """Return the limits that are known to be broken, or that nothing was measured of."""
        return [limit for limit in limits if limit.kind.key in self.values and not limit.holds(self._value(limit))]

    def _value(self, limit: Limit) -> float | None:
        return self.values[limit.kind.key]


@dataclass
class Advisor:
    """Screens the candidates that keep to the limits on cost and utility, and confirms the cheapest that pass.

    Screening and confirming go by cost, cheapest first, and end at the first that is confirmed: whatever costs more
    could not be the answer. At most `most` are confirmed.
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
            if not self._audited(row, SCREEN):
                row.status = "refused"
                continue
            confirmed += 1
            if self._audited(row, self.effort):
                row.status = "advised"
                break
            row.status = "struck"
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
            "rows": [self._said(row) for row in rows],
            "missing": self.sweep.left_out(),
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
            names = " and ".join(f"--{limit.kind.key} {limit.value:g}" for limit in known)
            raise LimitError(
                f"{names} contradict each other: each is kept by some of the {len(rows)} candidates, all of them by "
                "none; another --layer, --defense or --wire may"
            )

    def _audited(self, row: Row, effort: str) -> bool:
        """Attack a candidate and return whether it keeps to the limits on what leaks."""
        tasks = self.sweep.tasks([row.candidate], effort)
        if effort == SCREEN and self.effort != SCREEN:
            tasks = [task for task in tasks if task.job.spec.attacker in SCREENING]
        with nullcontext() if self.watch is None else self.watch(tasks) as listener:
            cells = run(tasks, self.folder, listener, self.debug)
        self.cells |= {cell.key: cell for cell in cells}
        row.stage, row.leaks = effort, {}
        for limit in self._limits(leaks=True):
            worst = worst_of(cells, limit.kind.leaks, limit.kind.statistic)
            row.values[limit.kind.key] = None if worst is None else getattr(worst, limit.kind.statistic)
            if worst is not None:
                row.leaks[limit.kind.key] = worst
            else:
                row.reason = next((cell.message for cell in cells if cell.message), "no attack measured it")
        return not row.fails(self.limits)

    def _unmet(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the limits that no candidate kept, each with how near one came; where each was kept, the nearest miss.

        Of a limit on what leaks the candidates count that were attacked: the others break a limit already.
        """
        found = []
        for limit in self.limits:
            having = [row for row in rows if limit.kind.key in row.values]
            if having and not any(limit.holds(row.values[limit.kind.key]) for row in having):
                nearest = min(having, key=lambda row: limit.excess(row.values[limit.kind.key]))
                found.append(self._miss(limit, nearest, alone=True, among=len(having)))
        if found or not rows:
            return found
        nearest = min(rows, key=lambda row: self._distance(row))
        return [self._miss(limit, nearest, alone=False, among=len(rows)) for limit in nearest.fails(self.limits)]

    def _distance(self, row: Row) -> tuple[bool, int, float]:
        broken = row.fails(self.limits)
        shares = [limit.excess(row.values[limit.kind.key]) / max(abs(limit.value), 1e-9) for limit in broken]
        # One that was stopped by its cost is not known to leak less than one that was attacked.
        return not row.stage, len(broken), sum(shares) if broken else math.inf

    def _miss(self, limit: Limit, row: Row, *, alone: bool, among: int) -> dict[str, Any]:
        value = row.values[limit.kind.key]
        return {
            "key": limit.kind.key,
            "limit": limit.value,
            "unit": limit.kind.unit,
            "value": value,
            "excess": None if value is None else limit.excess(value),
            "alone": alone,
            "among": among,
            "reason": row.reason,
            "nearest": _named(row),
        }

    def _said(self, row: Row) -> dict[str, Any]:
        return {
            **_named(row),
            **asdict(row.costs),
            "status": row.status,
            "stage": row.stage,
            "fails": [limit.kind.key for limit in row.fails(self.limits)],
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
