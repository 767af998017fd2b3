"""`seepage audit` and `seepage report`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..schema import Cell, Stats
from .console import complain, note, say, table
from .fetching import fetch_equipment, fetch_for
from .progress import AuditBar, attacker

if TYPE_CHECKING:
    from ..audit.plan import Forecast, Job
    from ..audit.workbench import Workbench

_CONDITION = re.compile(r"^\s*(?P<metric>\w+)(?:\.(?P<statistic>\w+))?\s*(?P<sign>[<>])\s*(?P<limit>[-+.\deE]+)\s*$")
_NAMED = 10
_STATISTICS = tuple(name for name in Stats.model_fields if name not in ("n", "n_failed", "corpus"))

Many = list[str] | None


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("audit")(audit)
    app.command("report")(report)


def audit(
    victim: Annotated[str | None, typer.Argument(help="SOURCE/NAME[@WEIGHTS]; the default is zoo/mobilenet_v2")] = None,
    images: Annotated[
        str | None, typer.Argument(help="a folder, a file or DATASET/SPLIT[@PATH]; the default is four photographs")
    ] = None,
    layer: Annotated[Many, typer.Option(help="where to cut; repeat for several (see `seepage layers`)")] = None,
    attack: Annotated[Many, typer.Option(help="NAME[:key=value,...]; repeat for several")] = None,
    defense: Annotated[Many, typer.Option(help="NAME[:key=value,...]; repeat for several")] = None,
    attacker: Annotated[Many, typer.Option(help="what the attacker knows of the defense")] = None,
    sends: Annotated[int | None, typer.Option(help="how often one picture is sent")] = None,
    metric: Annotated[Many, typer.Option(help="repeat for several (see `seepage metrics`)")] = None,
    wire: Annotated[str | None, typer.Option(help="fp32, fp16, bf16 or int8")] = None,
    public: Annotated[str | None, typer.Option(help="pictures that the attacker owns")] = None,
    gallery: Annotated[str | None, typer.Option(help="other pictures of the same people, to judge identities")] = None,
    leak: Annotated[str | None, typer.Option(help="score a stored dump whose rows are IMAGES")] = None,
    judge: Annotated[Many, typer.Option(help="an independent model: [label=]VICTIM or face=VICTIM[:LAYER]")] = None,
    effort: Annotated[str | None, typer.Option(help="quick, standard or full: what an attack may spend")] = None,
    size: Annotated[int | None, typer.Option(help="input size in pixels, where the victim allows another")] = None,
    limit: Annotated[int | None, typer.Option(help="use N pictures, spread over their labels")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of everything random")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps")] = None,
    workers: Annotated[int | None, typer.Option(help="processes that run cells")] = None,
    spec: Annotated[Path | None, typer.Option(help="the same settings from a YAML file; options win over it")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="output folder")] = None,
    fail_if: Annotated[Many, typer.Option(help='"METRIC[.STAT]>X": exit 1 where it holds in any cell')] = None,
    redact: Annotated[bool, typer.Option("--redact", help="no picture and no file name in anything written")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the cells and what they should take")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> int:
    """Audit a victim: what comes back from its features, at which layer, how sure that is.

    Without arguments: MobileNetV2, four photographs, its five default cuts, the default attacks, quickly. The last line
    on stdout is the path of the HTML report; the same command again finishes what is missing.
    """
    from ..audit.judges import judges_of
    from ..audit.plan import forecast, jobs
    from ..audit.request import Request, read_spec
    from ..audit.run import run_audit
    from ..audit.workbench import Workbench

    conditions = [_condition(text) for text in fail_if or ()]
    given: dict[str, Any] = {
        "victim": victim,
        "images": images,
        "layers": layer,
        "attacks": attack,
        "defenses": defense,
        "attackers": attacker,
        "sends": sends,
        "metrics": metric,
        "wire": wire,
        "public": public,
        "gallery": gallery,
        "leak": leak,
        "judges": judge,
        "effort": effort,
        "size": size,
        "limit": limit,
        "seed": seed,
        "device": device,
        "workers": workers,
        "redact": redact or None,
    }
    values = read_spec(spec) if spec is not None else {}
    values |= {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None and v != []}
    if not any(key in values for key in ("victim", "images")):
        values.setdefault("effort", "quick")
    request = Request(**values)
    fetch_for(request.victim, *judges_of(request))
    bench = Workbench(request)
    grid = jobs(bench)
    fetch_equipment(bench.attack(text) for text in dict.fromkeys(job.spec.attack for job in grid))
    _check(conditions, bench)
    if bench.resized:
        note(bench.resized)
    expected = forecast(bench, grid)
    if dry_run:
        _print_forecast(grid, expected)
        return 0
    folder = output or request.folder()
    with AuditBar({job.key: item.seconds for job, item in zip(grid, expected)}) as progress:
        cells = run_audit(request, folder, listener=progress, bench=bench, debug=debug)
    path = _finish(folder, cells, request.redact)
    for sentence in _lost(cells):
        note(sentence)
    held = _held(conditions, cells)
    for sentence in held:
        note(sentence)
    say(str(path))
    if any(cell.status == "failed" for cell in cells):
        return 3
    if unseen := _unseen(conditions, cells):
        complain(unseen)
        return 2
    return 1 if held else 0


def report(
    folder: Annotated[Path, typer.Argument(help="an audit's output folder")],
    redact: Annotated[bool, typer.Option("--redact", help="no picture and no file name in the report")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> int:
    """Rebuild the report of an audit from its records."""
    from ..store import RESULTS, Store, StoreError

    if not (folder / RESULTS).exists():
        raise StoreError(f"no {RESULTS} in {folder}; expected the output folder of an audit, as its -o named it")
    cells = list(Store(folder).cells().values())
    if not cells:
        raise StoreError(f"{folder} holds no finished cell yet; the same audit again with -o {folder} finishes some")
    say(str(_finish(folder, cells, redact)))
    return 0


def _print_forecast(grid: Sequence[Job], expected: Sequence[Forecast]) -> None:
    attacked = any(job.spec.defenses for job in grid)
    rows = []
    for job, item in zip(grid, expected):
        names = (job.spec.layer, job.spec.attack.partition(":")[0], *([attacker(job.spec)] if attacked else []))
        rows.append((*names, f"{item.seconds / 60:.1f}", f"{item.bytes / 1e6:.1f}"))
    minutes, size = sum(item.seconds for item in expected) / 60, sum(item.bytes for item in expected) / 1e6
    columns = ("layer", "attack", *(["attacker"] if attacked else []), "minutes", "MB")
    total = (f"{len(grid)} cells", *([""] * (len(columns) - 3)), f"{minutes:.1f}", f"{size:.1f}")
    table(columns, [*rows, total], right=columns[-2:])


def _finish(folder: Path, cells: Sequence[Cell], redact: bool) -> Path:
    from .. import report as reports

    path = reports.write(cells, folder, redact=redact)
    columns, rows = reports.rows(cells)
    table(columns, rows, right=columns[2:])
    return Path(path)


@dataclass(frozen=True)
class _Condition:
    text: str
    metric: str
    statistic: str
    sign: str
    limit: float


def _condition(text: str) -> _Condition:
    """Read `METRIC[.STAT]>X`; the statistic is `worst` unless named."""
    from ..audit.request import RequestError
    from ..registry import suggest

    match = _CONDITION.match(text)
    if match is None:
        raise RequestError(f"--fail-if {text!r}: expected METRIC[.STAT]>X, e.g. 'psnr.worst>20'")
    statistic = match["statistic"] or "worst"
    if statistic not in _STATISTICS:
        raise RequestError(f"--fail-if {text!r}: no statistic {statistic!r}{suggest(statistic, _STATISTICS)}")
    try:
        limit = float(match["limit"])
    except ValueError:
        raise RequestError(f"--fail-if {text!r}: {match['limit']!r} is no number") from None
    return _Condition(text, match["metric"], statistic, match["sign"], limit)


def _check(conditions: Sequence[_Condition], bench: Workbench) -> None:
    """Refuse a gate that could not fail.

    Raises:
        RequestError: the audit has no such metric, or cannot have it here.
    """
    from ..audit.request import RequestError
    from ..registry import suggest

    for condition in conditions:
        if condition.metric not in bench.all_metrics:
            near = suggest(condition.metric, bench.all_metrics)
            raise RequestError(f"--fail-if {condition.text!r}: no metric {condition.metric!r}{near}")
        asked = [bench.unavailable(kind) for kind in bench.recovered if condition.metric in bench.metrics(kind)]
        if all(condition.metric in reasons for reasons in asked):
            reason = asked[0][condition.metric]
            raise RequestError(f"--fail-if {condition.text!r}: {condition.metric} cannot be had: {reason}")


def _unseen(conditions: Sequence[_Condition], cells: Sequence[Cell]) -> str:
    """Return why a gate says nothing: a metric that no cell could measure is no pass."""
    for condition in conditions:
        if not any(condition.metric in cell.summary for cell in cells):
            reason = next((cell.message for cell in cells if cell.message), "no attack here gives what it reads")
            return f"--fail-if {condition.text!r}: no cell measured {condition.metric}: {reason}"
    return ""


def _lost(cells: Sequence[Cell]) -> list[str]:
    """Return a sentence for each sample that a finished cell lost, but for the many: the table shows what is left."""
    lost = [sample for cell in cells if cell.status == "done" for sample in cell.samples if sample.status == "failed"]
    named = (item.message if item.id in item.message else f"{item.id}: {item.message}" for item in lost)
    found = list(dict.fromkeys(f"seepage: failed: {message}" for message in named))
    more = len(found) - _NAMED
    return found if more <= 0 else [*found[:_NAMED], f"seepage: failed: {more} more, named in the report"]


def _held(conditions: Sequence[_Condition], cells: Sequence[Cell]) -> list[str]:
    """Return a sentence for each condition that holds in some cell; NaN holds, since it shows nothing."""
    sentences = []
    for condition in conditions:
        for cell in cells:
            stats = cell.summary.get(condition.metric)
            value = None if stats is None else getattr(stats, condition.statistic)
            if value is None:
                continue
            beyond = value > condition.limit if condition.sign == ">" else value < condition.limit
            if beyond or math.isnan(value):
                known = f" ({attacker(cell.spec)})" if cell.spec.defenses else ""
                where = f"at {cell.spec.layer} by {cell.spec.attack.partition(':')[0]}{known}"
                sentences.append(f"--fail-if {condition.text}: {condition.statistic} is {value:.4g} {where}")
                break
    return sentences
