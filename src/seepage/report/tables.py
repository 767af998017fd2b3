"""Cells as rows: for the page and for a terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..schema import Cell, Stats
from . import text
from .findings import kind, leading
from .glossary import Measure, control_name, measure, ordered
from .limits import beside_error, beside_rank, error_over_bound, rank_share
from .protection import defense_seconds
from .verdict import Verdict, highest_ceiling, residual_median, strongest_control, verdicts, work_share
from .words import setting_name

STATISTICS: tuple[tuple[str, str], ...] = (
    ("mean", "Mean and 95 % interval"),
    ("median", "Median"),
    ("range", "Least and most"),
    ("worst", "Worst decile"),
    ("control", "Strongest control"),
    ("ceiling", "Ceiling"),
    ("recovery", "Recovery"),
)

_TERSE = ("psnr", "ssim", "agreement")
_TERSE_SAID = ("cider", "rouge_l", "nll_gap", "top1")

Sort = float | int | str | None


@dataclass(frozen=True)
class Value:
    """What stands in one field: its text, a second line under it, and what it is sorted by."""

    text: str
    sort: Sort
    detail: str = ""
    statistic: str = ""


@dataclass(frozen=True)
class Column:
    """A column: its heading, what explains it, and the field of a cell: one value, or one for each of `STATISTICS`."""

    title: str
    field: Callable[[Cell], tuple[Value, ...]]
    numeric: bool = True
    hint: str = ""


@dataclass(frozen=True)
class Row:
    """One cell's fields."""

    cell: Cell
    best: bool
    fields: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Table:
    """The full table."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def statistics(cells: Sequence[Cell]) -> tuple[tuple[str, str], ...]:
    """Return those of `STATISTICS` that a reader can choose: a ceiling only where a metric has one."""
    capped = any(cell.ceilings for cell in cells)
    return tuple(pair for pair in STATISTICS if capped or pair[0] != "ceiling")


def table(judged: Sequence[Verdict]) -> Table:
    """Return one row a cell, settings apart, layers in order, the strongest attack first."""
    cells = [cell for verdict in judged for cell in verdict.cells]
    best = {key for verdict in judged for key in leading(verdict)}
    names = {cell.key: verdict.attack(cell) for verdict in judged for cell in verdict.cells}
    depth = {layer.layer: layer.cut.index for verdict in judged for layer in verdict.layers if layer.cut is not None}
    metrics = [_metric_column(measure(key, cells)) for key in ordered({key for cell in cells for key in cell.summary})]
    columns: tuple[Column, ...] = (
        Column("Layer", lambda cell: _one(cell.spec.layer, depth.get(cell.spec.layer)), False, "sorted by depth"),
        Column(
            "Attack",
            lambda cell: _one(_starred(names[cell.key], cell.key in best), names[cell.key]),
            False,
            "★ the strongest of its layer",
        ),
    )
    # What is the same in every row says least: it stands behind the figures.
    apart = {column.title: len({column.field(cell) for cell in cells}) > 1 for column in _MEANS}
    columns += (
        *(column for column in _MEANS if apart[column.title]),
        *metrics,
        *_figures(cells),
        *(column for column in _MEANS if not apart[column.title]),
        Column("Status", lambda cell: (Value(_status(cell), cell.status, cell.message),), False),
    )
    rows = [
        Row(cell, cell.key in best, tuple(column.field(cell) for column in columns))
        for verdict in judged
        for layer in verdict.layers
        for cell in sorted(layer.cells, key=lambda cell: _order(cell, cell.key in best))
    ]
    return Table(columns, tuple(rows))


def rows(cells: Sequence[Cell]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return what a terminal shows of an audit: the names of the columns and one row a cell.

    The strongest attack of a layer carries a star. Names come first and as two columns, then numbers: the metrics that
    decide, or where none of them was measured, those that were.
    """
    present = {key for cell in cells for key in cell.summary}
    keys = [key for key in _TERSE if key in present]
    keys += [key for key in _TERSE_SAID if key in present and any(kind(cell) != "images" for cell in cells)]
    keys = keys or list(ordered(present))
    scales = [measure(key, cells) for key in keys]
    titles = [f"{scale.label} {scale.unit}".strip() for scale in scales]
    if titles:
        titles[0] += " [95 %]"
    judged = verdicts(cells)
    shown = []
    for verdict in judged:
        where, best = setting_name(verdict, judged), leading(verdict)
        for layer in verdict.layers:
            for cell in sorted(layer.cells, key=lambda cell: _order(cell, cell.key in best)):
                name = _starred(verdict.attacker(cell), cell.key in best)
                name = name if cell.status == "done" else f"{name}: {_status(cell)}"
                place = f"{layer.layer} [{where}]" if where else layer.layer
                shown.append((text.plain(place), text.plain(name), *_terse(cell, scales)))
    return ("layer", "attack", *titles, "recovery", "seconds"), tuple(shown)


