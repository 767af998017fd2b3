"""`seepage encrypt`: the tail on ciphertexts, with the key on one side alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from .console import bar, note, say, say_json, table
from .fetching import fetch_for

group = typer.Typer(
    help="Run a linear or pooled tail on encrypted features: a client with the key, a server without.",
    rich_markup_mode=None,
)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(group, name="encrypt")


@group.command()
def keys(
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder to write both files to")],
    degree: Annotated[int, typer.Option(help="4096, 8192 or 16384: half of it are the numbers in a ciphertext")] = 8192,
    bits: Annotated[str, typer.Option(help="sizes of the primes: the answer's, one a product, the keys'")] = "60,40,60",
    scale: Annotated[int, typer.Option(help="bits after the point")] = 40,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> int:
    """Make the client's keys, secret.tenseal (mode 0600), and those for the server, public.tenseal."""
    from ..studies.encrypted_keys import KeyFileError, make_keys

    sizes = bits.replace(" ", "").split(",")
    if not all(size.isdecimal() for size in sizes):
        raise KeyFileError(f"--bits are whole numbers with commas between, as 60,40,60; got {bits!r}")
    secret, public = make_keys(output, degree, tuple(map(int, sizes)), scale)
    note(f"{secret} stays with the client; the server gets {public.name}")
    say(str(public))
    return 0


@group.command()
def serve(
    victim: Annotated[str, typer.Argument(help="SOURCE/NAME[@WEIGHTS]")],
    layer: Annotated[str, typer.Option(help="where it was cut")],
    keys: Annotated[Path, typer.Option(help="public.tenseal; a file with a secret key is refused")],
    host: Annotated[str, typer.Option(help="the address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one")] = 7100,
    size: Annotated[int | None, typer.Option(help="input size in pixels, where the victim allows another")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> int:
    """Answer encrypted features with encrypted outputs, until interrupted.

    The tail is the pool and the linear layer, or the linear layer alone: found by asking it, and refused with what it
    would cost where it is not affine in the features. The one line on stdout is the address.
    """
    from ..studies.encrypted import server_of
    from ..studies.encrypted_wire import listen

    fetch_for(victim)
    with listen(host, port) as listener:
        server = server_of(victim, layer, keys, note, size)
        address, taken = listener.getsockname()[:2]
        say(f"{address}:{taken}")
        sys.stdout.flush()
        server.serve(listener)
    return 0


@group.command()
def send(
    victim: Annotated[str, typer.Argument(help="SOURCE/NAME[@WEIGHTS]")],
    images: Annotated[str, typer.Argument(help="a folder, a file or DATASET/SPLIT[@PATH]")],
    layer: Annotated[str, typer.Option(help="where to cut")],
    keys: Annotated[Path, typer.Option(help="secret.tenseal")],
    server: Annotated[str, typer.Option(help="HOST:PORT of `seepage encrypt serve`")],
    output: Annotated[Path, typer.Option("-o", "--output", help="output folder")],
    size: Annotated[int | None, typer.Option(help="input size in pixels, where the victim allows another")] = None,
    limit: Annotated[int | None, typer.Option(help="use N pictures, spread over their labels")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the record as JSON")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> int:
    """Encrypt features, have the server run the tail, decrypt, and compare with the plain tail.

    The record has the agreement, the largest error, seconds and bytes. The last line on stdout is its path.
    """
    from ..audit.request import Request
    from ..files import replacing, require_writable
    from ..studies.encrypted import rows
    from ..studies.encrypted import send as run

    fetch_for(victim)
    asked = Request(victim, images, layers=(layer,), size=size, limit=limit)
    require_writable(output)
    with bar() as shown:
        task = shown.add_task("sending", total=1.0)
        record = run(asked, layer, keys, server, lambda done: shown.update(task, completed=done))
    path = output / "encrypted.json"
    with replacing(path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for message in record["failed"]:
        note(f"seepage: left out: {message}")
    if as_json:
        say_json(record)
    else:
        table(("", "a picture, encrypted"), rows(record), title=f"{record['victim']} from {record['layer']} on")
        say(str(path))
    return 0
