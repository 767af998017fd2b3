"""Leakage by depth as inline SVG: one line an attack, over what an attacker without features reaches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

from ..schema import Cell
from . import text
from .glossary import Measure, control_name, measure, ordered
from .verdict import LayerVerdict, Verdict

CHARTED = (
    *("psnr", "ssim", "ms_ssim", "lpips", "agreement", "rank1", "knn_distance"),
    *("cider", "rouge_l", "nll", "nll_gap", "top1", "top5"),
)
_UNBOUNDED = ("cider", "nll", "nll_gap")
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "ring")
_MARGIN_TOP, _MARGIN_RIGHT = 18, 18
_LETTER = 6.6
_LEAST_ROOM, _SHARE_ROOM = 17, 44
_LEAST_SPAN = 1e-3


@dataclass(frozen=True)
class Point:
    """One mean with its interval at one layer; `note` says what a reader who points at it is told."""

    place: int
    value: float
    low: float
    high: float
    note: str


@dataclass(frozen=True)
class Series:
    """One line: an attack (`number` picks colour and marker), a control (dashed) or a ceiling (dotted)."""

    name: str
    number: int
    points: tuple[Point, ...]
    control: bool = False
    ceiling: bool = False

    @property
    def attack(self) -> bool:
        """Whether it shows what an attack reached."""
        return not (self.control or self.ceiling)


@dataclass(frozen=True)
class Chart:
    """One metric's chart, drawn wide and narrow, and the key to its lines."""

    metric: str
    title: str
    caption: str
    wide: Markup
    narrow: Markup
    key: tuple[tuple[Markup, str], ...]


def charts(verdict: Verdict, name: str) -> tuple[Chart, ...]:
    """Draw every metric that is worth a chart, the one that decides first. `name` makes the drawings' ids unique."""
    present = {key for cell in verdict.cells for key in cell.summary}
    wanted = [key for key in ordered(present) if key in CHARTED or key == verdict.threshold.metric]
    wanted.sort(key=lambda key: key != verdict.threshold.metric)
    return tuple(_chart(verdict, measure(key), f"{name}-{key}") for key in wanted)


def series(verdict: Verdict, key: str) -> tuple[Series, ...]:
    """Return the lines of one metric: attacks in the order of their names, then null controls, then ceilings."""
    scale = measure(key)
    attacks: dict[str, list[Point]] = {}
    controls: dict[str, list[Point]] = {}
    ceilings: dict[str, list[Point]] = {}
    for place, layer in enumerate(verdict.layers):
        for cell in layer.cells:
            if key in cell.summary:
                name = verdict.attacker(cell)
                attacks.setdefault(name, []).append(_point(place, cell, name, scale))
        for kind, lines in (("control", controls), ("ceiling", ceilings)):
            for name, value in _strongest(layer, kind, scale).items():
                note = f"{kind}, {control_name(name)}, at {layer.layer}: {scale.label} {scale.with_unit(value)}"
                lines.setdefault(name, []).append(Point(place, value, value, value, note))
    return (
        *(Series(name, index, tuple(attacks[name])) for index, name in enumerate(sorted(attacks))),
        *(
            Series(control_name(name), i, tuple(controls[name]), control=True)
            for i, name in enumerate(sorted(controls))
        ),
        *(
            Series(control_name(name), i, tuple(ceilings[name]), ceiling=True)
            for i, name in enumerate(sorted(ceilings))
        ),
    )