def _order(cell: Cell, best: bool) -> tuple[bool, bool, float]:
    mse = cell.summary["mse"].mean if "mse" in cell.summary else math.inf
    return cell.status != "done", not best, math.inf if math.isnan(mse) else mse


def _one(shown: str, sort: Sort) -> tuple[Value, ...]:
    return (Value(shown, sort),)


def _status(cell: Cell) -> str:
    return cell.status.replace("_", " ")


def _starred(name: str, best: bool) -> str:
    return f"{name} ★" if best else name


def _attacker(cell: Cell) -> tuple[Value, ...]:
    shown = cell.spec.attacker + (f" ×{cell.spec.sends}" if cell.spec.sends > 1 else "")
    return _one(shown, shown)


def _defense(cell: Cell) -> tuple[Value, ...]:
    shown = text.defenses(cell.spec.defenses)
    return _one(shown or "none", shown)


_MEANS = (
    Column("Attacker", _attacker, False, "what the attacker knows of a defense"),
    Column("Defense", _defense, False),
    Column("Wire", lambda cell: _one(cell.spec.wire, cell.spec.wire), False, "number format on the way"),
)


def _metric_column(scale: Measure) -> Column:
    title = f"{scale.label} ({scale.unit})" if scale.unit else scale.label
    return Column(title, lambda cell: _metric(cell, scale.key), hint=scale.told)


def _metric(cell: Cell, key: str) -> tuple[Value, ...]:
    scale = measure(key, (cell,))
    stats = cell.summary.get(key)
    if stats is None:
        reason = cell.unavailable.get(key, "")
        return tuple(Value(text.NONE, None, "not available" if reason else "", name) for name, _ in STATISTICS)
    control = strongest_control(cell, key)
    rest = "" if control is None else control_name(control[0])
    ceiling = highest_ceiling(cell, key)
    cap = "" if ceiling is None else control_name(ceiling[0])
    least, most = (stats.min, stats.max) if scale.higher_leaks else (stats.max, stats.min)
    return (
        Value(scale.show(stats.mean), _sortable(stats.mean), _beside(scale, stats, ceiling), "mean"),
        Value(scale.show(stats.median), _sortable(stats.median), "", "median"),
        Value(f"{scale.show(least)} to {scale.show(most)}", _sortable(most), "", "range"),
        Value(scale.show(stats.worst), _sortable(stats.worst), "", "worst"),
        Value(scale.show(None if control is None else control[1].mean), _sortable(control and control[1].mean), rest,
              "control"),
        Value(scale.show(None if ceiling is None else ceiling[1].mean), _sortable(ceiling and ceiling[1].mean), cap,
              "ceiling"),
        _recovery(stats, "recovery"),
    )  # fmt: skip


def _beside(scale: Measure, stats: Stats, ceiling: tuple[str, Stats] | None) -> str:
    """What stands under a mean: its interval, the corpus' value where that is another, and how far it could go."""
    said = [scale.interval(stats)]
    if stats.corpus is not None:
        ends = ""
        if stats.corpus_low is not None and stats.corpus_high is not None:
            ends = f" ({scale.show(stats.corpus_low)} to {scale.show(stats.corpus_high)})"
        said.append(f"over the corpus: {scale.show(stats.corpus)}{ends}")
    if ceiling is not None:
        name, person = ceiling
        whole = "" if person.corpus is None else f", over the corpus: {scale.show(person.corpus)}"
        said.append(f"{control_name(name)}: {scale.show(person.mean)}{whole}")
    return "; ".join(said)


def _recovery(stats: Stats | None, statistic: str = "") -> Value:
    if stats is None or stats.recovery is None:
        return Value(text.NONE, None, "", statistic)
    interval = ""
    if stats.recovery_low is not None and stats.recovery_high is not None:
        interval = f"{text.recovery(stats.recovery_low)} to {text.recovery(stats.recovery_high)}"
    return Value(text.recovery(stats.recovery), _sortable(stats.recovery), interval, statistic)


