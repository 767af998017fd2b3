"""The command line: parse, call, print."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
from collections.abc import Sequence

import typer

from . import audit, depth, encrypt, files, frontier, lists, train
from .console import complain

USAGE, FAILED, INTERRUPTED = 2, 3, 130

app = typer.Typer(
    name="seepage",
    help="Measure how much of a private input seeps through a vision model's intermediate features.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (audit, depth, encrypt, files, frontier, lists, train):
    module.add_to(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    0 done, 1 a --fail-if holds or nothing satisfies, 2 bad input, 3 cells failed, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # A stream that was closed before the start is None here, and its number would go to the next file opened.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  open to the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115  open to the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may be any bytes and a table has a star: neither may end an audit where stdout cannot say them.
        says_all = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if says_all else "backslashreplace")
    try:
        code = run(arguments)
    except KeyboardInterrupt:  # typer turns only those into a code that come while a command runs
        code = INTERRUPTED
    # Whoever presses twice would otherwise see how the interpreter takes its libraries down.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; every error is one line on stderr, unless `--debug` is given."""
    debug = "--debug" in arguments
    try:
        if not arguments:
            app(args=["--help"], prog_name="seepage", standalone_mode=False)
            return USAGE
        code = app(args=list(arguments), prog_name="seepage", standalone_mode=False)
        if code == INTERRUPTED:  # typer turns a KeyboardInterrupt into this
            complain("interrupted; what is finished is kept, and the same command goes on from there")
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        complain(error.format_message() if hasattr(error, "format_message") else str(error))
        return USAGE
    # The last line of defence: a person gets one line and a way to the traceback, whatever broke.
    except Exception as error:
        if debug:
            raise
        from ..types import SeepageError  # brings torch, which takes seconds that help and a first Ctrl-C should not

        if isinstance(error, SeepageError | OSError):
            complain(str(error))
            return USAGE
        reason = (str(error).splitlines() or [""])[0]
        complain(f"unexpected {type(error).__name__}: {reason}; --debug shows where")
        return FAILED
