"""A figure of one column of dots a factor: PSNR by level, an attack a mark, with the interval of its mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from svg import document, mark

COLOURS = ("#1a6fb0", "#c05a12", "#5b7f2b")
LEFT, WIDTH, RIGHT, LINE, GAP = 150, 470, 20, 22, 34


def chart(records: Sequence[dict[str, Any]], attacks: Sequence[str]) -> str:
    """Return an SVG of records as `factors.json` has them: panels by factor and weights, rows by level.

    The dashed line is the strongest null control. The axis is PSNR in dB from 0 to the largest interval's end.
    """
    attacks = [attack for attack in attacks if any(one["attack"] == attack for one in records)]
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for one in records:
        title = f"{one['factor']}, {'trained' if one['trained'] else 'random'}"
        groups.setdefault(title, {}).setdefault(one["level"], []).append(one)
    most = max((one["psnr"]["ci_high"] for one in records), default=1.0)
    most = 10 * (int(most / 10) + 1)

    def across(value: float) -> float:
        return LEFT + WIDTH * max(value, 0.0) / most

    parts, y = [], 40.0
    for place, attack in enumerate(attacks):
        x = LEFT + 90 * place
        parts.append(
            f'<circle cx="{x}" cy="16" r="4" fill="{COLOURS[place]}"/><text x="{x + 9}" y="20">{attack}</text>'
        )
    for title, levels in groups.items():
        parts.append(f'<text class="head" x="8" y="{y:.0f}">{escape(title)}</text>')
        top = y + 8
        for level, ones in levels.items():
            y += LINE
            parts.append(f'<text x="{LEFT - 12}" y="{y + 4:.0f}" text-anchor="end">{escape(level)}</text>')
            for one in ones:
                place = attacks.index(one["attack"])
                parts.append(_mark(one, across, y + 5 * (place - (len(attacks) - 1) / 2), COLOURS[place]))
        null = max(max(one["controls"].values()) for ones in levels.values() for one in ones)
        bottom = y + 10
        parts.append(f'<path class="null" d="M{across(null):.1f} {top:.0f}V{bottom:.0f}"/>')
        parts.append(f'<path class="rule" fill="none" d="M{LEFT} {top:.0f}V{bottom:.0f}H{LEFT + WIDTH}"/>')
        y += GAP
    step = 10 if most <= 80 else 20
    for tick in range(0, most + 1, step):
        parts.append(f'<text x="{across(tick):.1f}" y="{y:.0f}" text-anchor="middle">{tick}</text>')
    parts.append(f'<text x="{LEFT + WIDTH / 2:.0f}" y="{y + 18:.0f}" text-anchor="middle">PSNR, dB</text>')
    said = "PSNR of recovered pictures by factor and attack; the table beside has the numbers"
    return document(LEFT + WIDTH + RIGHT, y + 28, said, parts)


def _mark(one: dict[str, Any], across: Any, y: float, colour: str) -> str:
    low, mean, high = (across(one["psnr"][name]) for name in ("ci_low", "mean", "ci_high"))
    return mark(colour, (mean, y), (low, y), (high, y))
