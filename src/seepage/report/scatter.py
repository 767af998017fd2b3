"""Candidates as points: leakage upwards, a cost to the right, so that the lower left is the better side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from . import text
from .charts import MARKERS, marker, ticks
from .glossary import measure

_WIDTH, _HEIGHT = 960, 420
_TOP, _RIGHT, _BOTTOM, _LEFT = 16, 24, 56, 64
_PAD = 0.04
_MOST = {"psnr": 60.0}
"""Beyond that nobody tells two pictures apart, and what matters would be squeezed: marks stay at the upper edge."""

Point = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """What lies to the right: a cost of a candidate, less of which is better."""

    key: str
    title: str
    value: Callable[[Mapping[str, Any], Point], float | None]
    show: Callable[[float], str]
    decades: bool = False


def _macs(record: Mapping[str, Any], point: Point) -> float:
    before, after = float(point["macs_before"]), float(point["macs_after"])
    return before / max(before + after, 1.0)


def _lost(record: Mapping[str, Any], point: Point) -> float | None:
    kept = point["utility"].get(record["utility"])
    return None if kept is None else 1 - kept


def _milliseconds(value: float) -> str:
    return f"{value:g}{text.NARROW}ms"


AXES = (
    Axis("bytes", "bytes a picture", lambda record, point: float(point["bytes"]), lambda v: text.size(round(v)), True),
    Axis("lost", "utility lost", _lost, lambda v: text.percent(v, 0 if abs(100 * v % 1) < 1e-6 else 1)),
    Axis("macs", "work on the device, of all multiply-adds", _macs, text.percent),
    Axis("ms", "milliseconds on the device", lambda record, point: point["device_ms"]["median"], _milliseconds, True),
)


def family(point: Point) -> str:
    """Return the names of a candidate's defenses, without their strengths."""
    return " + ".join(name.partition(":")[0] for name in point["defenses"]) or "undefended"


def families(record: Mapping[str, Any]) -> list[str]:
    """Return the kinds of defense of a record, in its order."""
    return list(dict.fromkeys(map(family, record["points"])))


