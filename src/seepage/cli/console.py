"""How the command line speaks: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

_WIDTH = 180


def complain(message: str) -> None:
    """Print one line of error on stderr."""
    sys.stderr.write("seepage: " + " ".join(message.split()) + "\n")


def note(message: str) -> None:
    """Print one line on stderr that is no error."""
    sys.stderr.write(" ".join(message.split()) + "\n")


def say(message: str) -> None:
    """Print a line of result on stdout."""
    sys.stdout.write(message + "\n")


def say_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), title: str = "") -> None:
    """Print a table on stdout; the columns named in `right` hold numbers."""
    shown = Table(title=escape(title) or None, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        numeric = column in right
        shown.add_column(escape(column), justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        shown.add_row(*(escape(cell) for cell in row))
    console = Console(file=sys.stdout)
    needed = console.measure(shown, options=console.options.update_width(_WIDTH)).minimum
    # On less than it needs, rich leaves out the columns that say which row is which: a terminal can wrap lines itself.
    if not console.is_terminal or needed > console.width:
        console = Console(file=sys.stdout, width=_WIDTH)
    console.print(shown)


def bar() -> Progress:
    """Return a progress bar on stderr with the time left; where stderr is no terminal, it prints nothing."""
    console = Console(file=sys.stderr)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


__all__ = ["Progress", "TaskID", "bar", "complain", "note", "say", "say_json", "table"]
