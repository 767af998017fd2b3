"""Which attacks could not be run, and why."""

from __future__ import annotations

from collections.abc import Sequence

from ..schema import Cell


def unrun(cells: Sequence[Cell]) -> list[str]:
    """Say once what was not run, or failed, for one reason at several candidates."""
    places: dict[tuple[str, str, str], dict[str, None]] = {}
    for cell in cells:
        if cell.status == "done":
            continue
        where = f"{cell.spec.layer}{''.join(f', {name}' for name in cell.spec.defenses)}"
        places.setdefault((who(cell), cell.status.replace("_", " "), cell.message), {})[where] = None
    return [
        f"{name}: {status} at {next(iter(where)) if len(where) == 1 else f'{len(where)} candidates'}: {message}"
        for (name, status, message), where in places.items()
    ]


def reasons(cells: Sequence[Cell]) -> list[str]:
    """Say of one candidate who was not run, or failed, and why."""
    return list(dict.fromkeys(f"{who(cell)}: {cell.message}" for cell in cells if cell.status != "done"))


def who(cell: Cell) -> str:
    """Return the attack of a cell, and what it knows of the defense where there is one."""
    return cell.spec.attack.partition(":")[0] + (f" by {cell.spec.attacker}" if cell.spec.defenses else "")