def drawing(record: Mapping[str, Any], axis: Axis, metric: str) -> Markup:
    """Draw every candidate that has both values; a line joins those that no other beats on these two."""
    scale, shapes = measure(metric), families(record)
    placed = []
    for number, point in enumerate(record["points"]):
        right, worst = axis.value(record, point), point["leakage"].get(metric)
        if right is not None and worst is not None and math.isfinite(right) and math.isfinite(worst["mean"]):
            placed.append((number, point, right, worst))
    identity = f"frontier-{axis.key}-{metric}"
    svg = ElementTree.Element(
        "svg",
        {
            "viewBox": f"0 0 {_WIDTH} {_HEIGHT}",
            "role": "img",
            "class": "chart",
            "aria-labelledby": f"{identity}-t {identity}-d",
        },
    )
    _child(svg, "title", {"id": f"{identity}-t"}, f"{scale.label} by {axis.title}")
    best = stairs([(right, worst["mean"]) for _, _, right, worst in placed])
    said = [f"{_name(placed[row][1])}: {scale.with_unit(placed[row][3]['mean'])}" for row in best]
    _child(svg, "desc", {"id": f"{identity}-d"}, text.plain("on the line: " + "; ".join(said) if said else "no values"))
    across = _Scale([item[2] for item in placed], axis.decades, _LEFT, _WIDTH - _RIGHT)
    spread = [bound for *_, worst in placed for bound in (worst["low"], worst["high"]) if math.isfinite(bound)]
    heights = [*(item[3]["mean"] for item in placed), *spread]
    up = _Scale([min(height, _MOST.get(metric, height)) for height in heights], False, _HEIGHT - _BOTTOM, _TOP)
    for tick in up.ticks:
        level = f"{up(tick):g}"
        rule = {"class": "grid", "x1": f"{_LEFT}", "x2": f"{_WIDTH - _RIGHT}", "y1": level, "y2": level}
        _child(svg, "line", rule)
        where = {"class": "tick", "text-anchor": "end", "x": f"{_LEFT - 8}", "y": f"{up(tick) + 4:g}"}
        _child(svg, "text", where, scale.limit(tick))
    for tick in across.ticks:
        where = {"class": "tick", "text-anchor": "middle", "x": f"{across(tick):g}", "y": f"{_HEIGHT - _BOTTOM + 20}"}
        _child(svg, "text", where, axis.show(tick))
    middle = {"class": "name", "text-anchor": "middle", "x": f"{(_LEFT + _WIDTH - _RIGHT) / 2:g}"}
    _child(svg, "text", {**middle, "y": f"{_HEIGHT - 10}"}, axis.title)
    corners = _corners([(across(placed[row][2]), up(placed[row][3]["mean"])) for row in best])
    _child(svg, "polyline", {"class": "stairs", "points": corners})
    for number, point, right, worst in sorted(placed, key=lambda item: item[1]["front"]):
        colour = record["layers"].index(point["layer"]) % len(MARKERS)
        leads = "lead" if point["front"] else "beaten"
        mark = _child(svg, "g", {"class": f"line s{colour} point {leads}", "data-point": f"{number}"})
        _child(mark, "title", {}, text.plain(f"{_note(record, point)}; {scale.label} {_interval(metric, worst)}"))
        x, y = across(right), up(worst["mean"])
        if math.isfinite(worst["low"]) and math.isfinite(worst["high"]):
            _child(mark, "path", {"class": "bar", "d": f"M{x:g},{up(worst['high']):g}V{up(worst['low']):g}"})
        marker(mark, shapes.index(family(point)), x, y)
        _child(mark, "circle", {"class": "hit", "cx": f"{x:g}", "cy": f"{y:g}", "r": "10"})
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def stairs(values: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the values that no other beats: from left to right, each lower than all before."""
    found: list[int] = []
    for row in sorted(range(len(values)), key=lambda row: values[row]):
        if not found or values[row][1] < values[found[-1]][1]:
            found.append(row)
    return found


def swatches(record: Mapping[str, Any]) -> tuple[list[tuple[Markup, str]], list[tuple[Markup, str]]]:
    """Return the key: a colour for each layer, a shape for each kind of defense."""
    layers = [(_swatch(number, 0), name) for number, name in enumerate(record["layers"])]
    return layers, [(_swatch(5, number), name) for number, name in enumerate(families(record))]


class _Scale:
    """From values to places between two ends, over round ticks or over decades."""

    def __init__(self, values: Sequence[float], decades: bool, start: float, end: float) -> None:
        self.decades = decades and bool(values) and min(values) > 0
        self._start, self._end = start, end
        found = [math.log10(value) for value in values] if self.decades else list(values)
        low, high = (min(found), max(found)) if found else (0.0, 1.0)
        if self.decades:
            pad = max(_PAD * (high - low), 0.05)
            self._low, self._high = low - pad, high + pad
            self.ticks = _round(self._low, self._high)
        else:
            self.ticks = ticks(low, high)
            self._low, self._high = self.ticks[0], self.ticks[-1]

    def __call__(self, value: float) -> float:
        found = math.log10(value) if self.decades else value
        share = (found - self._low) / (self._high - self._low)
        return round(self._start + (self._end - self._start) * min(max(share, 0.0), 1.0), 1)


def _round(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 of each decade between two powers of ten, only 1 where these are many."""
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [step * 10.0**power for power in powers for step in steps if low <= math.log10(step * 10.0**power) <= high]


def _corners(points: Sequence[tuple[float, float]]) -> str:
    """The way down from point to point: level to the next, then down to it."""
    way = list(points[:1])
    for (_, before), (x, y) in itertools.pairwise(points):
        way += [(x, before), (x, y)]
    return " ".join(f"{x:g},{y:g}" for x, y in way)


def _name(point: Point) -> str:
    return f"{point['layer']}, {text.defenses(point['defenses']) or 'undefended'}, {point['wire']}"


def _note(record: Mapping[str, Any], point: Point) -> str:
    costs = [
        f"{axis.title} {axis.show(value)}" for axis in AXES[:3] if (value := axis.value(record, point)) is not None
    ]
    return f"{_name(point)}: {'; '.join(costs)}"


def _interval(metric: str, worst: Mapping[str, Any]) -> str:
    scale = measure(metric)
    return f"{scale.with_unit(worst['mean'])} ({scale.show(worst['low'])} to {scale.show(worst['high'])})"


def _swatch(colour: int, shape: int) -> Markup:
    svg = ElementTree.Element("svg", {"viewBox": "0 0 16 16", "class": "dot", "aria-hidden": "true"})
    marker(_child(svg, "g", {"class": f"line s{colour % len(MARKERS)}"}), shape, 8.0, 8.0)
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def _child(
    parent: ElementTree.Element, tag: str, attributes: dict[str, str], content: str | None = None
) -> ElementTree.Element:
    made = ElementTree.SubElement(parent, tag, attributes)
    made.text = content
    return made
