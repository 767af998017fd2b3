"""Run the embedded default audit and write the table that the README shows.

    python benchmarks/first_audit.py

Writes `results/first_audit.md` and `.json` beside this file: per layer and attack the mean PSNR with its interval, the
other metrics, the strongest null control, and what it cost; then what was said of the pictures.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.report import rows
from seepage.schema import Cell

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run, time and write."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        cells = run_audit(Request(effort="quick"), Path(folder))
        seconds = time.perf_counter() - began
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "first_audit.json").write_text(
        json.dumps(_summary(cells, seconds), indent=2).replace(str(Path.home()), "~") + "\n"
    )
    text = _markdown(cells, seconds)
    (RESULTS / "first_audit.md").write_text(text)
    print(text)


def _machine(cells: list[Cell]) -> str:
    device = next((cell.environment.device for cell in cells if cell.environment), "")
    return f"{device}, {os.cpu_count()} cores, {platform.system()}, {datetime.now(UTC):%Y-%m-%d}"


def _summary(cells: list[Cell], seconds: float) -> dict[str, object]:
    drop = {"samples", "environment"}
    records = [cell.model_dump(mode="json", exclude=drop) for cell in cells]
    return {"machine": _machine(cells), "seconds": round(seconds, 1), "cells": records}


def _markdown(cells: list[Cell], seconds: float) -> str:
    head = f"`python benchmarks/first_audit.py`, {_machine(cells)}: {seconds:.0f} s in all."
    said = [cell for cell in cells if any(one.recovered and one.recovered.caption for one in cell.samples)]
    lines = [head, "", *_table([cell for cell in cells if cell not in said])]
    if said:
        lines += ["", *_table(said), "", f"What was said of them at {said[0].spec.layer}, and what they show:", ""]
        lines += [f"- *{one.recovered.caption}* – {one.truth.caption}" for one in said[0].samples if one.recovered]
    return "\n".join([*lines, ""])


def _table(cells: list[Cell]) -> list[str]:
    columns, lines = rows(cells)
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(line) + " |" for line in lines),
    ]


if __name__ == "__main__":
    main()
