"""Labels from features: CapRecover's read-out beside the probes that it must beat, on CIFAR-10.

    SEEPAGE_DATA=... python benchmarks/labels.py [--rows TEXT]... [--list]

Attacks are trained on the train folder of `cifar10_jpeg.zip` (20,000 lossy JPEGs, one in five held out to select on)
and audited with 2,000 pictures of its test folder, as many of each class; the two share no file, which is checked by
hash. `read=words` lets the language model say what is there and looks for the names of classes, on 500 of them.
`joint` rebuilds the picture first, and another network, the pre-activation ResNet-20, labels what came back, on 200;
what it says of the originals stands beside. A row is a cell of an audit: a kill loses nothing, the same command goes
on, and the tables are written after every row. What ResNet-20 itself says of the same pictures stands below its rows:
no ceiling, as an attacker adapts. Seconds of fitting are wall time on one thread or two, beside other runs at times: an
order of size. Writes `results/labels.md` and `.json`.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import asked
from seepage import assets, data, victims
from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.audit.statistics import describe
from seepage.pictures import read_picture
from seepage.schema import Cell
from seepage.studies.train import TrainRequest, train
from victims import dinov2_small

RESULTS = Path(__file__).parent / "results"
TESTED, LEARNED = 2000, 20000
PROBES = ("probe:kind=linear", "probe:kind=mlp", "probe:kind=conv")
READOUT, WORDS, REBUILT = "caprecover:read=label", "caprecover:read=words", "joint"
ITSELF = "the victim itself"
JUDGE = "zoo/cifar_preact_resnet20"
FEWER = {WORDS: 500, REBUILT: 200}
COLUMNS = (
    *("victim", "layer", "attack", "n", "top-1 [95 %]", "top-5", "commonest class", "shuffled"),
    *("judge on the originals", "fitting, s"),
)


@dataclass(frozen=True)
class Row:
    """One attack at one cut of one victim."""

    group: str
    victim: str
    layer: str
    attack: str
    options: str = ""

    @property
    def name(self) -> str:
        """What `--rows` calls it."""
        return f"{self.group}/{self.layer}/{self.attack}"

    @property
    def file(self) -> Path:
        """Where what was trained lies."""
        plain = self.name.replace("/", "-").replace(":", "-").replace("=", "-").replace(" ", "-")
        return assets.home() / "training" / "labels" / f"{plain}.safetensors"


def rows(root: Path) -> list[Row]:
    """Return the rows, in the order they are run."""
    vit = dinov2_small(root)
    cuts = [("ResNet-20", "zoo/cifar_resnet20", f"layer{stage}.2") for stage in (1, 2, 3)]
    cuts += [("MobileNetV2", "zoo/mobilenet_v2", "features.17")]
    cuts += [("DINOv2-small", vit, layer) for layer in ("encoder.layer.5", "encoder.layer.7")]
    found = []
    for group, victim, layer in cuts:
        own = "width=192,layers=3,heads=6,queries=8,lr=0.001" if group == "ResNet-20" else "width=256,layers=3,heads=8"
        found += [Row(group, victim, layer, READOUT, own)]
        found += [Row(group, victim, layer, REBUILT)] if group == "ResNet-20" else []
        found += [Row(group, victim, layer, WORDS, "align=400")] if layer in ("layer3.2", "features.17") else []
        found += [Row(group, victim, layer, probe) for probe in (PROBES[:1] if group == "DINOv2-small" else PROBES)]
        found += [Row(group, victim, "its head", ITSELF)] if layer == "layer3.2" else []
    return found


def run(row: Row, places: dict[str, str], steps: int) -> tuple[Cell, float | None]:
    """Train what the row needs and run its cell, or read both where they are on disk.

    Returns the cell and the seconds of fitting, None where they are not known as it was done before.
    """
    spent = None
    if row.attack != REBUILT and not row.file.exists():
        training = TrainRequest(
            ",".join(filter(None, (row.attack, row.options))),
            row.victim,
            (row.layer,),
            places["train"],
            row.file,
            steps=steps if row.attack in (READOUT, WORDS) else None,
            limit=LEARNED,
            precision="bf16" if row.attack == WORDS else "fp32",
        )
        began = time.perf_counter()
        train(training)
        spent = time.perf_counter() - began
    separator = "," if ":" in row.attack else ":"
    request = Request(
        row.victim,
        places["test"],
        layers=(row.layer,),
        attacks=(row.attack if row.attack == REBUILT else f"{row.attack}{separator}adapter={row.file}",),
        metrics=("top1", "top5"),
        judges=(JUDGE,) if row.attack == REBUILT else (),
        limit=FEWER.get(row.attack, TESTED),
        effort="quick" if row.attack == REBUILT else "standard",
    )
    (cell,) = run_audit(request, assets.home() / "benchmarks" / "labels", listener=lambda event: None)
    if row.attack == REBUILT:
        return cell, cell.cost.fit_seconds if cell.cost else None
    record = row.file.with_name(f"{row.file.stem}.training.json")
    stages = json.loads(record.read_text())["stages"] if record.exists() else []
    learning = sum(stage["curve"]["seconds"][-1] for stage in stages if stage["curve"]["seconds"])
    return cell, learning or spent


@torch.no_grad()
def itself(row: Row, place: str) -> dict[str, Any]:
    """Return the row of what the victim's own head says of the test pictures, whole and uncut."""
    victim, found = victims.load(row.victim), list[list[float]]()
    source = data.open_source(place).limit(TESTED)
    for batch in data.batches(source, lambda file: victim.picture(read_picture(file)), 100):
        assert batch.pictures is not None  # the set is whole
        ranked = victim.model(victim.normalise(batch.pictures.images)).argsort(dim=1, descending=True)
        labels = [source.entries[index].label for index in batch.indices]
        for own, label in zip(ranked.tolist(), labels, strict=True):
            found.append([float(label in own[:most]) for most in (1, 5)])
    top, five = (describe(hits, higher_leaks=True) for hits in zip(*found, strict=True))
    said = f"{100 * top.mean:.1f} % [{100 * top.ci_low:.1f}, {100 * top.ci_high:.1f}]"
    line = [row.group, row.layer, row.attack, str(top.n), said, f"{100 * five.mean:.1f} %", *["–"] * 4]
    summary = {"top1": top.model_dump(mode="json"), "top5": five.model_dump(mode="json")}
    return {"row": row.name, "line": line, "fitting": 0.0, "status": "done", "message": "", "summary": summary}