def _strongest(layer: LayerVerdict, kind: str, scale: Measure) -> dict[str, float]:
    """Return each control, or ceiling, by name where it says most leakage among the layer's attacks."""
    strongest: dict[str, float] = {}
    for cell in layer.cells:
        for name, scores in (cell.controls if kind == "control" else cell.ceilings).items():
            if scale.key in scores and not math.isnan(scores[scale.key].mean):
                value, known = scores[scale.key].mean, strongest.get(name)
                strongest[name] = value if known is None or scale.leaks_more(value, known) else known
    return strongest


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers at equal steps that enclose an interval."""
    if high - low < _LEAST_SPAN:
        low, high = low - _LEAST_SPAN, high + _LEAST_SPAN
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if span / (power * factor) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * index, 10) for index in range(first, last + 1)]


def _point(place: int, cell: Cell, name: str, scale: Measure) -> Point:
    stats = cell.summary[scale.key]
    note = (
        f"{name} at {cell.spec.layer}: {scale.label} {scale.with_unit(stats.mean)}, "
        f"95{text.NARROW}% interval {scale.interval(stats)}, n = {stats.n}"
    )
    return Point(place, stats.mean, stats.ci_low, stats.ci_high, note)


def _chart(verdict: Verdict, scale: Measure, name: str) -> Chart:
    lines = series(verdict, scale.key)
    decides = scale.key == verdict.threshold.metric
    key: list[tuple[Markup, str]] = [(_swatch(line), line.name) for line in lines if line.attack]
    key += [(_swatch(line), f"control: {line.name}") for line in lines if line.control]
    key += [(_swatch(line), f"ceiling: {line.name}") for line in lines if line.ceiling]
    if decides:
        sense = "at least" if scale.higher_leaks else "at most"
        key.append((_rule_swatch(), f"recognisable: {sense} {scale.limit(verdict.threshold.value)}"))
    title = f"{scale.label}{f', {scale.unit}' if scale.unit else ''}"
    caption = (
        f"Mean {scale.label} with its 95{text.NARROW}% interval; further up is more leakage. "
        "The shaded area is what an attacker without the features reaches."
    )
    if any(line.ceiling for line in lines):
        caption += " The dotted line is the ceiling: what can be reached with the picture at hand."
    drawings = [_Drawing(verdict, scale, lines, width, f"{name}-{width}").markup() for width in (960, 380)]
    return Chart(scale.key, title, caption, drawings[0], drawings[1], tuple(key))


class _Drawing:
    """One chart at one width. Built as a tree, so that no name can become markup."""

    def __init__(self, verdict: Verdict, scale: Measure, lines: Sequence[Series], width: int, name: str) -> None:
        self._verdict, self._scale, self._lines = verdict, scale, lines
        self._width, self._name = width, name
        layers = verdict.layers
        self._ticks = self._axis()
        self._left = 16 + _LETTER * max(len(scale.show(tick)) for tick in self._ticks)
        self._room = (width - self._left - _MARGIN_RIGHT) / max(1, len(layers))
        names = [text.plain(layer.layer) for layer in layers]
        self._prefix = "" if _fits(names, self._room) else common_prefix(names)
        self._labels = [_short(name.removeprefix(self._prefix)) for name in names]
        self._tilted = not _fits(self._labels, self._room)
        self._every = math.ceil(_LEAST_ROOM / self._room) if self._tilted else 1
        longest = max(map(len, self._labels), default=0) * _LETTER
        self._bottom = (26 + longest * 0.72 if self._tilted else 44.0) + (18 if self._prefix else 0)
        self._height = round((300 if width > 500 else 250) + self._bottom)

    def markup(self) -> Markup:
        """Return the finished `<svg>`."""
        svg = ElementTree.Element(
            "svg",
            {
                "viewBox": f"0 0 {self._width} {self._height}",
                "role": "img",
                "aria-labelledby": f"{self._name}-t {self._name}-d",
                "class": "chart",
            },
        )
        _child(svg, "title", id=f"{self._name}-t").text = f"{self._scale.label} by depth of the cut"
        _child(svg, "desc", id=f"{self._name}-d").text = self._description()
        self._grid(svg)
        self._shade(svg)
        self._threshold(svg)
        attacks = [line for line in self._lines if line.attack]
        for line in self._lines:
            if not line.attack:
                self._polyline(svg, line, 0.0)
        for index, line in enumerate(attacks):
            step = min(9.0, self._room * 0.5 / max(1, len(attacks)))
            self._polyline(svg, line, step * (index - (len(attacks) - 1) / 2))
        return Markup(ElementTree.tostring(svg, encoding="unicode"))

    def _axis(self) -> list[float]:
        values = [value for line in self._lines for p in line.points for value in (p.value, p.low, p.high)]
        if self._scale.key == self._verdict.threshold.metric:
            values += [self._verdict.threshold.low, self._verdict.threshold.high]
        values = [value for value in values if math.isfinite(value)]
        if self._scale.key != "psnr":
            values += [0.0] if self._scale.key in _UNBOUNDED else [0.0, 1.0]
        return ticks(min(values, default=0.0), max(values, default=1.0))

    def _x(self, place: int) -> float:
        return round(self._left + self._room * (place + 0.5), 2)

    def _y(self, value: float) -> float:
        low, high = self._ticks[0], self._ticks[-1]
        share = (value - low) / (high - low)
        up = share if self._scale.higher_leaks else 1 - share
        return round(_MARGIN_TOP + (1 - up) * (self._floor - _MARGIN_TOP), 2)

    @property
    def _floor(self) -> float:
        return self._height - self._bottom

    def _description(self) -> str:
        notes = [text.plain(point.note) for line in self._lines if not line.control for point in line.points]
        return "; ".join(notes) or "no values"

    def _grid(self, svg: ElementTree.Element) -> None:
        right = self._width - _MARGIN_RIGHT
        for tick in self._ticks:
            y = self._y(tick)
            _child(svg, "line", {"class": "grid"}, x1=self._left, x2=right, y1=y, y2=y)
            label = _child(svg, "text", {"class": "tick", "text-anchor": "end"}, x=self._left - 8, y=y + 4)
            label.text = self._scale.show(tick) if self._scale.style == "percent" else f"{tick:g}".replace("-", "−")
        for place, layer in enumerate(self._verdict.layers):
            if place % self._every == 0:
                self._layer(svg, place, layer)
        if self._prefix:
            where = {"class": "tick", "text-anchor": "middle"}
            middle = (self._left + self._width - _MARGIN_RIGHT) / 2
            _child(svg, "text", where, x=middle, y=self._height - 6).text = f"layers of {self._prefix.rstrip('.')}"

    def _layer(self, svg: ElementTree.Element, place: int, layer: LayerVerdict) -> None:
        x, y = self._x(place), self._floor + 18
        shown = text.plain(layer.layer)
        whole = shown if layer.share is None else f"{shown}: {text.share(layer.share)} of the work on the device"
        if self._tilted:
            turned = {"class": "name", "text-anchor": "end", "transform": f"rotate(-40 {x} {y})"}
            label = _child(svg, "text", turned, x=x + 4, y=y)
        else:
            label = _child(svg, "text", {"class": "name", "text-anchor": "middle"}, x=x, y=y)
            if layer.share is not None and self._room > _SHARE_ROOM:
                below = _child(svg, "text", {"class": "tick", "text-anchor": "middle"}, x=x, y=y + 16)
                below.text = f"{text.share(layer.share)}{' on device' if self._room > 110 else ''}"
        label.text = self._labels[place]
        _child(label, "title").text = whole

    def _shade(self, svg: ElementTree.Element) -> None:
        """Fill what lies below the strongest control of each layer."""
        best: dict[int, float] = {}
        for point in (point for line in self._lines if line.control for point in line.points):
            known = best.get(point.place)
            if math.isfinite(point.value) and (known is None or self._scale.leaks_more(point.value, known)):
                best[point.place] = point.value
        if not best:
            return
        places = sorted(best)
        corners = [(self._left, self._y(best[places[0]]))]
        corners += [(self._x(place), self._y(best[place])) for place in places]
        corners += [(self._width - _MARGIN_RIGHT, self._y(best[places[-1]]))]
        corners += [(self._width - _MARGIN_RIGHT, self._floor), (self._left, self._floor)]
        _child(svg, "polygon", {"class": "shade", "points": " ".join(f"{x:g},{y:g}" for x, y in corners)})

    def _threshold(self, svg: ElementTree.Element) -> None:
        threshold = self._verdict.threshold
        if self._scale.key != threshold.metric:
            return
        y, right = self._y(threshold.value), self._width - _MARGIN_RIGHT
        top, base = sorted((self._y(threshold.low), self._y(threshold.high)))
        band = {"class": "band"}
        _child(svg, "rect", band, x=self._left, y=top, width=right - self._left, height=base - top)
        _child(svg, "line", {"class": "rule"}, x1=self._left, x2=right, y1=y, y2=y)
        label = _child(svg, "text", {"class": "ruled", "text-anchor": "end"}, x=right, y=y - 6)
        label.text = "recognisable ↑"

    def _polyline(self, svg: ElementTree.Element, line: Series, shift: float) -> None:
        group = _child(svg, "g", {"class": _class(line)})
        finite = [point for point in line.points if math.isfinite(point.value)]
        if len(finite) > 1 or not line.attack:
            corners = [(self._x(p.place) + shift, self._y(p.value)) for p in finite]
            if not line.attack and len(corners) == 1:
                x, y = corners[0]
                corners = [(x - self._room / 2, y), (x + self._room / 2, y)]
            _child(group, "polyline", {"points": " ".join(f"{x:g},{y:g}" for x, y in corners)})
        for point in line.points:
            mark = _child(group, "g")
            _child(mark, "title").text = text.plain(point.note)
            x = round(self._x(point.place) + shift, 2)
            if not math.isfinite(point.value):
                label = _child(mark, "text", {"class": "tick", "text-anchor": "middle"}, x=x, y=self._floor - 6)
                label.text = self._scale.show(point.value)
                continue
            y = self._y(point.value)
            if not line.attack:
                _child(mark, "circle", {"class": "hit"}, cx=x, cy=y, r=7)
                continue
            if math.isfinite(point.low) and math.isfinite(point.high):
                top, base = self._y(point.high), self._y(point.low)
                path = f"M{x:g},{top:g}V{base:g}M{x - 3.5:g},{top:g}h7M{x - 3.5:g},{base:g}h7"
                _child(mark, "path", {"class": "bar", "d": path})
            marker(mark, line.number, x, y)
            _child(mark, "circle", {"class": "hit"}, cx=x, cy=y, r=11)


def common_prefix(names: Sequence[str]) -> str:
    """Return what all names begin with, up to and with its last dot."""
    parts = [name.split(".")[:-1] for name in names] if len(names) > 1 else []
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    return "".join(f"{column[0]}." for column in alike)


def _fits(labels: Sequence[str], room: float) -> bool:
    return max(map(len, labels), default=0) * _LETTER + 8 <= room


def _short(name: str) -> str:
    return name if len(name) < 26 else f"…{name[-24:]}"


def _class(line: Series) -> str:
    if line.ceiling:
        return "ceiling"
    return f"control c{line.number % 3}" if line.control else f"line s{line.number % len(MARKERS)}"


def _child(
    parent: ElementTree.Element, tag: str, attributes: dict[str, str] | None = None, **numbers: float | int | str
) -> ElementTree.Element:
    given = {key: value if isinstance(value, str) else f"{value:g}" for key, value in numbers.items()}
    return ElementTree.SubElement(parent, tag, (attributes or {}) | given)


def marker(parent: ElementTree.Element, number: int, x: float, y: float) -> None:
    """Add the mark of one of `MARKERS` to a drawing."""
    shape = MARKERS[number % len(MARKERS)]
    if shape in ("circle", "ring"):
        _child(parent, "circle", {"class": "mark" if shape == "circle" else "mark open"}, cx=x, cy=y, r=4.6)
        return
    path = {
        "square": "m-4.2,-4.2h8.4v8.4h-8.4z",
        "triangle": "m0,-5.4l5.2,9.2h-10.4z",
        "diamond": "m0,-6l5.4,6l-5.4,6l-5.4,-6z",
        "cross": "m-4.2,-4.2l8.4,8.4m0,-8.4l-8.4,8.4",
    }[shape]
    _child(parent, "path", {"class": "mark cross" if shape == "cross" else "mark", "d": f"M{x:g},{y:g}{path}"})


def _swatch(line: Series) -> Markup:
    svg = ElementTree.Element("svg", {"viewBox": "0 0 34 16", "class": "swatch", "aria-hidden": "true"})
    group = _child(svg, "g", {"class": _class(line)})
    _child(group, "polyline", {"points": "1,8 33,8"})
    if line.attack:
        marker(group, line.number, 17.0, 8.0)
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def _rule_swatch() -> Markup:
    svg = ElementTree.Element("svg", {"viewBox": "0 0 34 16", "class": "swatch", "aria-hidden": "true"})
    _child(svg, "line", {"class": "rule"}, x1=1, x2=33, y1=8, y2=8)
    return Markup(ElementTree.tostring(svg, encoding="unicode"))