def _figures(cells: Sequence[Cell]) -> tuple[Column, ...]:
    utilities = sorted({key for cell in cells for key in cell.utility})
    bounds = [(cell.bound, cell.spec.defenses) for cell in cells if cell.bound is not None]
    bounded = any(bound.mse is not None for bound, _ in bounds)
    # Without a defense no bound is expected, and its reason is no news.
    explained = bounded or any(bound.reason and defenses for bound, defenses in bounds)
    ranked = any(bound.rank is not None for bound, _ in bounds)
    return (
        Column(
            "Recovery",
            lambda cell: (_recovery(cell.summary.get("mse")),),
            hint="of the MSE: 0 % the strongest control, 100 % the original",
        ),
        Column("Residual", _residual, hint="median, relative to the leak"),
        *(_utility_column(key) for key in utilities),
        *([_BOUND] if explained else []),
        *([_OVER_BOUND] if bounded else []),
        *([_RANK] if ranked else []),
        Column("Sent", lambda cell: _one(text.size(cell.bytes_per_image), cell.bytes_per_image), hint="a picture"),
        *([_DEFENSE_TIME] if any(defense_seconds(cell) for cell in cells) else []),
        Column("On device", _on_device, hint="share of the multiply-adds before the cut"),
        Column("n", _count, hint="pictures that did not fail, of all"),
        Column("Time", _time, hint="fitting and recovering, all pictures"),
        Column("Passes", _passes, hint="through the model up to the cut, a picture"),
    )


def _residual(cell: Cell) -> tuple[Value, ...]:
    residual = residual_median(cell)
    return _one(text.residual(residual), _sortable(residual))


def _utility_column(key: str) -> Column:
    def field(cell: Cell) -> tuple[Value, ...]:
        value = cell.utility.get(key)
        return _one(text.percent(value) if key == "agreement" else text.number(value, 3), _sortable(value))

    return Column(f"Utility: {key}", field, hint="of what the rightful next stage gets, against the uncut model")


def _bound(cell: Cell) -> tuple[Value, ...]:
    if cell.bound is None:
        return _one(text.NONE, None)
    return (Value(text.significant(cell.bound.mse), _sortable(cell.bound.mse), cell.bound.reason),)


def _over_bound(cell: Cell) -> tuple[Value, ...]:
    over = error_over_bound(cell)
    return (Value(text.NONE if over is None else f"×{text.significant(over)}", _sortable(over), beside_error(cell)),)


def _rank(cell: Cell) -> tuple[Value, ...]:
    share = rank_share(cell.bound)
    return (Value(text.share(share), _sortable(share), beside_rank(cell.bound)),)


_BOUND = Column("Bound on MSE", _bound, hint="no attacker has less on average over pictures with natural spectra")
_OVER_BOUND = Column("MSE over bound", _over_bound, hint="how far the attack is from what is possible")
_RANK = Column("Told of", _rank, hint="share of a picture's directions that move the features: the Jacobian's rank")


def _defense_time(cell: Cell) -> tuple[Value, ...]:
    spent = defense_seconds(cell)
    return _one(text.NONE if spent is None else text.milliseconds(spent), spent)


_DEFENSE_TIME = Column("Defense time", _defense_time, hint="protecting a picture and undoing it for the next stage")


def _on_device(cell: Cell) -> tuple[Value, ...]:
    share = work_share(cell.cut)
    return _one(text.share(share), share)


def _count(cell: Cell) -> tuple[Value, ...]:
    n = len(cell.samples)
    good = n - sum(sample.status == "failed" for sample in cell.samples)
    return _one(str(n) if good == n else f"{good} of {n}", good)


def _time(cell: Cell) -> tuple[Value, ...]:
    spent = None if cell.cost is None else cell.cost.fit_seconds + cell.cost.seconds
    return _one(text.duration(spent), spent)


def _passes(cell: Cell) -> tuple[Value, ...]:
    passes = None if cell.cost is None or not cell.samples else cell.cost.passes / len(cell.samples)
    return _one(text.number(passes, 0), passes)


def _sortable(value: float | None) -> float | None:
    if value is None or math.isnan(value):
        return None
    return math.copysign(sys.float_info.max, value) if math.isinf(value) else value


def _terse(cell: Cell, scales: Sequence[Measure]) -> tuple[str, ...]:
    having = [(scale, cell.summary.get(scale.key)) for scale in scales]
    means = [text.NONE if stats is None else scale.show(stats.mean) for scale, stats in having]
    if having and having[0][1] is not None:
        means[0] += f" [{having[0][0].interval(having[0][1])}]"
    seconds = None if cell.cost is None else cell.cost.fit_seconds + cell.cost.seconds
    recovered = cell.summary["mse"].recovery if "mse" in cell.summary else None
    return (*means, text.recovery(recovered), text.number(seconds, 1))
