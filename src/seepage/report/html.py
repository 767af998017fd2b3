"""The report as one page that needs nothing but itself, and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..schema import Cell
from . import glossary, method, sayings, text, words
from .charts import Chart, charts
from .confusion import Confusion, confusions
from .findings import SAID, Finding, findings, kind, kinds, of_pictures
from .gallery import Embedded, Gallery, Said, gallery
from .glossary import measure
from .protection import costs
from .tables import statistics, table
from .verdict import LayerVerdict, Verdict, verdicts

STATES = {
    "recognisable": ("●", "recognisable"),
    "partly": ("◐", "some recognisable"),
    "hidden": ("○", "not recognisable"),
    "control": ("–", "no better than a control"),
    "unknown": ("?", "no result"),
}

SAID_STATES = {"captions": "told in words", "labels": "label read"}


@dataclass(frozen=True)
class Card:
    """One layer at a glance."""

    layer: str
    state: str
    mark: str
    word: str
    lines: tuple[str, ...]
    picture: Embedded | None
    said: Said | None = None


@dataclass(frozen=True)
class Section:
    """One setting's verdict in words, (headline, evidence) of all that is recovered, its layers and its charts."""

    name: str
    statements: tuple[tuple[str, str], ...]
    caveats: tuple[str, ...]
    advice: str
    costs: str
    cards: tuple[Card, ...]
    charts: tuple[Chart, ...]
    confusions: tuple[Confusion, ...]


@dataclass(frozen=True)
class Pages:
    """One report, twice."""

    html: str
    markdown: str


def render(cells: Sequence[Cell], folder: Path, *, redact: bool) -> Pages:
    """Return the report; pictures are read from below `folder`. With `redact` the cells must be redacted already."""
    judged = verdicts(cells)
    names = [words.setting_name(verdict, judged) for verdict in judged]
    shown = Gallery() if redact else gallery(judged, names, folder)
    content = {
        "victims": list(dict.fromkeys(cell.spec.victim for cell in cells)),
        "pictures": method.pictures(cells),
        "environment": method.environment_line(cells),
        "sections": [_section(n, verdict, names[n], shown, judged) for n, verdict in enumerate(judged)],
        "nothing": words.NOTHING,
        "thresholds": list(dict.fromkeys(v.threshold for v in judged if of_pictures(v) is not None)),
        "rules": [sayings.RULES[said] for said in SAID if said in kinds(cells)],
        "star": "of its layer" if len(kinds(cells)) < 2 else "of its layer among those that recover the same",
        "terms": _terms(cells),
        "warnings": method.warnings(judged),
        "missing": method.missing(judged),
        "failed": method.failed_pictures(cells),
        "table": table(judged),
        "method": method.method(cells),
        "glossary": glossary,
    }
    page = for_html().get_template("report.html")
    parts = {"gallery": shown, "redact": redact, "statistics": statistics(cells)}
    parts |= {"style": source("style.css"), "script": source("script.js")}
    return Pages(page.render(content | parts), _for_markdown().get_template("report.md").render(content))


def _section(number: int, verdict: Verdict, name: str, shown: Gallery, judged: Sequence[Verdict]) -> Section:
    pictured, found = of_pictures(verdict), findings(verdict)
    statements = [] if pictured is None else [(words.headline(pictured), words.evidence(pictured))]
    statements += [(sayings.headline(finding), sayings.evidence(finding, verdict)) for finding in found]
    told = [sentence for sentence in map(sayings.advice, found) if sentence]
    return Section(
        name,
        tuple(statements),
        sayings.caveats(found, verdict, pictured),
        " ".join(filter(None, ("" if pictured is None else words.advice(pictured), *told))),
        costs(verdict, judged),
        tuple(_card(layer, verdict, found, shown, (number, layer.layer)) for layer in verdict.layers),
        charts(verdict, f"chart{number}"),
        confusions(verdict),
    )


def _terms(cells: Sequence[Cell]) -> tuple[tuple[str, str], ...]:
    recovered = kinds(cells)
    more = glossary.TERMS_OF_CAPTIONS if "captions" in recovered else ()
    return (*glossary.TERMS, *more, *(glossary.TERMS_OF_LABELS if "labels" in recovered else ()))


def _card(
    layer: LayerVerdict, verdict: Verdict, found: Sequence[Finding], shown: Gallery, place: tuple[int, str]
) -> Card:
    state: str = layer.state
    mark, word = STATES[layer.state]
    if layer.state == "unknown" and layer.best is not None:
        word = "not judged"
    here = [(finding, at) for finding in found if (at := finding.at(layer.layer)) is not None]
    if here and all(kind(cell) != "images" for cell in layer.cells):
        told = [SAID_STATES[finding.kind] for finding, at in here if at.told]
        state, (mark, word) = ("told", ("●", text.listing(told))) if told else ("control", STATES["control"])
    lines = []
    if layer.best is not None:
        keys = dict.fromkeys((verdict.threshold.metric, "psnr"))
        scores = [_named(key, layer.best.summary[key].mean) for key in keys if key in layer.best.summary]
        lines += [" · ".join(scores), f"{layer.passing} of {layer.counted} pictures" if layer.counted else ""]
    if layer.share is not None:
        lines.append(f"{text.share(layer.share)} on the device")
    lines += [sayings.line(at, finding.key) for finding, at in here]
    return Card(
        layer.layer,
        state,
        mark,
        word,
        tuple(filter(None, lines)),
        shown.thumbnails.get(place),
        shown.said.get(place),
    )


def _named(key: str, value: float) -> str:
    scale = measure(key)
    return scale.with_unit(value) if scale.unit else f"{scale.label} {scale.show(value)}"


def for_html() -> Environment:
    """Return templates whose every value is shown letter by letter."""
    # Everything that is printed passes `plain` and is then escaped: no value may hide, reorder or become markup.
    environment = _environment(
        autoescape=True, finalize=lambda value: value if isinstance(value, Markup) else text.plain(str(value))
    )
    environment.filters["measure"] = measure
    environment.filters["breakable"] = _breakable
    environment.filters["percent"] = text.percent
    return environment


def _breakable(name: str) -> Markup:
    """A dotted name that may break behind its dots."""
    return Markup(".<wbr>").join(text.plain(name).split("."))


def _for_markdown() -> Environment:
    environment = _environment(
        autoescape=False, finalize=lambda value: value if isinstance(value, Markup) else text.markdown(str(value))
    )
    environment.filters["measure"] = measure
    environment.filters["raw"] = Markup
    return environment


def _environment(*, autoescape: bool, finalize: Callable[[object], str]) -> Environment:
    return Environment(
        loader=PackageLoader("seepage.report"),
        autoescape=autoescape,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def source(name: str) -> Markup:
    """Return a template's file as it stands."""
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))
