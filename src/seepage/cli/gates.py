"""`--fail-if`: conditions on what leaks, judged on what is sent."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..schema import Cell, Stats
from .progress import attacker

if TYPE_CHECKING:
    from ..audit.workbench import Workbench

HELP = (
    '"METRIC[.STAT]>X": exit 1 where it holds in any cell, of an audit with defenses in any defended one; STAT is '
    "worst unless named, worst_high what advise limits: the upper end of its 95 % interval"
)
WORST_HIGH = "worst_high"
_FORM = re.compile(r"^\s*(?P<metric>\w+)(?:\.(?P<statistic>\w+))?\s*(?P<sign>[<>])\s*(?P<limit>[-+.\deE]+)\s*$")
_STATISTICS = (*(name for name in Stats.model_fields if name not in ("n", "n_failed", "corpus")), WORST_HIGH)


@dataclass(frozen=True)
class Condition:
    """One `--fail-if` as it was given, and what it says."""

    text: str
    metric: str
    statistic: str
    sign: str
    limit: float

    def value(self, cell: Cell) -> float | None:
        """Return the number of a cell that it is on, None where there is none."""
        from ..studies.leakage import of

        if self.statistic == WORST_HIGH:
            worst = of(cell, self.metric)
            return None if worst is None else worst.upper
        stats = cell.summary.get(self.metric)
        value: float | None = None if stats is None else getattr(stats, self.statistic)
        return value

    def holds(self, value: float) -> bool:
        """Return whether a number trips it; NaN does, since it shows nothing."""
        return self.beyond(value) > 0

    def beyond(self, value: float) -> float:
        """Return how far a number lies beyond the limit."""
        if math.isnan(value):
            return math.inf
        return value - self.limit if self.sign == ">" else self.limit - value


def read(text: str) -> Condition:
    """Read `METRIC[.STAT]>X`; the statistic is `worst` unless named.

    Raises:
        RequestError: it cannot be read.
    """
    from ..audit.request import RequestError
    from ..registry import suggest

    match = _FORM.match(text)
    if match is None:
        raise RequestError(f"--fail-if {text!r}: expected METRIC[.STAT]>X, e.g. 'psnr.worst>20'")
    statistic = match["statistic"] or "worst"
    if statistic not in _STATISTICS:
        raise RequestError(f"--fail-if {text!r}: no statistic {statistic!r}{suggest(statistic, _STATISTICS)}")
    try:
        limit = float(match["limit"])
    except ValueError:
        raise RequestError(f"--fail-if {text!r}: {match['limit']!r} is no number") from None
    return Condition(text, match["metric"], statistic, match["sign"], limit)


def require_possible(conditions: Sequence[Condition], bench: Workbench) -> None:
    """Refuse a gate that could not fail.

    Raises:
        RequestError: the audit has no such metric or statistic, or cannot have it here.
    """
    from ..audit.request import RequestError
    from ..registry import suggest

    for condition in conditions:
        metric = bench.all_metrics.get(condition.metric)
        if metric is None:
            near = suggest(condition.metric, bench.all_metrics)
            raise RequestError(f"--fail-if {condition.text!r}: no metric {condition.metric!r}{near}")
        if condition.statistic == WORST_HIGH and not metric.higher_means_more_leakage:
            raise RequestError(
                f"--fail-if {condition.text!r}: {WORST_HIGH} is of metrics of which more is more leakage, such as "
                f"psnr; of {condition.metric} less is"
            )
        asked = [bench.unavailable(kind) for kind in bench.recovered if condition.metric in bench.metrics(kind)]
        if all(condition.metric in reasons for reasons in asked):
            reason = asked[0][condition.metric]
            raise RequestError(f"--fail-if {condition.text!r}: {condition.metric} cannot be had: {reason}")


def judged(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells of what is sent: where there are defenses the defended ones, the others are for comparison."""
    return [cell for cell in cells if cell.spec.defenses] or list(cells)


def held(conditions: Sequence[Condition], cells: Sequence[Cell]) -> list[str]:
    """Return a sentence for each condition that holds in some cell of what is sent, with the one farthest beyond it."""
    sentences = []
    for condition in conditions:
        known = [(value, cell) for cell in judged(cells) if (value := condition.value(cell)) is not None]
        if tripped := [(value, cell) for value, cell in known if condition.holds(value)]:
            value, cell = max(tripped, key=lambda item: condition.beyond(item[0]))
            who = f" ({attacker(cell.spec)}), of the defended cells" if cell.spec.defenses else ""
            where = f"at {cell.spec.layer} by {cell.spec.attack.partition(':')[0]}{who}"
            sentences.append(f"--fail-if {condition.text}: {condition.statistic} is {value:.4g} {where}")
    return sentences


def beside(conditions: Sequence[Condition], cells: Sequence[Cell]) -> str:
    """Say that a gate does not judge the undefended leak; empty where it judges all there is."""
    left = len(cells) - len(judged(cells))
    if not conditions or not left:
        return ""
    return f"seepage: --fail-if judges what is sent, the defended cells; not the {left} undefended beside them"


def unseen(conditions: Sequence[Condition], cells: Sequence[Cell]) -> str:
    """Return why a gate says nothing: what no cell could measure is no pass."""
    for condition in conditions:
        sent = judged(cells)
        if all(condition.value(cell) is None for cell in sent):
            reason = next((cell.message for cell in sent if cell.message), "no attack here gives what it reads")
            what = condition.metric
            if any(what in cell.summary for cell in sent):
                what, reason = f"{what}.{condition.statistic}", "it has none here"
            among = "no defended cell" if sent[0].spec.defenses else "no cell"
            return f"--fail-if {condition.text!r}: {among} measured {what}: {reason}"
    return ""
