"""How it was measured: what a reader needs to repeat an audit, and to know what to make of its numbers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..schema import Cell
from . import text
from .findings import leading
from .glossary import CEILINGS, CONTROLS, Measure, control_name, measure, ordered
from .verdict import Verdict

_SHOWN_NAMES = 12
# Failed pictures are listed by name: see `failed_pictures`.
_NAMED_ELSEWHERE = "failed-samples"
_SEVERITY = ("error", "warning", "info")

H = TypeVar("H", bound=Hashable)


@dataclass(frozen=True)
class Warned:
    """One kind of warning: in how many cells, of which how many the strongest of their layer, and what it said."""

    name: str
    level: str
    cells: int
    strongest: int
    example: str
    where: tuple[str, ...]


@dataclass(frozen=True)
class Attacked:
    """One attack with all its parameters, and what it cost over all its cells."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    means: str
    effort: str
    cells: int
    fit: str
    recover: str
    passes: str
    peak: str


@dataclass(frozen=True)
class Method:
    """Facts of an audit, each as it is shown."""

    facts: tuple[tuple[str, str], ...]
    hashes: tuple[tuple[str, str], ...]
    packages: tuple[tuple[str, str], ...]
    attacks: tuple[Attacked, ...]
    controls: tuple[tuple[str, str], ...]
    metrics: tuple[Measure, ...]
    unavailable: tuple[tuple[str, str], ...]


def method(cells: Sequence[Cell]) -> Method:
    """Return how an audit was measured; where cells differ, every value is named once."""
    return Method(
        _facts(cells),
        _hashes(cells),
        _packages(cells),
        _attacks(cells),
        tuple(
            (control_name(name), CONTROLS.get(name, "defined by the component that brought it"))
            for name in sorted({name for cell in cells for name in cell.controls})
        )
        + tuple(
            (f"ceiling: {control_name(name)}", CEILINGS.get(name, "defined by the component that brought it"))
            for name in sorted({name for cell in cells for name in cell.ceilings})
        ),
        tuple(measure(key, cells) for key in ordered({key for cell in cells for key in cell.summary})),
        tuple(sorted({(measure(key).label, why) for cell in cells for key, why in cell.unavailable.items()})),
    )


def environment_line(cells: Sequence[Cell]) -> str:
    """Return, without a date, what ran where: the same records give the same report."""
    known = [cell.environment for cell in cells if cell.environment is not None]
    parts = [f"seepage {version}" for version in _distinct(item.version for item in known)]
    parts += [f"torch {version}" for version in _distinct(item.packages.get("torch") for item in known)]
    parts += _distinct(item.device for item in known)
    parts += [f"{effort} effort" for effort in _distinct(cell.spec.effort for cell in cells)]
    parts += [f"seed {seed}" for seed in _distinct(str(cell.spec.seed) for cell in cells)]
    return " · ".join(parts)


def pictures(cells: Sequence[Cell]) -> int:
    """Return how many pictures were under audit, those that failed among them."""
    return len({(cell.spec.data, sample.id) for cell in cells for sample in cell.samples})


def warnings(judged: Sequence[Verdict]) -> tuple[Warned, ...]:
    """Return what the checks found, the gravest first."""
    found: dict[tuple[str, str], list[tuple[str, str, bool]]] = {}
    for verdict in judged:
        best = leading(verdict)
        for cell in verdict.cells:
            where = f"{cell.spec.layer}, {verdict.attacker(cell)}"
            for check in (check for check in cell.checks if check.name != _NAMED_ELSEWHERE):
                found.setdefault((check.level, check.name), []).append((where, check.message, cell.key in best))
    return tuple(
        Warned(
            name.replace("-", " ").replace("_", " "),
            level,
            len(said),
            sum(best for _, _, best in said),
            next((message for _, message, best in said if best), said[0][1]),
            tuple(where for where, _, _ in said),
        )
        for (level, name), said in sorted(found.items(), key=lambda item: _SEVERITY.index(item[0][0]))
    )


