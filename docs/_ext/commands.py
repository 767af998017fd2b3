"""`{commands}`: the command line's reference, written at build time from the program itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.main import get_command

from seepage.cli import app


class Commands(SphinxDirective):
    """A section for every command: what it does, its arguments, its options."""

    def run(self) -> list[nodes.Node]:
        text = "\n\n".join(_section(name, command) for name, command in _leaves(get_command(app)))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def _leaves(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """The commands with their names in full: those of a group each by itself."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command, f"{before}{name} ")
        else:
            yield before + name, command


def _section(name: str, command: Any) -> str:
    arguments = [item for item in command.params if item.param_type_name == "argument"]
    options = [item for item in command.params if item.param_type_name == "option" and not item.hidden]
    words = " ".join(item.name.upper() if item.required else f"[{item.name.upper()}]" for item in arguments)
    required = " ".join(f"{item.opts[-1]} {item.name.upper()}" for item in options if item.required)
    usage = " ".join(part for part in ("seepage", name, words, required, "[OPTIONS]") if part)
    parts = [f"## seepage {name}", f"```text\n{usage}\n```", command.help]
    rows = [*_rows(arguments), *_rows(options)]
    if rows:
        parts.append("\n".join(["| | | default |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _rows(params: list[Any]) -> Iterator[str]:
    for item in params:
        argument = item.param_type_name == "argument"
        name = item.name.upper() if argument else ", ".join(f"`{option}`" for option in item.opts)
        shown = f"`{name}`" if argument else name
        many = " (repeatable)" if item.multiple and "repeat" not in item.help else ""
        yield f"| {shown} | {_cell(item.help)}{many} | {_default(item)} |"


def _default(item: Any) -> str:
    if item.required:
        return "required"
    return "" if item.default in (None, False) else f"`{item.default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("[", "\\[").replace("]", "\\]").replace("<", "\\<")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
