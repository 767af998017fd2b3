"""The commands that list what there is: layers, victims, attacks, defenses, metrics, data sets, assets."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import bar, say, say_json, table
from .fetching import fetch, fetch_for

if TYPE_CHECKING:
    from ..studies.diagnose import Diagnosis
    from ..victims.victim import Victim

Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("layers")(layers)
    app.command("victims")(victims)
    app.command("attacks")(attacks)
    app.command("defenses")(defenses)
    app.command("metrics")(metrics)
    app.command("datasets")(datasets)
    app.command("pull")(pull)


def layers(
    victim: Annotated[str, typer.Argument(help="SOURCE/NAME[@WEIGHTS]")],
    every: Annotated[bool, typer.Option("--all", help="every legal cut, not block boundaries alone")] = False,
    diagnose: Annotated[bool, typer.Option("--diagnose", help="how far each block can be undone")] = False,
    size: Annotated[int | None, typer.Option(help="input size in pixels")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List where a victim can be cut: shape and bytes of one leak, multiply-adds before and after, kind of block.

    With --diagnose also, of each block and at one synthetic picture: the rule that inverts it, how noisy a copy of its
    input it gives, and the extreme singular values of its Jacobian.
    """
    from .. import victims as sources
    from ..victims import layers as cuts

    fetch_for(victim)
    loaded = sources.load(victim, size=size)
    rows = cuts.layers(loaded, every=every)
    blocks = _diagnoses(loaded) if diagnose else {}
    if not blocks.keys() <= {row.name for row in rows}:
        # A block inside another ends at no boundary.
        listed = {row.name for row in rows} | blocks.keys()
        rows = tuple(row for row in cuts.layers(loaded, every=True) if row.name in listed)
    if as_json:
        known = {name: {"diagnosis": _as_json(block)} for name, block in blocks.items()}
        say_json([dataclasses.asdict(row) | known.get(row.name, {}) for row in rows])
        return
    defaults = set(cuts.default_layers(loaded))
    columns = ("layer", "shape", "fp32", "fp16", "int8", "MMACs before", "after", "kind", "default")
    shown = [
        (
            row.name,
            "x".join(map(str, row.shape)),
            *(f"{row.bytes[form]:,}" for form in ("fp32", "fp16", "int8")),
            f"{row.macs_before / 1e6:,.1f}",
            f"{row.macs_after / 1e6:,.1f}",
            row.kind or "",
            "*" if row.name in defaults else "",
        )
        for row in rows
    ]
    shape = "x".join(map(str, loaded.image_shape))
    title = f"{loaded.name}  {shape}  bytes an image; millions of multiply-adds (MMACs) before and after the cut"
    table(columns, shown, right=columns[2:7], title=title)
    if blocks:
        _print_diagnoses(blocks)


def _diagnoses(victim: Victim) -> dict[str, Diagnosis]:
    from ..studies.diagnose import diagnose

    with bar() as shown:
        task = shown.add_task("diagnosing", total=1.0)
        found = diagnose(victim, progress=lambda done, name: shown.update(task, completed=done, description=name))
    return {block.name: block for block in found}


def _as_json(block: Diagnosis) -> dict[str, Any]:
    condition = block.spectrum.condition
    return {
        "rule": block.rule,
        "recovers": block.recovers,
        "inputs": block.inputs,
        "outputs": block.outputs,
        "loses": block.loses,
        "copy_noise": block.copy_noise,
        "sigma_max": block.spectrum.largest,
        "sigma_min": block.spectrum.smallest,
        "condition": condition if math.isfinite(condition) else "Infinity",
        "estimate": not block.spectrum.exact,
        "invertible": block.invertible,
    }


def _print_diagnoses(blocks: Mapping[str, Diagnosis]) -> None:
    from ..studies.diagnose import EXACT_UP_TO

    shown = []
    for block in blocks.values():
        ends = block.spectrum
        certain = ends.exact or ends.smallest == 0
        verdict = {True: "yes", False: "no", None: "not known"}[block.invertible]
        shown.append(
            (
                block.name,
                block.rule,
                f"{block.inputs:,}",
                f"{block.outputs:,}",
                "-" if block.copy_noise is None else f"{block.copy_noise:.3g}",
                f"{'' if ends.exact else '>='}{ends.largest:.3g}",
                f"{'' if certain else '<='}{ends.smallest:.3g}",
                f"{'' if certain else '>='}{ends.condition:.3g}",
                "loses" if block.loses else verdict,
            )
        )
    columns = ("block", "inverse", "in", "out", "copy noise", "sigma max", "sigma min", "condition", "invertible")
    title = (
        "at one synthetic picture: numbers in and out, |y - S(x)| / |x| with S the block's shortcut, singular values "
        f"of the Jacobian; above {EXACT_UP_TO:,} numbers in, >= and <= are bounds from a Lanczos estimate"
    )
    table(columns, shown, right=columns[2:8], title=title)
    rules = {block.rule: block.recovers for block in blocks.values()}
    table(("inverse", "what comes back"), list(rules.items()))


