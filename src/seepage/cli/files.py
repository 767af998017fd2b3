"""`seepage leak` and `seepage recover`: the two sides of the split, a file between them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .console import bar, note, say, table
from .fetching import fetch_for

_MADE = {
    "naive": "attacked as if it did not (naive)",
    "aware:estimate": "attacked is its law's best guess at the leak before it (aware:estimate)",
    "aware:likelihood": "its law is part of the attack (aware:likelihood)",
}


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("leak")(leak)
    app.command("restore")(restore)
    app.command("recover")(recover)


def leak(
    victim: Annotated[str, typer.Argument(help="SOURCE/NAME[@WEIGHTS]")],
    images: Annotated[str, typer.Argument(help="a folder, a file or DATASET/SPLIT[@PATH]")],
    layer: Annotated[str, typer.Option(help="where to cut")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the file to write, .safetensors")],
    wire: Annotated[str, typer.Option(help="fp32, fp16, bf16 or int8")] = "fp32",
    defense: Annotated[list[str] | None, typer.Option(help="NAME[:key=value,...]; repeat, in order")] = None,
    secret: Annotated[Path | None, typer.Option(help="the file for what undoes them; mode 0600")] = None,
    sends: Annotated[int, typer.Option(help="how often each picture is sent")] = 1,
    seed: Annotated[int, typer.Option(help="seed of what defenses draw")] = 0,
    size: Annotated[int | None, typer.Option(help="input size in pixels")] = None,
    limit: Annotated[int | None, typer.Option(help="use N pictures, spread over their labels")] = None,
    redact: Annotated[bool, typer.Option("--redact", help="leave the pictures' names out of the file")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps")] = "cpu",
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> int:
    """Write what the client would send for these pictures: the features at the cut, defended, in the wire's format."""
    from ..audit.dump import dump
    from ..audit.request import Request
    from ..audit.workbench import Workbench

    fetch_for(victim)
    request = Request(
        victim,
        images,
        layers=(layer,),
        defenses=tuple(defense or ()),
        sends=sends,
        wire=wire,
        size=size,
        limit=limit,
        seed=seed,
        device=device,
        redact=redact,
    )
    bench = Workbench(request)
    if bench.resized:
        note(bench.resized)
    with bar() as shown:
        task = shown.add_task("leaking", total=1.0)
        written, failed = dump(bench, output, lambda done: shown.update(task, completed=done), secret)
    for message in failed:
        note(f"seepage: left out: {message}")
    note(f"{written} rows")
    say(str(output))
    return 0


def restore(
    leak: Annotated[Path, typer.Argument(help="what `seepage leak --defense` wrote")],
    secret: Annotated[Path, typer.Option(help="what its --secret wrote; it serves once")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the file to write, .safetensors")],
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> int:
    """Undo what a secret undoes, as the rightful next stage does; the secret is spent by it."""
    from ..audit.dump import restore_file

    note(f"{restore_file(leak, secret, output)} rows; {secret} was used")
    say(str(output))
    return 0


def recover(
    leak: Annotated[Path, typer.Argument(help="a leak, or a raw .npy or .safetensors array with --victim and --layer")],
    attack: Annotated[str, typer.Option(help="NAME[:key=value,...]")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder to write pictures and record to")],
    victim: Annotated[str | None, typer.Option(help="SOURCE/NAME[@WEIGHTS]; the leak's own unless named")] = None,
    layer: Annotated[str | None, typer.Option(help="the leak's own unless named")] = None,
    defense: Annotated[list[str] | None, typer.Option(help="what the leak carries; its own unless named")] = None,
    attacker: Annotated[
        str | None, typer.Option(help="naive, aware:estimate or aware:likelihood; aware:estimate unless told")
    ] = None,
    effort: Annotated[str, typer.Option(help="quick, standard or full")] = "standard",
    size: Annotated[int | None, typer.Option(help="input size in pixels")] = None,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps")] = "cpu",
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> int:
    """Recover what a leak shows, with no truth at hand: pictures, captions or labels, and how each was reached.

    Of a defended leak that is the law's best guess at what was there before, unless --attacker says otherwise.
    """
    from ..audit.dump import recover_file
    from ..audit.request import Request

    request = Request(
        victim or "",
        None,
        (layer,) if layer else (),
        (attack,),
        tuple(defense or ()),
        effort=effort,
        size=size,
        seed=seed,
        device=device,
    )
    if victim:
        fetch_for(victim)
    began = time.perf_counter()
    with bar() as shown:
        task = shown.add_task("recovering", total=1.0)
        record = recover_file(request, leak, output, attacker, lambda done: shown.update(task, completed=done))
    said = any(row.caption is not None or row.label is not None for row in record.rows)
    rows = [
        (
            row.name,
            row.status,
            f"{row.residual:.3g}" if row.residual is not None else "",
            row.message,
            *([": ".join(filter(None, (row.label, row.caption)))] if said else []),
        )
        for row in record.rows
    ]
    table(("row", "status", "residual", "how", *(["what"] if said else [])), rows, right=("residual",))
    if record.defenses:
        note(f"seepage: {leak} carries {' + '.join(record.defenses)}; {_MADE[record.attacker]}")
    note(f"{time.perf_counter() - began:.0f} s")
    say(str(output / "recovery.json"))
    return 3 if any(row.status == "failed" for row in record.rows) else 0
