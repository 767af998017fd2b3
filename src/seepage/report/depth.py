"""Leakage by depth as one page: pictures, captions and labels in one drawing, and each step from cut to cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from ..files import replacing
from . import text
from .charts import MARKERS, ticks
from .glossary import measure
from .html import for_html, source

_WIDTH, _HEIGHT = 960, 340
_TOP, _RIGHT, _BOTTOM, _LEFT = 16, 18, 40, 58
_APART = 9.0
_KINDS = {"images": "pictures", "captions": "captions", "labels": "labels"}


def write(record: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a study of depth, whole or not at all, and return its path.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path) as part:
        part.write_text(render(record), encoding="utf-8")
    return path


def render(record: Mapping[str, Any]) -> str:
    """Return the page; the same record gives the same bytes."""
    page: str = (
        for_html()
        .get_template("depth.html")
        .render(
            name=record["name"],
            data=record["data"],
            n=record["n"],
            effort=record["effort"],
            sentences=sentences(record),
            drawing=drawing(record),
            key=[(_swatch(number), label(curve)) for number, curve in enumerate(record["curves"])],
            points=points(record),
            columns=COLUMNS,
            steps=steps(record),
            layers=record["layers"],
            missing=record["missing"],
            style=source("style.css"),
        )
    )
    return page


COLUMNS = ("attack", "score", "from", "to", "change", "95 % interval", "n", "")


def steps(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return each step from a cut to the next as a row under `COLUMNS`."""
    found: list[tuple[str, ...]] = []
    for step in record["steps"]:
        scale = measure(step["metric"])
        interval = " to ".join(_signed(scale.show(step[end]), step[end]) for end in ("low", "high"))
        change = _signed(scale.with_unit(step["difference"]), step["difference"])
        found.append(
            (step["attack"], scale.label, step["before"], step["after"], change, interval, str(step["n"]), step["says"])
        )
    return found


def points(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return each curve's mean at each cut as a row: attack, score, one column a cut."""
    found = []
    for curve in record["curves"]:
        scale = measure(curve["metric"])
        at = {point["layer"]: scale.with_unit(point["mean"]) for point in curve["points"]}
        found.append((curve["attack"], scale.label, *(at.get(layer, "–") for layer in record["layers"])))
    return found


def sentences(record: Mapping[str, Any]) -> list[str]:
    """Say of each curve where deeper leaks less, where more, and where neither is shown."""
    found = []
    for curve in record["curves"]:
        own = [step for step in record["steps"] if step["attack"] == curve["attack"]]
        if not own:
            continue
        rising = [f"{step['before']} to {step['after']}" for step in own if step["says"] == "deeper leaks more"]
        falling = [step for step in own if step["says"] == "deeper leaks less"]
        what = f"{_KINDS[curve['recovers']].capitalize()} ({curve['attack']})"
        if rising:
            found.append(f"{what}: deeper leaks more from {text.listing(rising)}.")
        elif len(falling) == len(own):
            found.append(f"{what}: every deeper cut leaks less.")
        elif falling:
            found.append(f"{what}: no deeper cut is shown to leak more; {len(falling)} of {len(own)} leak less.")
        else:
            found.append(f"{what}: no difference between neighbouring cuts is shown.")
    return found


def label(curve: Mapping[str, Any]) -> str:
    """Return how the key names a curve."""
    return f"{_KINDS[curve['recovers']]}, by {curve['attack']} ({measure(curve['metric']).label})"


def drawing(record: Mapping[str, Any]) -> Markup:
    """Draw recovery by depth, 0 a null control and 1 the truth. Built as a tree, so that no name can become markup."""
    layers: Sequence[str] = record["layers"]
    values = [point[part] for curve in record["curves"] for point in curve["points"] for part in _PARTS]
    finite = [value for value in values if math.isfinite(value)]
    ups = ticks(max(min([0.0, *finite]), -1.0), 1.0)
    room = (_WIDTH - _LEFT - _RIGHT) / max(len(layers), 1)

    def up(value: float) -> float:
        share = (min(max(value, ups[0]), ups[-1]) - ups[0]) / (ups[-1] - ups[0])
        return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share), 1)

    box = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "class": "chart", "aria-labelledby": "depth-t depth-d"}
    svg = ElementTree.Element("svg", box)
    _child(svg, "title", {"id": "depth-t"}, "recovery by depth of the cut")
    said = [f"{label(curve)}: {', '.join(_note(point) for point in curve['points'])}" for curve in record["curves"]]
    _child(svg, "desc", {"id": "depth-d"}, text.plain("; ".join(said) or "no values"))
    for tick in ups:
        rule = {"class": "grid", "x1": str(_LEFT), "x2": str(_WIDTH - _RIGHT), "y1": f"{up(tick)}", "y2": f"{up(tick)}"}
        _child(svg, "line", rule)
        where = {"class": "tick", "text-anchor": "end", "x": str(_LEFT - 8), "y": f"{up(tick) + 4}"}
        _child(svg, "text", where, text.percent(tick))
    for number, layer in enumerate(layers):
        where = {"class": "name", "text-anchor": "middle", "x": f"{_LEFT + room * (number + 0.5):.1f}"}
        _child(svg, "text", {**where, "y": str(_HEIGHT - _BOTTOM + 20)}, text.plain(layer))
    count = len(record["curves"])
    for number, curve in enumerate(record["curves"]):
        shift = min(_APART, room * 0.5 / max(count, 1)) * (number - (count - 1) / 2)
        group = _child(svg, "g", {"class": f"line s{number % len(MARKERS)}"})
        placed = [
            (round(_LEFT + room * (layers.index(point["layer"]) + 0.5) + shift, 1), point) for point in curve["points"]
        ]
        corners = " ".join(f"{x:g},{up(point['recovery']):g}" for x, point in placed if _known(point))
        _child(group, "polyline", {"points": corners})
        for x, point in placed:
            if _known(point):
                mark = _child(group, "g", {})
                _child(mark, "title", {}, text.plain(f"{curve['attack']} at {_note(point)}"))
                if math.isfinite(point["recovery_low"]) and math.isfinite(point["recovery_high"]):
                    path = f"M{x:g},{up(point['recovery_high']):g}V{up(point['recovery_low']):g}"
                    _child(mark, "path", {"class": "bar", "d": path})
                _child(
                    mark, "circle", {"class": "mark", "cx": f"{x:g}", "cy": f"{up(point['recovery']):g}", "r": "4.6"}
                )
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


_PARTS = ("recovery", "recovery_low", "recovery_high")


def _known(point: Mapping[str, Any]) -> bool:
    return math.isfinite(point["recovery"])


def _note(point: Mapping[str, Any]) -> str:
    low, high = text.percent(point["recovery_low"]), text.percent(point["recovery_high"])
    return f"{point['layer']} {text.percent(point['recovery'])} ({low} to {high}), n = {point['n']}"


def _signed(shown: str, value: float) -> str:
    return f"+{shown}" if value > 0 else shown


def _swatch(number: int) -> Markup:
    svg = ElementTree.Element("svg", {"viewBox": "0 0 34 16", "class": "swatch", "aria-hidden": "true"})
    group = _child(svg, "g", {"class": f"line s{number % len(MARKERS)}"})
    _child(group, "polyline", {"points": "1,8 33,8"})
    _child(group, "circle", {"class": "mark", "cx": "17", "cy": "8", "r": "4.6"})
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def _child(
    parent: ElementTree.Element, tag: str, attributes: dict[str, str], content: str | None = None
) -> ElementTree.Element:
    made = ElementTree.SubElement(parent, tag, attributes)
    made.text = content
    return made