def missing(judged: Sequence[Verdict]) -> tuple[tuple[str, str], ...]:
    """Return what was not run or failed, cells of one reason together: what, and why."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for verdict in judged:
        for cell in (cell for cell in verdict.cells if cell.status != "done"):
            where = f"{verdict.attacker(cell)} at {cell.spec.layer}"
            grouped.setdefault((cell.status.replace("_", " "), cell.message), []).append(where)
    return tuple((f"{status}: {_few(names)}", reason) for (status, reason), names in grouped.items())


def failed_pictures(cells: Sequence[Cell]) -> tuple[tuple[str, str], ...]:
    """Return the pictures that failed in finished cells: which, and why; those beyond the first are counted."""
    grouped: dict[tuple[str, str], int] = {}
    finished = [cell for cell in cells if cell.status == "done"]
    for cell in finished:
        for sample in cell.samples:
            if sample.status == "failed":
                grouped[sample.id, sample.message] = grouped.get((sample.id, sample.message), 0) + 1
    shown = [
        (id, f"{why} (in {count} of {text.counted(len(finished), 'cell')})") for (id, why), count in grouped.items()
    ]
    rest = len(shown) - _SHOWN_NAMES
    return (*shown[:_SHOWN_NAMES], *([(f"{rest} more", "in the records")] if rest > 0 else []))


def _facts(cells: Sequence[Cell]) -> tuple[tuple[str, str], ...]:
    specs = [cell.spec for cell in cells]
    environments = [cell.environment for cell in cells if cell.environment is not None]
    judges = _distinct(f"{kind}: {judge.name}" for spec in specs for kind, judge in spec.judges.items())
    spent = sum(cell.cost.fit_seconds + cell.cost.seconds for cell in cells if cell.cost is not None)
    facts = (
        ("Victim", _all(spec.victim for spec in specs)),
        ("Input size", _all(f"{spec.size} px" for spec in specs if spec.size is not None)),
        ("Pictures", f"{_all(spec.data for spec in specs)}, n = {pictures(cells)}"),
        ("Public pictures", _all(spec.public for spec in specs)),
        ("Gallery", _all(spec.gallery for spec in specs)),
        ("Wire format", _all(spec.wire for spec in specs)),
        ("Defenses", _all(text.defenses(spec.defenses) or "none" for spec in specs)),
        ("Judges", ", ".join(judges)),
        ("Effort", _all(spec.effort for spec in specs)),
        ("Seed", _all(str(spec.seed) for spec in specs)),
        ("Device", _all(item.device for item in environments)),
        ("seepage", _all(f"{e.version}{f', commit {e.git[:12]}' if e.git else ''}" for e in environments)),
        ("Attack time", text.duration(spent) if spent else ""),
    )
    return tuple((name, value) for name, value in facts if value)


def _hashes(cells: Sequence[Cell]) -> tuple[tuple[str, str], ...]:
    specs = [cell.spec for cell in cells]
    found = [
        *(("weights", f"{spec.victim}: {spec.weights_sha256}") for spec in specs),
        *(("adapter", spec.adapter_sha256) for spec in specs if spec.adapter_sha256),
        *(("pictures (manifest)", spec.manifest_sha256) for spec in specs),
        *(("judge", f"{judge.name}: {judge.sha256}") for spec in specs for judge in spec.judges.values()),
    ]
    return tuple(_unique(found))


def _packages(cells: Sequence[Cell]) -> tuple[tuple[str, str], ...]:
    return tuple(_unique(p for c in cells if c.environment is not None for p in sorted(c.environment.packages.items())))


def _attacks(cells: Sequence[Cell]) -> tuple[Attacked, ...]:
    grouped: dict[tuple[str, str, str, str], list[Cell]] = {}
    for cell in cells:
        spec = cell.spec
        grouped.setdefault((spec.attack, spec.effort, spec.access, spec.auxiliary), []).append(cell)
    return tuple(_attacked(*key, group) for key, group in grouped.items())


def _attacked(attack: str, effort: str, access: str, auxiliary: str, cells: Sequence[Cell]) -> Attacked:
    name, _, tail = attack.partition(":")
    pairs = [pair.partition("=") for pair in tail.split(",") if pair]
    costs = [cell.cost for cell in cells if cell.cost is not None]
    samples = sum(len(cell.samples) for cell in cells if cell.cost is not None)
    passes = sum(cost.passes for cost in costs) / samples if samples else None
    return Attacked(
        name,
        tuple((key, value) for key, _, value in pairs),
        f"{access}, {'no' if auxiliary == 'none' else auxiliary} auxiliary pictures",
        effort,
        len(cells),
        text.duration(sum(cost.fit_seconds for cost in costs) if costs else None),
        text.duration(sum(cost.seconds for cost in costs) if costs else None),
        text.number(passes, 0),
        text.size(max((cost.peak_bytes for cost in costs), default=None)),
    )


def _few(names: Sequence[str]) -> str:
    if len(names) <= _SHOWN_NAMES:
        return text.listing(names)
    return f"{', '.join(names[:_SHOWN_NAMES])} and {len(names) - _SHOWN_NAMES} more"


def _all(values: Iterable[str | None]) -> str:
    return ", ".join(_distinct(values))


def _distinct(values: Iterable[str | None]) -> list[str]:
    return _unique(value for value in values if value)


def _unique(values: Iterable[H]) -> list[H]:
    return list(dict.fromkeys(values))
