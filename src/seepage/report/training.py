"""How a training went, as one page that needs nothing but itself: loss curves, held-out pictures, null controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from ..files import replacing
from . import text
from .charts import ticks
from .html import for_html, source

_WIDTH, _HEIGHT = 960, 300
_TOP, _RIGHT, _BOTTOM, _LEFT = 14, 18, 42, 64
_MOST_POINTS = 400
_TRAINING = "training"


@dataclass(frozen=True)
class Line:
    """One line of a curve; the first is the training loss, the next the held-out pictures', the rest are controls."""

    name: str
    style: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curves:
    """One stage: its drawing, the key to the lines and, in words, how it ended."""

    name: str
    ending: str
    drawing: Markup
    key: tuple[tuple[Markup, str], ...]


def write(record: Mapping[str, Any], path: Path) -> Path:
    """Write the page of what a training told, whole or not at all, and return its path.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path) as part:
        part.write_text(render(record), encoding="utf-8")
    return path


def render(record: Mapping[str, Any]) -> str:
    """Return the page; the same record gives the same bytes."""
    template = for_html().get_template("training.html")
    stages = [_curves(stage, number) for number, stage in enumerate(record["stages"])]
    page: str = template.render(
        name=record["name"],
        facts=record["facts"],
        stages=stages,
        title=record["title"],
        columns=record["columns"],
        rows=record["rows"],
        notes=record["notes"],
        style=source("style.css"),
    )
    return page


def lines(stage: Mapping[str, Any]) -> tuple[Line, ...]:
    """Return a stage's lines: the loss, over so many steps at once that 400 points are left, and what was held out."""
    curve, held = stage["curve"], stage["held"]
    found = [Line(_TRAINING, "line s0", _thinned(curve["step"], curve["loss"]))]
    number = 0
    for name, points in held.items():
        own = name == "held-out"
        found.append(Line(name, "line s1" if own else f"control c{number % 3}", tuple((x, y) for x, y in points)))
        number += not own
    return tuple(found)


def _thinned(steps: Sequence[int], losses: Sequence[float]) -> tuple[tuple[float, float], ...]:
    size = math.ceil(len(steps) / _MOST_POINTS) or 1
    return tuple(
        (float(steps[min(start + size, len(steps)) - 1]), math.fsum(part) / len(part))
        for start in range(0, len(steps), size)
        if (part := losses[start : start + size])
    )


def _curves(stage: Mapping[str, Any], number: int) -> Curves:
    drawn = lines(stage)
    curve = stage["curve"]
    count, seconds = curve["step"][-1] if curve["step"] else 0, curve["seconds"][-1] if curve["seconds"] else 0.0
    ending = f"{count} steps in {text.duration(seconds)}"
    if curve["skipped"]:
        ending += f", {curve['skipped']} skipped whose loss or gradient was not finite"
    return Curves(
        f"{stage['name']}: {stage['unit']}",
        ending,
        _drawing(stage, drawn, f"stage{number}"),
        tuple(
            (_swatch(line), line.name if line.style.startswith("line") else f"control: {line.name}") for line in drawn
        ),
    )


def _drawing(stage: Mapping[str, Any], drawn: Sequence[Line], name: str) -> Markup:
    """Draw a stage. Built as a tree, so that no name can become markup."""
    points = [point for line in drawn for point in line.points if math.isfinite(point[1])]
    ups = ticks(min((y for _, y in points), default=0.0), max((y for _, y in points), default=1.0))
    last = max((x for x, _ in points), default=1.0)
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        share = (y - ups[0]) / (ups[-1] - ups[0])
        return round(_LEFT + wide * x / last, 1), round(_TOP + high * (1 - share), 1)

    box = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "class": "chart"}
    svg = ElementTree.Element("svg", box | {"aria-labelledby": f"{name}-t {name}-d"})
    _child(svg, "title", {"id": f"{name}-t"}, f"{text.plain(stage['name'])}: {text.plain(stage['unit'])} by step")
    ends = [f"{line.name} {line.points[-1][1]:.3g}" for line in drawn if line.points]
    _child(svg, "desc", {"id": f"{name}-d"}, f"at the end: {', '.join(map(text.plain, ends))}")
    for tick in ups:
        _, y = place(0, tick)
        _child(svg, "line", {"class": "grid", "x1": str(_LEFT), "x2": str(_WIDTH - _RIGHT), "y1": f"{y}", "y2": f"{y}"})
        label = {"class": "tick", "text-anchor": "end", "x": str(_LEFT - 8), "y": f"{y + 4}"}
        _child(svg, "text", label, f"{tick:g}".replace("-", "−"))
    for tick in (step for step in ticks(0, last) if 0 <= step <= last):
        x, _ = place(tick, ups[0])
        label = {"class": "tick", "text-anchor": "middle", "x": f"{x}", "y": str(_HEIGHT - _BOTTOM + 18)}
        _child(svg, "text", label, f"{tick:g}")
    middle = {"class": "tick", "text-anchor": "middle", "x": f"{_LEFT + wide / 2}", "y": str(_HEIGHT - 6)}
    _child(svg, "text", middle, "step")
    for line in drawn:
        group = _child(svg, "g", {"class": line.style})
        where = [place(x, y) for x, y in line.points if math.isfinite(y)]
        line_of = _child(group, "polyline", {"points": " ".join(f"{x:g},{y:g}" for x, y in where)})
        _child(line_of, "title", {}, text.plain(line.name))
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def _swatch(line: Line) -> Markup:
    svg = ElementTree.Element("svg", {"viewBox": "0 0 34 16", "class": "swatch", "aria-hidden": "true"})
    _child(_child(svg, "g", {"class": line.style}), "polyline", {"points": "1,8 33,8"})
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def _child(
    parent: ElementTree.Element, tag: str, attributes: dict[str, str], content: str | None = None
) -> ElementTree.Element:
    made = ElementTree.SubElement(parent, tag, attributes)
    made.text = content
    return made
