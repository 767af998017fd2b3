"""A figure of words by depth: CIDEr at each cut of one victim, an attack a line, beside controls and ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from svg import document, mark

COLOURS = {
    "caprecover": "#7b4fb5",
    "caprecover, one for three cuts": "#1a6fb0",
    "nearest": "#5b7f2b",
    "authors' scheme, one for three cuts": "#c05a12",
}
LEFT, TOP, WIDTH, HEIGHT, RIGHT = 52, 34, 430, 230, 250


def chart(rows: Sequence[dict[str, Any]], layers: Sequence[str]) -> str:
    """Return an SVG of one victim's rows as `captions.json` has them, with the intervals of their scores.

    `caprecover` is one adapter for the last cut, to which leaks of earlier cuts are run on. The dashed lines are the
    strongest null control of any row and what one person scores against the others.
    """
    rows = [{**one, "label": one["label"].removesuffix(", run on")} for one in rows]
    kept = [one for one in rows if one["label"] in COLOURS and one["layer"] in layers and "cider" in one["summary"]]
    nulls = [each["cider"]["mean"] for one in kept for each in one["controls"].values() if "cider" in each]
    human = next((one["ceilings"]["human"]["cider"]["mean"] for one in kept if one.get("ceilings")), None)
    highest = float(max([*(one["summary"]["cider"]["ci_high"] for one in kept), human or 0.0, 0.1]))

    def x(layer: str, shift: float = 0.0) -> float:
        return LEFT + WIDTH * (layers.index(layer) + 0.5) / len(layers) + shift

    def y(score: float) -> float:
        return TOP + HEIGHT * (1 - score / (1.05 * highest))

    parts = [f'<path class="rule" d="M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}"/>']
    parts += [
        f'<text x="{LEFT - 8}" y="{y(tick / 10) + 4:.1f}" text-anchor="end">{tick / 10:.1f}</text>'
        for tick in range(int(10 * highest) + 1)
    ]
    parts += [f'<text x="{x(one):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{one}</text>' for one in layers]
    for name, score in (("null", max(nulls, default=None)), ("human", human)):
        if score is not None:
            said = "best null control" if name == "null" else "one person against the others"
            parts.append(f'<path class="{name}" d="M{LEFT} {y(score):.1f}H{LEFT + WIDTH}"/>')
            parts.append(f'<text x="{LEFT + WIDTH + 8}" y="{y(score) + 4:.1f}">{said}</text>')
    for place, (label, colour) in enumerate(COLOURS.items()):
        line = sorted((one for one in kept if one["label"] == label), key=lambda one: layers.index(one["layer"]))
        if not line:
            continue
        shift = 5.0 * (place - 1.5)
        points = [(x(one["layer"], shift), one["summary"]["cider"]) for one in line]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="'
            + " ".join(f"{at:.1f},{y(score['corpus']):.1f}" for at, score in points)
            + '"/>'
        )
        for at, score in points:
            low, high = (at, y(score["ci_low"])), (at, y(score["ci_high"]))
            parts.append(mark(colour, (at, y(score["corpus"])), low, high))
        at = LEFT + WIDTH + 14
        parts.append(f'<circle cx="{at}" cy="{TOP + 44 + 20 * place}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{at + 9}" y="{TOP + 48 + 20 * place}">{label}</text>')
    parts.append(f'<text x="{LEFT - 8}" y="{TOP - 14}">CIDEr</text>')
    said = "CIDEr of recovered captions by cut and attack; the table beside has the numbers"
    return document(LEFT + WIDTH + RIGHT, TOP + HEIGHT + 34, said, parts)
