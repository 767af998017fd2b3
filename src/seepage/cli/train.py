"""`seepage train`: attacks that learn before a leak is seen, and defenses that do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import TaskID, bar, note, say, table
from .fetching import fetch_for

_WIDEST = 60


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("train")(train)


def train(
    attack: Annotated[str, typer.Argument(help="caprecover, decoder, probe or defense, as NAME[:key=value,...]")],
    victim: Annotated[str, typer.Argument(help="SOURCE/NAME[@WEIGHTS]")],
    layer: Annotated[list[str], typer.Option(help="where to cut; caprecover takes several")],
    public: Annotated[str, typer.Option(help="pictures to learn from: a folder or DATASET/SPLIT[@PATH]")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the file to write, .safetensors")],
    select: Annotated[
        str | None, typer.Option(help="pictures to measure on; one in five of --public unless told")
    ] = None,
    effort: Annotated[str, typer.Option(help="quick, standard or full")] = "standard",
    steps: Annotated[int | None, typer.Option(help="steps of training; wins over --effort")] = None,
    language: Annotated[str | None, typer.Option(help="caprecover's language model; smollm2 unless told")] = None,
    preset: Annotated[str | None, typer.Option(help="one of the paper's configurations of caprecover")] = None,
    authors: Annotated[bool, typer.Option("--authors", help="train caprecover as its authors' code does")] = False,
    begin: Annotated[
        Path | None,
        typer.Option(help="an adapter of caprecover's to go on from, of any victim, or zoo/NAME"),
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    limit: Annotated[int | None, typer.Option(help="use N pictures of --public, spread over their labels")] = None,
    size: Annotated[int | None, typer.Option(help="input size in pixels, where the victim allows another")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16 (on a GPU)")] = "fp32",
    accumulate: Annotated[int, typer.Option(help="batches a step")] = 1,
    compiled: Annotated[
        bool, typer.Option("--compile", help="compile caprecover's language model; needs a C++ compiler, or a GPU")
    ] = False,
    features: Annotated[str, typer.Option(help="how features are kept: fp16 or int8")] = "fp16",
    storage: Annotated[str, typer.Option(help="how caprecover's weights are kept: fp32, fp16 or int8")] = "fp16",
    flips: Annotated[bool, typer.Option("--flips/--no-flips", help="learn from mirror images too")] = True,
    crops: Annotated[int, typer.Option(help="learn from N random parts of each picture too")] = 0,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> int:
    """Train an attack, or a defense, on public pictures and write it, for audits to load.

    The victim runs once a picture; its features are kept for later trainings. Stopped or killed, the same command goes
    on from its last checkpoint. What `train defense` writes is a victim, defended/FILE. A page with the loss curves is
    written beside the file; the last line on stdout is the file's path.
    """
    from ..report import training
    from ..studies.stages import first_process
    from ..studies.train import TrainRequest
    from ..studies.train import train as run

    request = TrainRequest(
        attack,
        victim,
        tuple(dict.fromkeys(layer)),
        public,
        output,
        select=select,
        effort=effort,
        steps=steps,
        language=language,
        seed=seed,
        limit=limit,
        size=size,
        device=device,
        precision=_one_of("--precision", precision, ("fp32", "bf16", "fp16")),  # type: ignore[arg-type]
        accumulate=accumulate,
        stored=_one_of("--features", features, ("fp16", "int8")),  # type: ignore[arg-type]
        storage=_one_of("--storage", storage, ("fp32", "fp16", "int8")),  # type: ignore[arg-type]
        flips=flips,
        crops=crops,
        preset=preset,
        authors=authors,
        begin=begin,
        compiled=compiled,
    )
    fetch_for(victim)
    with bar() as shown:
        tasks: dict[str, TaskID] = {}

        def tell(stage: str, done: float, what: str) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=1.0)
            shown.update(tasks[stage], completed=done, description=f"{stage}: {what}"[:_WIDEST])

        trained = run(request, tell)
    for sentence in trained.notes:
        note(f"seepage: {sentence}")
    if not first_process():
        return 0
    page = training.write(trained.record, request.record.with_suffix(".html"))
    columns = tuple(trained.record["columns"])
    table(columns, trained.record["rows"], right=columns[1:], title=trained.record["title"])
    note(f"curves: {page}")
    say(str(trained.path))
    return 0


def _one_of(option: str, given: str, known: tuple[str, ...]) -> str:
    from ..registry import suggest
    from ..studies.train import TrainRequestError

    if given not in known:
        raise TrainRequestError(f"{option} {given}: expected {' or '.join(known)}{suggest(given, known)}")
    return given
