"""`seepage audit` and `seepage report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..schema import Cell
from . import gates
from .console import complain, note, say, table
from .fetching import fetch_equipment, fetch_for
from .progress import AuditBar, attacker

if TYPE_CHECKING:
    from ..audit.plan import Forecast, Job

_NAMED = 10

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
    fail_if: Annotated[Many, typer.Option(help=gates.HELP)] = None,
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

    conditions = [gates.read(text) for text in fail_if or ()]
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
    gates.require_possible(conditions, bench)
    for sentence in filter(None, (bench.resized, bench.left_out)):
        note(sentence)
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
    held = gates.held(conditions, cells)
    for sentence in (*held, *filter(None, [gates.beside(conditions, cells)])):
        note(sentence)
    say(str(path))
    if any(cell.status == "failed" for cell in cells):
        return 3
    if unseen := gates.unseen(conditions, cells):
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
    told = None if redact else reports.sentences(cells)
    if told is not None:
        say("")
        table(*told)
    return Path(path)


def _lost(cells: Sequence[Cell]) -> list[str]:
    """Return a sentence for each sample that a finished cell lost, but for the many: the table shows what is left."""
    lost = [sample for cell in cells if cell.status == "done" for sample in cell.samples if sample.status == "failed"]
    named = (item.message if item.id in item.message else f"{item.id}: {item.message}" for item in lost)
    found = list(dict.fromkeys(f"seepage: failed: {message}" for message in named))
    more = len(found) - _NAMED
    return found if more <= 0 else [*found[:_NAMED], f"seepage: failed: {more} more, named in the report"]
