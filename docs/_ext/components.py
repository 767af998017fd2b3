"""`{components} KIND`: what is built in, written at build time from the code."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from seepage import registry, victims
from seepage.thresholds import RECOGNISABLE, RECOGNISABLE_SMALL


class Components(SphinxDirective):
    """A table of what is built in: attacks, metrics, data sets, victim sources, thresholds."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(_WRITTEN[self.arguments[0]]())


def _attacks() -> str:
    parts = []
    for name in registry.names("attack"):
        attack = registry.build("attack", name)
        efforts = [name for name in ("quick", "standard", "full") if name == "standard" or name in attack.efforts]
        built = {effort: registry.build("attack", name, attack.efforts.get(effort, {})) for effort in efforts}
        rows = [
            [f"`{field.name}`", *(f"`{getattr(built[effort], field.name)}`" for effort in efforts)]
            for field in dataclasses.fields(attack)
        ]
        rows.append(["passes a picture, at most", *(f"{built[effort].budget:,}" for effort in efforts)])
        needs = f"Recovers {attack.recovers}. Access: {attack.access}. Auxiliary data: {attack.auxiliary}."
        parts.append(f"`{name}`\n: {_about(attack)} {needs}\n\n" + _indent(_table(["parameter", *efforts], rows)))
    return "\n\n".join(parts)


def _metrics() -> str:
    rows = []
    for name in registry.names("metric"):
        metric = registry.build("metric", name)
        way = "higher" if metric.higher_means_more_leakage else "lower"
        perfect = "" if metric.perfect is None else f"{metric.perfect:g}"
        rows.append([f"`{name}`", _about(metric), metric.unit, way, perfect])
    return _table(["metric", "what", "unit", "more leakage", "at the truth"], rows)


def _datasets() -> str:
    rows = [[f"`{name}/`", _about(registry.get("dataset", name))] for name in registry.names("dataset")]
    return _table(["name", "what"], rows)


def _victims() -> str:
    rows = []
    for source in victims.known():
        names = ", ".join(f"`{name}`" for name in source.names[:3]) + (", ..." if len(source.names) > 3 else "")
        rows.append([f"`{source.name}/`", source.about, str(len(source.names) or "any"), names])
    return _table(["source", "what", "names", "for example"], rows)


def _thresholds() -> str:
    rows = [
        [f"`{item.metric}`", f"{item.value:.3f}", f"{item.low:.3f} to {item.high:.3f}", pictures]
        for item, pictures in ((RECOGNISABLE, "161 px and more"), (RECOGNISABLE_SMALL, "smaller"))
    ]
    return _table(["metric", "recognisable from", "95 % interval", "pictures of"], rows)


_WRITTEN = {
    "attacks": _attacks,
    "metrics": _metrics,
    "datasets": _datasets,
    "victims": _victims,
    "thresholds": _thresholds,
}


def _about(component: Any) -> str:
    return " ".join((inspect.getdoc(component) or "").split("\n\n")[0].split())


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("components", Components)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