def record(row: Row, cell: Cell, seconds: float) -> dict[str, Any]:
    """Return what is kept of a row."""
    kept = cell.model_dump(mode="json", include={"status", "message", "summary", "controls", "ceilings", "cost"})
    return {"row": row.name, "line": _line(row, cell, seconds), "fitting": seconds, **kept}


def results() -> list[dict[str, Any]]:
    """Return the rows that are there."""
    path = RESULTS / "labels.json"
    return json.loads(path.read_text()) if path.exists() else []


def note(fresh: dict[str, Any], order: Sequence[str]) -> None:
    """Put a row among the results and write both files anew."""
    known = [one for one in results() if one["row"] != fresh["row"] and one["row"] in order] + [fresh]
    known.sort(key=lambda one: order.index(one["row"]))
    (RESULTS / "labels.json").write_text(json.dumps(known, indent=1) + "\n")
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    stamp = f"`python benchmarks/labels.py`, {machine}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}."
    stamp += " Fitting was timed on one thread or two, beside other runs at times."
    lines = [stamp, "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    (RESULTS / "labels.md").write_text("\n".join([*lines, *(f"| {' | '.join(one['line'])} |" for one in known), ""]))


def _line(row: Row, cell: Cell, seconds: float) -> list[str]:
    head = [row.group, row.layer, row.attack]
    if cell.status != "done":
        return [*head, f"{cell.status}: {cell.message}", *[""] * 6]
    top = cell.summary["top1"]

    def control(name: str) -> str:
        found = cell.controls.get(name, {}).get("top1")
        return "–" if found is None else f"{100 * found.mean:.1f} %"

    said = f"{100 * top.mean:.1f} % [{100 * top.ci_low:.1f}, {100 * top.ci_high:.1f}]"
    five = f"{100 * cell.summary['top5'].mean:.1f} %" if "top5" in cell.summary else "–"
    judged = cell.ceilings.get("original", {}).get("top1")
    ceiling = "–" if judged is None else f"{100 * judged.mean:.1f} %"
    head += [str(top.n), said, five, control("constant"), control("shuffled"), ceiling]
    return [*head, f"{seconds:.0f}"]


def main(wanted: Sequence[str], listing: bool, steps: int) -> None:
    """Run the rows that are missing and write the tables."""
    if "SEEPAGE_DATA" not in os.environ:
        raise SystemExit("labels: set SEEPAGE_DATA to the folder with cifar10_jpeg.zip")
    root = Path(os.environ["SEEPAGE_DATA"])
    everything = rows(root)
    chosen = [row for row in everything if not wanted or any(text in row.name for text in wanted)]
    if listing:
        print("\n".join(row.name for row in chosen))
        return
    places = {name: f"cifar10/{name}@{root / 'cifar10_jpeg.zip'}" for name in ("train", "test")}
    order = [row.name for row in everything]
    for row in chosen:
        if row.attack == ITSELF:
            fresh = itself(row, places["test"])
        else:
            cell, seconds = run(row, places, steps)
            if seconds is None:  # nothing was fitted this time
                seconds = next((one["fitting"] for one in results() if one["row"] == row.name), 0.0)
            fresh = record(row, cell, seconds)
        note(fresh, order)
        print(f"{datetime.now(UTC):%H:%M:%S} {row.name}: {fresh['status']} {fresh['message']}", flush=True)


if __name__ == "__main__":
    parser = asked.parser(__doc__)
    parser.add_argument("--steps", type=int, default=1500, help="steps of a read-out's training")
    given = parser.parse_args()
    main(given.rows, given.list, given.steps)