def victims(as_json: Json = False, debug: Debug = False) -> None:
    """List the sources of victims and the names they know."""
    from .. import victims as sources

    known = sources.known()
    if as_json:
        say_json([dataclasses.asdict(source) for source in known])
        return
    rows = [(f"{s.name}/", str(len(s.names)) if s.names else "any", s.about) for s in known]
    table(("source", "names", "what"), rows, right=("names",))
    table(("for example", "what"), [example for source in known for example in source.examples.items()])


def attacks(as_json: Json = False, debug: Debug = False) -> None:
    """List the attacks, what each brings back and needs, and its parameters at `standard` effort."""
    from .. import registry

    rows = []
    for name in registry.names("attack"):
        attack = registry.build("attack", name)
        parameters = registry.spec("attack", attack).partition(":")[2]
        rows.append(
            {
                "name": name,
                "recovers": attack.recovers,
                "access": attack.access,
                "auxiliary": attack.auxiliary,
                "what": _first_sentence(attack),
                "parameters": parameters,
                "efforts": attack.efforts,
            }
        )
    if as_json:
        say_json(rows)
        return
    columns = ("name", "recovers", "access", "auxiliary", "what", "parameters")
    shown = [(*(str(row[column]) for column in columns[:5]), str(row["parameters"]).replace(",", ", ")) for row in rows]
    table(columns, shown)


def defenses(as_json: Json = False, debug: Debug = False) -> None:
    """List the defenses: who holds the secret, whom each helps against, and its parameters."""
    from .. import registry

    rows = []
    for name in registry.names("defense"):
        defense = registry.build("defense", name)
        rows.append(
            {
                "name": name,
                "holder": defense.holder,
                "protects_from": list(defense.protects_from),
                "what": _first_sentence(defense),
                "parameters": registry.spec("defense", defense).partition(":")[2],
            }
        )
    if as_json:
        say_json(rows)
        return
    shown = [
        (
            row["name"],
            row["holder"],
            ", ".join(row["protects_from"]),
            row["what"],
            row["parameters"].replace(",", ", "),
        )
        for row in rows
    ]
    table(("name", "held by", "helps against", "what", "parameters"), shown)


def metrics(as_json: Json = False, debug: Debug = False) -> None:
    """List the metrics, their units and which way leaks."""
    from .. import registry

    rows = []
    for name in registry.names("metric"):
        metric = registry.build("metric", name)
        way = "higher" if metric.higher_means_more_leakage else "lower"
        rows.append({"name": name, "unit": metric.unit, "leaks": way, "what": _first_sentence(metric)})
    if as_json:
        say_json(rows)
        return
    columns = ("name", "unit", "leaks", "what")
    table(columns, [tuple(row[column] for column in columns) for row in rows])


def datasets(as_json: Json = False, debug: Debug = False) -> None:
    """List the data sets that IMAGES can name."""
    from .. import registry

    rows = [
        {"name": name, "what": _first_sentence(registry.get("dataset", name))} for name in registry.names("dataset")
    ]
    if as_json:
        say_json(rows)
    elif rows:
        table(("name", "what"), [(row["name"], row["what"]) for row in rows])
    else:
        say("no dataset is registered")


def pull(
    names: Annotated[
        list[str] | None, typer.Argument(help="weights or data sets; the weights of the defaults unless named")
    ] = None,
    debug: Debug = False,
) -> None:
    """Fetch the weights that the defaults need, or what is named: `cifar10`."""
    from ..assets import ASSETS

    for path in fetch(names or list(ASSETS)):
        say(path)


def _first_sentence(component: Any) -> str:
    text = inspect.getdoc(component) or ""
    return " ".join(text.split("\n\n")[0].split())
