"""Docstrings are written to be read in the source: make reStructuredText of them where the reference shows them."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_BAR = re.compile(r"(?<![`\\])\|(?!`)")


def literal(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Show what stands in backticks as code, and bars (norms) as bars."""
    for index, line in enumerate(lines):
        lines[index] = "".join(
            part if part.startswith("``") else _BAR.sub(r"\\|", part)
            for part in re.split(r"(``.*?``)", _CODE.sub(r"``\1``", line))
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to autodoc."""
    app.connect("autodoc-process-docstring", literal, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
