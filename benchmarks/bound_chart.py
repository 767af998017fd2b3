"""A figure of the best attack over the bound: mean squared error by noise, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from seepage.audit.statistics import describe
from svg import document, mark

LEFT, TOP, WIDTH, HEIGHT, RIGHT = 62, 34, 430, 260, 220
PICTURES = {"drawn": ("#1a6fb0", "attack, drawn from the prior"), "natural": ("#c05a12", "attack, CIFAR-10")}


def chart(rows: Sequence[dict[str, Any]]) -> str:
    """Return an SVG of the rows of `bounds.json`'s part `attack`: bound, attack and their intervals."""
    stats = [{name: describe(row[name]["mse"], higher_leaks=False) for name in PICTURES} for row in rows]
    shares = [row["noise over spread"] for row in rows]
    values = [row["bound"]["low"] for row in rows] + [one.ci_high for each in stats for one in each.values()]
    x = _axis(shares, LEFT + 20, LEFT + WIDTH - 20)
    y = _axis([10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))], TOP + HEIGHT, TOP)
    parts = [f'<path class="rule" d="M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}"/>']
    for power in range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1):
        height = y(10.0**power)
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">1e{power}</text>')
    for share in shares:
        parts.append(f'<text x="{x(share):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{share:g}</text>')
    bound = " ".join(f"{x(row['noise over spread']):.1f},{y(row['bound']['value']):.1f}" for row in rows)
    parts.append(f'<polyline class="human" fill="none" points="{bound}"/>')
    for place, (name, (colour, _)) in enumerate(PICTURES.items()):
        for share, each in zip(shares, stats, strict=True):
            at = x(share) + 8 * (place - 0.5)
            one = each[name]
            parts.append(mark(colour, (at, y(one.mean)), (at, y(one.ci_low)), (at, y(one.ci_high))))
    at = LEFT + WIDTH + 14
    parts.append(f'<path class="human" d="M{at - 8} {TOP + 40}H{at + 8}"/>')
    parts.append(f'<text x="{at + 15}" y="{TOP + 44}">bound (van Trees)</text>')
    for place, (colour, said) in enumerate(PICTURES.values()):
        parts.append(f'<circle cx="{at}" cy="{TOP + 64 + 22 * place}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{at + 15}" y="{TOP + 68 + 22 * place}">{said}</text>')
    parts.append(f'<text x="{LEFT - 40}" y="{TOP - 14}">mean squared error</text>')
    middle = LEFT + WIDTH / 2
    parts.append(f'<text x="{middle:.0f}" y="{TOP + HEIGHT + 38}" text-anchor="middle">noise over spread</text>')
    said = "Mean squared error of the best attack and the bound on it, by noise; the table beside has the numbers"
    return document(LEFT + WIDTH + RIGHT, TOP + HEIGHT + 48, said, parts)


def _axis(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """Return the way from a value to its place on a logarithmic axis over all of them."""
    low, high = math.log(min(values)), math.log(max(values))
    return lambda value: start + (end - start) * (math.log(value) - low) / (high - low)
