"""`seepage frontier` and `seepage advise`: what each cut and defense buys and costs, and which to take."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import complain, note, say, say_json, table
from .fetching import fetch_equipment, fetch_for
from .progress import AuditBar

if TYPE_CHECKING:
    from ..audit.request import Request
    from ..schema import Cell
    from ..studies.sweep import Sweep, Task

Many = list[str] | None
Victim = Annotated[str, typer.Argument(help="SOURCE/NAME[@WEIGHTS]")]
Images = Annotated[str, typer.Argument(help="a folder, a file or DATASET/SPLIT[@PATH]")]
Layers = Annotated[Many, typer.Option("--layer", help="where to cut; the victim's default cuts unless told")]
Defenses = Annotated[
    Many,
    typer.Option(
        "--defense",
        help="NAME[:key=value,value,...], each value a strength to try; A+B is one after another; repeat for several; "
        "gaussian, quantize and prune unless told",
    ),
]
Wires = Annotated[Many, typer.Option("--wire", help="fp32, fp16, bf16 or int8; repeat for several; fp32 unless told")]
Attacks = Annotated[
    Many, typer.Option("--attack", help="NAME[:key=value,...]; joint, and what reads words and labels, unless told")
]
Attackers = Annotated[
    Many, typer.Option("--attacker", help="what the attacker knows of a defense; all but naive unless told")
]
Sends = Annotated[int, typer.Option(help="how often one picture is sent")]
Public = Annotated[str | None, typer.Option(help="pictures that the attacker owns, to learn from")]
GalleryOption = Annotated[str | None, typer.Option(help="other pictures of the same people, to judge identities")]
JudgeOption = Annotated[Many, typer.Option("--judge", help="face=VICTIM[:LAYER], who judges identities")]
Size = Annotated[int | None, typer.Option(help="input size in pixels, where the victim allows another")]
LimitOption = Annotated[int | None, typer.Option(help="use N pictures, spread over their labels")]
Seed = Annotated[int, typer.Option(help="seed of everything random")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")]
Workers = Annotated[int, typer.Option(help="processes that run cells")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="output folder")]
Json = Annotated[bool, typer.Option("--json", help="print what was found as JSON")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the grid and what it should take")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("frontier")(frontier)
    app.command("advise")(advise)


def frontier(
    victim: Victim,
    images: Images,
    layer: Layers = None,
    defense: Defenses = None,
    wire: Wires = None,
    attack: Attacks = None,
    attacker: Attackers = None,
    sends: Sends = 1,
    public: Public = None,
    gallery: GalleryOption = None,
    judge: JudgeOption = None,
    effort: Annotated[str, typer.Option(help="quick, standard or full: what an attack may spend")] = "quick",
    size: Size = None,
    limit: LimitOption = None,
    seed: Seed = 0,
    device: Device = "cpu",
    workers: Workers = 1,
    output: Output = None,
    as_json: Json = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> int:
    """Sweep cuts, defenses and their strengths: what leaks, what is kept of the model, what it costs.

    Every candidate is audited by those who know its defense; the same command again finishes what is missing. The page
    shows each as a point, those that nothing dominates marked. The last line on stdout is its path.
    """
    from .. import report
    from ..report import frontier as pages
    from ..studies import frontier as study
    from ..studies.costs import Costing
    from ..studies.sweep import Sweep, expected, run, settings

    asked = _request(victim, images, layer, attack, public, gallery, judge, effort, size, limit, seed, device, workers)
    swept = settings(defense or (), tuple(wire or ()))
    _fetch(victim, judge)
    sweep = Sweep(asked, swept, tuple(attacker or ()), sends)
    tasks = study.tasks(sweep)
    fetch_equipment(task.bench.attack(task.job.spec.attack) for task in tasks)
    if dry_run:
        _print_grid(sweep, tasks, effort)
        return 0
    folder = output or _folder(sweep, "frontier")
    weights = {key: seconds for key, (seconds, _) in expected(_missing(tasks, folder)).items()}
    with AuditBar({task.job.key: weights.get(task.job.key, 0.0) for task in tasks}) as progress:
        cells = run(tasks, folder, progress, debug)
    record = study.record(sweep, cells, Costing(sweep, folder))
    report.write(cells, folder)
    _write(record, folder / "frontier.json")
    page = pages.write(record, folder)
    if as_json:
        say_json(_spelt(record))
    else:
        table(pages.COLUMNS, pages.rows(record), right=("utility", "bytes", "device", "ms"))
        for sentence in pages.sentences(record):
            note(sentence)
        say(str(page))
    for line in record["missing"]:
        note(f"seepage: {line}")
    return _code(cells)


def advise(
    victim: Victim,
    images: Images,
    max_psnr: Annotated[str | None, typer.Option(help="most decibels that a recovered picture may have")] = None,
    max_ssim: Annotated[str | None, typer.Option(help="most SSIM that a recovered picture may have")] = None,
    max_caption_gain: Annotated[
        str | None, typer.Option(help="most CIDEr over the strongest control, as a share of the way to the truth")
    ] = None,
    max_top1: Annotated[str | None, typer.Option(help="largest share of labels read")] = None,
    max_rank1: Annotated[str | None, typer.Option(help="largest share of people recognised; needs --gallery")] = None,
    min_utility: Annotated[str | None, typer.Option(help="least share of answers that stay the same")] = None,
    max_bytes: Annotated[str | None, typer.Option(help="most bytes a picture, as 200k or 1.5M")] = None,
    max_device_macs: Annotated[str | None, typer.Option(help="most multiply-adds on the device, as 50M")] = None,
    max_server_macs: Annotated[str | None, typer.Option(help="most multiply-adds on the server, as 1G")] = None,
    max_milliseconds: Annotated[str | None, typer.Option(help="most milliseconds a picture on the device")] = None,
    minimise: Annotated[str, typer.Option(help="device-macs, bytes or milliseconds (the device's)")] = "device-macs",
    confirm: Annotated[int, typer.Option(min=1, help="confirm at most N candidates that pass the screen")] = 5,
    layer: Layers = None,
    defense: Defenses = None,
    wire: Wires = None,
    attack: Attacks = None,
    attacker: Attackers = None,
    sends: Sends = 1,
    public: Public = None,
    gallery: GalleryOption = None,
    judge: JudgeOption = None,
    effort: Annotated[str, typer.Option(help="quick, standard or full: what confirming may spend")] = "standard",
    size: Size = None,
    limit: LimitOption = None,
    seed: Seed = 0,
    device: Device = "cpu",
    workers: Workers = 1,
    output: Output = None,
    as_json: Json = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> int:
    """Name the cut, wire and defense that keep to every limit at least cost, or the limit that cannot be kept.

    Candidates are screened by cheap attacks, the cheapest that pass confirmed by the strongest. A limit on what leaks
    is kept where the upper end of the worst statistic's 95 % interval keeps to it. Exit 0: found; 1: nothing satisfies;
    2: the limits make no sense, contradict each other or cannot be measured here. The same command again finishes what
    is missing.
    """
    from .. import report
    from ..report import decision
    from ..studies.advise import Advisor, needed, require_measurable
    from ..studies.costs import Costing
    from ..studies.limits import read, require_cost
    from ..studies.sweep import Sweep, settings

    given = {
        "max-psnr": max_psnr,
        "max-ssim": max_ssim,
        "max-caption-gain": max_caption_gain,
        "max-top1": max_top1,
        "max-rank1": max_rank1,
        "min-utility": min_utility,
        "max-bytes": max_bytes,
        "max-device-macs": max_device_macs,
        "max-server-macs": max_server_macs,
        "max-milliseconds": max_milliseconds,
    }
    limits = read(given)
    cost, wanted = require_cost(minimise), needed(limits)
    asked = _request(victim, images, layer, attack, public, gallery, judge, effort, size, limit, seed, device, workers)
    swept = settings(defense or (), tuple(wire or ()))
    _fetch(victim, judge)
    sweep = Sweep(asked, swept, tuple(attacker or ()), sends, wanted)
    require_measurable(sweep, limits)
    if dry_run:
        _print_grid(sweep, sweep.tasks(sweep.candidates(), "quick"), "quick")
        return 0
    sweep.base.require_a_picture()
    folder = output or _folder(sweep, "advise")

    def watch(tasks: Sequence[Task]) -> AuditBar:
        return AuditBar({task.job.key: 1.0 for task in tasks})

    advisor = Advisor(sweep, limits, cost, Costing(sweep, folder), folder, effort, confirm, watch, debug)
    rows = advisor.rows()
    record = advisor.record(rows)
    cells = list(advisor.cells.values())
    _write(record, folder / "advise.json")
    page = report.write(cells, folder) if cells else folder / "advise.json"
    if as_json:
        say_json(_spelt(record))
    else:
        table(decision.COLUMNS, decision.rows(record), right=("utility", "bytes", "device", "ms"))
        for sentence in decision.sentences(record):
            say(sentence)
        say(str(page))
    for line in record["missing"]:
        note(f"seepage: {line}")
    if (code := _code(cells)) or not record["unmeasured"]:
        return code or (0 if record["answer"] is not None else 1)
    key, reason = next(iter(record["unmeasured"].items()))
    complain(f"--{key} was measured at no candidate: {reason}")
    return 2


def _request(
    victim: str,
    images: str,
    layer: Many,
    attack: Many,
    public: str | None,
    gallery: str | None,
    judge: Many,
    effort: str,
    size: int | None,
    limit: int | None,
    seed: int,
    device: str,
    workers: int,
) -> Request:
    from ..audit.request import Request

    return Request(
        victim,
        images,
        layers=tuple(dict.fromkeys(layer or ())),
        attacks=tuple(dict.fromkeys(attack or ())),
        judges=tuple(judge or ()),
        public=public,
        gallery=gallery,
        effort=effort,
        size=size,
        limit=limit,
        seed=seed,
        device=device,
        workers=workers,
    )


def _fetch(victim: str, judge: Many) -> None:
    fetch_for(victim, *(judge or ()))


def _folder(sweep: Sweep, study: str) -> Path:
    """The same sweep resumes in the same place, whatever is asked of what it finds."""
    content = json.dumps([[*item.defenses, item.wire] for item in sweep.settings])
    digest = hashlib.sha256(f"{content}{sweep.attackers}{sweep.sends}".encode()).hexdigest()
    return Path(f"{sweep.base.request.folder()}-{digest[:6]}-{study}")


def _missing(tasks: Sequence[Task], folder: Path) -> list[Task]:
    from ..store import Store

    known = Store(folder).cells()
    return [task for task in tasks if task.job.key not in known or known[task.job.key].status == "failed"]


def _print_grid(sweep: Sweep, tasks: Sequence[Task], effort: str) -> None:
    from ..report.frontier import setting
    from ..studies.sweep import candidate_of, expected

    took = expected(tasks)
    rows = []
    for candidate in sweep.candidates():
        own = [task.job.key for task in tasks if candidate_of(task.job) == candidate]
        named = setting({"defenses": candidate.setting.defenses, "wire": candidate.setting.wire})
        minutes = sum(took[key][0] for key in own) / 60
        rows.append(
            (candidate.layer, named, str(len(own)), f"{minutes:.1f}", f"{sum(took[k][1] for k in own) / 1e6:.1f}")
        )
    seconds, size = (sum(item[place] for item in took.values()) for place in (0, 1))
    rows.append((f"{len(rows)} candidates", effort, str(len(took)), f"{seconds / 60:.1f}", f"{size / 1e6:.1f}"))
    table(("layer", "defense", "cells", "minutes", "MB"), rows, right=("cells", "minutes", "MB"))
    for line in sweep.left_out():
        note(f"seepage: {line}")


def _write(record: dict[str, Any], path: Path) -> None:
    from ..files import replacing

    with replacing(path) as part:
        part.write_text(json.dumps(_spelt(record), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _spelt(value: Any) -> Any:
    """The value with NaN and infinity as the words that records have for them: JSON has no number for either."""
    if isinstance(value, dict):
        return {key: _spelt(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelt(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _code(cells: Sequence[Cell]) -> int:
    return 3 if any(cell.status == "failed" for cell in cells) else 0
