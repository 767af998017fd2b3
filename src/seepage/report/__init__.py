"""From records to a report that a stranger reads in ten seconds. No torch in here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..schema import Cell
from .html import render
from .redact import redacted
from .sentences import sentences
from .spreadsheet import to_csv
from .tables import rows
from .verdict import LayerVerdict, Verdict, distinct, verdicts

__all__ = ["LayerVerdict", "Verdict", "rows", "sentences", "verdicts", "write"]


def write(cells: Sequence[Cell], folder: Path, *, redact: bool = False) -> Path:
    """Write report.html, report.md and results.csv into a folder and return the path of report.html.

    Pictures are read from below the folder, where the records say they lie. The same cells give the same bytes. With
    `redact` nothing that shows or names a picture is written: numbers stand for them.

    Raises:
        OSError: the folder cannot be written.
    """
    shown = redacted(distinct(cells)) if redact else distinct(cells)
    pages = render(shown, folder, redact=redact)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "results.csv", to_csv(shown))
    _write(folder / "report.md", pages.markdown)
    path = folder / "report.html"
    _write(path, pages.html)
    return path


def _write(path: Path, content: str) -> None:
    """Write a file that is either whole or as it was before."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
