"""What the figures share: their look by day and by night, and the frame that parts are put into."""

from __future__ import annotations

from collections.abc import Sequence

STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#555}.head{font-weight:600;fill:#333}.rule{stroke:#ccc;fill:none}"
    ".page{fill:#fff}.null{stroke:#888;stroke-dasharray:3 3}.human{stroke:#888;stroke-dasharray:8 4}"
    "@media(prefers-color-scheme:dark){text{fill:#bbb}.head{fill:#ddd}.rule{stroke:#444}.page{fill:#1a1a1a}}"
)


def document(width: float, height: float, said: str, parts: Sequence[str]) -> str:
    """Return an SVG of some parts; `said` is read to those who do not see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{said}"><style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def mark(
    colour: str, at: tuple[float, float], low: tuple[float, float], high: tuple[float, float], *, hollow: bool = False
) -> str:
    """Return a dot with its interval."""
    dot = 'class="page" stroke-width="1.5"' if hollow else f'fill="{colour}"'
    return (
        f'<path stroke="{colour}" stroke-width="1.5" d="M{low[0]:.1f} {low[1]:.1f}L{high[0]:.1f} {high[1]:.1f}"/>'
        f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="3.5" stroke="{colour}" {dot}/>'
    )
