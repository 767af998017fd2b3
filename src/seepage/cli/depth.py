"""`seepage depth`: does a deeper cut leak less, of pictures, of words, of labels?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import note, say, say_json, table
from .fetching import fetch_equipment, fetch_for
from .progress import AuditBar


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("depth")(depth)


def depth(
    victim: Annotated[str, typer.Argument(help="SOURCE/NAME[@WEIGHTS]")],
    images: Annotated[str, typer.Argument(help="a folder, a file or DATASET/SPLIT[@PATH]")],
    layer: Annotated[list[str] | None, typer.Option(help="where to cut; the victim's default cuts unless told")] = None,
    attack: Annotated[
        list[str] | None, typer.Option(help="NAME[:key=value,...]; joint, and what reads words and labels, unless told")
    ] = None,
    public: Annotated[str | None, typer.Option(help="pictures that the attacker owns, to learn from")] = None,
    effort: Annotated[str, typer.Option(help="quick, standard or full: what an attack may spend")] = "standard",
    size: Annotated[int | None, typer.Option(help="input size in pixels, where the victim allows another")] = None,
    limit: Annotated[int | None, typer.Option(help="use N pictures, spread over their labels")] = None,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")] = "cpu",
    workers: Annotated[int, typer.Option(help="processes that run cells")] = 1,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="output folder")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print what was found as JSON")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> int:
    """Draw what leaks at each depth of a victim: pictures, captions and labels, from the same features.

    An audit runs, whose report and records lie in the output folder too; the same command again finishes what is
    missing. From each cut to the next the change is tested on the same pictures. The last line on stdout is the page's
    path.
    """
    from .. import report
    from ..audit.plan import forecast, jobs
    from ..audit.request import Request
    from ..audit.run import run_audit
    from ..files import replacing
    from ..report import depth as pages
    from ..studies.depth import bench_of, leakage

    asked = Request(
        victim,
        images,
        layers=tuple(dict.fromkeys(layer or ())),
        attacks=tuple(dict.fromkeys(attack or ())),
        public=public,
        effort=effort,
        size=size,
        limit=limit,
        seed=seed,
        device=device,
        workers=workers,
    )
    fetch_for(victim)
    bench = bench_of(asked)
    grid = jobs(bench)
    fetch_equipment(bench.attack(text) for text in bench.attacks)
    expected = forecast(bench, grid)
    folder = output or Path(f"{bench.request.folder()}-depth")
    with AuditBar({job.key: item.seconds for job, item in zip(grid, expected)}) as progress:
        cells = run_audit(bench.request, folder, listener=progress, bench=bench, debug=debug)
    record = leakage(bench, cells)
    report.write(cells, folder)
    with replacing(folder / "depth.json") as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    page = pages.write(record, folder / "depth.html")
    if as_json:
        say_json(record)
    else:
        table(pages.COLUMNS, pages.steps(record), right=("change", "95 % interval", "n"))
        for sentence in pages.sentences(record):
            note(sentence)
        say(str(page))
    for line in record["missing"]:
        note(f"seepage: {line}")
    return 3 if any(cell.status == "failed" for cell in cells) else 0
