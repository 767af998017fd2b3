"""The frontier as one page: every candidate as a point to choose axes for, and as a row."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import replacing
from . import text
from .glossary import Measure, measure
from .html import for_html, source
from .scatter import AXES, drawing, swatches

_UNITS = {"agreement": "same answers", "cosine": "cosine of the answers"}
UNDEFENDED = "undefended"
LOWER_BOUND = (
    "it is a lower bound: the adapter learned on leaks without the defense, and an attacker who learns on defended "
    "ones may get more"
)


def write(record: Mapping[str, Any], folder: Path) -> Path:
    """Write frontier.html and frontier.csv into a folder, each whole or not at all, and return the page's path.

    Raises:
        OutputError: they cannot be written.
    """
    with replacing(folder / "frontier.csv") as part:
        part.write_text(to_csv(record), encoding="utf-8", newline="")
    path = folder / "frontier.html"
    with replacing(path) as part:
        part.write_text(render(record), encoding="utf-8")
    return path


def render(record: Mapping[str, Any]) -> str:
    """Return the page; the same record gives the same bytes."""
    head, body = table(record)
    layers, defenses = swatches(record)
    page: str = (
        for_html()
        .get_template("frontier.html")
        .render(
            name=record["name"],
            data=record["data"],
            n=record["n"],
            effort=record["effort"],
            sentences=sentences(record),
            axes=[(axis.key, axis.title) for axis in AXES],
            metrics=[(key, measure(key).label) for key in record["metrics"]],
            drawings=[(axis.key, key, drawing(record, axis, key)) for key in record["metrics"] for axis in AXES],
            layers=layers,
            defenses=defenses,
            columns=head,
            rows=body,
            attackers=text.listing(record["attackers"]),
            attacks=text.listing([name.partition(":")[0] for name in record["attacks"]]),
            missing=record["missing"],
            style=source("style.css"),
            script=source("frontier.js"),
        )
    )
    return page


def setting(point: Mapping[str, Any]) -> str:
    """Return what is done at a candidate, in words: its defenses, and the wire where it is not fp32."""
    name = text.defenses(point["defenses"]) or UNDEFENDED
    return name if point["wire"] == "fp32" else f"{name}, {point['wire']}"


def sentences(record: Mapping[str, Any]) -> list[str]:
    """Say how many candidates nothing dominates, and what protects most without spoiling the answers."""
    points = record["points"]
    leads = [point for point in points if point["front"]]
    by = [measure(key).label for key in record["deciding"]]
    by += [_UNITS[record["utility"]]] if record["utility"] else []
    verb = "is" if len(leads) == 1 else "are"
    found = [
        f"{len(leads)} of {text.counted(len(points), 'candidate')} {verb} dominated by no other in "
        f"{text.listing([*by, 'bytes', 'work on the device'])}."
    ]
    for key in record["deciding"]:
        kept = [point for point in points if key in point["leakage"] and _keeps(point, record["utility"])]
        known = [point for point in kept if not math.isnan(point["leakage"][key]["mean"])]
        if known:
            least = min(known, key=lambda point: point["leakage"][key]["mean"])
            most = max(known, key=lambda point: point["leakage"][key]["mean"])
            scale = measure(key)
            found.append(
                f"Of those that keep at least 98{text.NARROW}% of the answers, {scale.label} is least at "
                f"{least['layer']}, {setting(least)}: {scale.with_unit(least['leakage'][key]['mean'])}; most at "
                f"{most['layer']}, {setting(most)}: {scale.with_unit(most['leakage'][key]['mean'])}."
            )
        if any(point["leakage"][key]["lower_bound"] for point in points if key in point["leakage"]):
            found.append(f"Where {measure(key).label} is marked so, {LOWER_BOUND}.")
    return found


def _keeps(point: Mapping[str, Any], utility: str | None) -> bool:
    return utility is None or point["utility"][utility] >= 0.98


Column = tuple[str, bool]
Field = tuple[str, str, float | None]


def table(record: Mapping[str, Any]) -> tuple[list[Column], list[tuple[bool, int, list[Field]]]]:
    """Return the columns (title, numeric) and, of each point, whether it leads, its number and its fields.

    A field is what is shown, a smaller line below it and what it sorts by.
    """
    head: list[Column] = [("layer", False), ("defense", False)]
    head += [(measure(key).label, True) for key in record["metrics"]]
    head += [(_UNITS[record["utility"]], True)] if record["utility"] else []
    head += [("bytes", True), ("on the device", True), ("device ms", True), ("server ms", True)]
    body = []
    for number, point in enumerate(record["points"]):
        fields: list[Field] = [(point["layer"], "", None), (setting(point), "", None)]
        fields += [_leak(measure(key), point["leakage"].get(key)) for key in record["metrics"]]
        if record["utility"]:
            kept = point["utility"][record["utility"]]
            fields.append(
                (text.percent(kept, 1) if record["utility"] == "agreement" else text.number(kept, 3), "", kept)
            )
        fields.append((text.size(point["bytes"]), "", point["bytes"]))
        macs = point["macs_before"]
        share = macs / max(macs + point["macs_after"], 1)
        fields.append((text.share(share), text.multiply_adds(macs), macs))
        for key in ("device_ms", "server_ms"):
            took = point[key]
            span = f"{text.number(took['least'], 1)} to {text.number(took['most'], 1)}"
            fields.append((text.number(took["median"], 1), span, took["median"]))
        body.append((bool(point["front"]), number, fields))
    return head, body


def _leak(scale: Measure, worst: Mapping[str, Any] | None) -> Field:
    if worst is None:
        return text.NONE, "", None
    who = worst["attack"].partition(":")[0]
    known = "" if worst["attacker"] == "none" else f", {worst['attacker']}"
    interval = f"{scale.show(worst['low'])} to {scale.show(worst['high'])}"
    value = worst["mean"]
    bound = ", a lower bound" if worst["lower_bound"] else ""
    return scale.with_unit(value), f"{interval}; {who}{known}{bound}", None if math.isnan(value) else value


COLUMNS = ("layer", "defense", "leaks", "utility", "bytes", "device", "ms", "front")


def rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return each candidate as a row under `COLUMNS`, for a terminal."""
    found: list[tuple[str, ...]] = []
    for point in record["points"]:
        leaks = [
            f"{measure(key).label} {measure(key).with_unit(point['leakage'][key]['mean'])}"
            for key in record["deciding"]
            if key in point["leakage"]
        ]
        kept = point["utility"].get(record["utility"])
        share = point["macs_before"] / max(point["macs_before"] + point["macs_after"], 1)
        told = (text.percent(kept, 1), text.size(point["bytes"]), text.share(share))
        speed = text.number(point["device_ms"]["median"], 1)
        lead = "●" if point["front"] else ""
        found.append((point["layer"], setting(point), ", ".join(leaks) or text.NONE, *told, speed, lead))
    return found


def to_csv(record: Mapping[str, Any]) -> str:
    """Return a line for each candidate; names cannot be taken for formulas."""
    parts = ("mean", "low", "high", "worst", "upper", "recovery", "attack", "attacker", "n", "n_failed")
    head = ["layer", "defenses", "wire", "front", "bytes", "macs_before", "macs_after", "agreement", "cosine"]
    head += [f"{side}_ms_{part}" for side in ("device", "server") for part in ("median", "least", "most")]
    head += [f"{key}_{part}" for key in record["metrics"] for part in parts]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for point in record["points"]:
        line: list[Any] = [point["layer"], " + ".join(point["defenses"]), point["wire"], int(point["front"])]
        line += [point["bytes"], point["macs_before"], point["macs_after"]]
        line += [point["utility"].get(key) for key in ("agreement", "cosine")]
        line += [point[side][part] for side in ("device_ms", "server_ms") for part in ("median", "least", "most")]
        line += [point["leakage"].get(key, {}).get(part) for key in record["metrics"] for part in parts]
        writer.writerow([text.spreadsheet(item) if isinstance(item, str) else item for item in line])
    return out.getvalue()
