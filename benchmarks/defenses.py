"""Every registered defense and the trained ones, each before the attackers who know it: what it costs, what it stops.

    SEEPAGE_DATA=... python benchmarks/defenses.py [--rows TEXT]... [--list]

ResNet-20 behind its second stage, which lets pictures through, and the two defenses of tokens on DINOv2. Labels: a
linear probe on CIFAR-10, trained on clean features for who does not know of the defense or takes its law's estimate,
and on defended ones. Pixels: `joint` with the defended leak taken for the leak, with its estimate and with the law
inside; of ResNet-20 also a decoder trained on defended leaks. Those are trained on train files and asked about test
files. A trained defense has no law: its victim's attackers know its weights or learn from what it sends; at strength 0
its bottleneck hides nothing on purpose. Recovery is 0 at the strongest null control and 1 at the truth. A row is cells
of an audit: a kill loses nothing, the same command goes on. Writes `results/defenses.md` and `.json`.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import asked
import noise
from seepage import assets
from seepage.audit.plan import jobs
from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.audit.workbench import Workbench
from seepage.data.source import PictureSource
from seepage.registry import register
from seepage.schema import Cell, Spec
from seepage.studies.train import TrainRequest, train
from victims import dinov2_small

RESULTS = Path(__file__).parent / "results"
LEARNED, LABELS, PIXELS = {"ResNet-20": 5000, "DINOv2": 1000}, {"ResNet-20": 1000, "DINOv2": 300}, 8
CUTS = {"ResNet-20": "layer2.2", "DINOv2": "encoder.layer.5"}
PROBE, JOINT, DECODER = "probe:kind=linear", "joint", "decoder:train=public"
# Who is asked: a decoder that did not learn on defended leaks is no match for one that did.
ASKED = {
    "probe": ("none", "naive", "aware:estimate", "aware:retrained"),
    "joint": ("none", "naive", "aware:estimate", "aware:likelihood"),
    "decoder": ("none", "aware:retrained"),
}
SHOWN = {"labels": ("top1", "top1", 100.0, " %"), "pixels": ("psnr", "mse", 1.0, " dB")}
COLUMNS = (
    *("victim", "defense", "kB", "answers kept", "labels: does not know", "labels: best who knows [95 %]", "by"),
    *("pixels: does not know", "pixels: best who knows [95 %]", "by", "the bound on the error, as PSNR"),
)
Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One defense: stages of a pipeline, or what is trained behind the cut."""

    victim: str
    stages: tuple[str, ...] = ()
    trained: str = ""

    @property
    def name(self) -> str:
        """What `--rows` calls it, and the table."""
        return f"{self.victim}/{self.defense}"

    @property
    def defense(self) -> str:
        """The defense in words of the command line."""
        return self.trained or "+".join(self.stages) or "none"


ROWS = (
    Row("ResNet-20"),
    *(Row("ResNet-20", (f"gaussian:sigma={share},relative=true",)) for share in (0.1, 0.3, 1)),
    Row("ResNet-20", ("laplace:scale=0.3,relative=true",)),
    Row("ResNet-20", ("uniform:scale=0.5,relative=true",)),
    Row("ResNet-20", ("noise-shift",)),
    Row("ResNet-20", ("mask",)),
    Row("ResNet-20", ("clip:limit=1,by=value,relative=true",)),
    Row("ResNet-20", ("clip:limit=0.5,relative=true", "gaussian:sigma=0.3,relative=true")),
    *(Row("ResNet-20", (f"quantize:bits={bits}",)) for bits in (8, 4, 2, 1)),
    *(Row("ResNet-20", (f"dropout:rate={rate}",)) for rate in (0.5, 0.9)),
    Row("ResNet-20", ("dropout:rate=0.5", "quantize:bits=8")),
    *(Row("ResNet-20", (f"prune:keep=0.25,by={by}",)) for by in ("magnitude", "channel")),
    *(Row("ResNet-20", (f"project:keep=0.25,onto={onto}",)) for onto in ("pca", "random")),
    Row("ResNet-20", trained="defense:kind=nopeek,strength=0"),
    *(Row("ResNet-20", trained=f"defense:kind={kind},strength=1") for kind in ("nopeek", "adversarial")),
    Row("ResNet-20", trained="defense:kind=adversarial,strength=10"),
    Row("DINOv2"),
    *(Row("DINOv2", (text,)) for text in ("token-drop:keep=0.25", "token-shuffle")),
)


@register("dataset", "next")
def following(split: str, path: Path | None) -> PictureSource:
    """Open `next/N@PATH`: as many of CIFAR-10's train files as `few/N@PATH`, and others."""
    first = {entry.id for entry in noise.few(split, path).entries}
    both = noise.few(str(2 * int(split)), path)
    return replace(both, name="cifar10/next", entries=tuple(entry for entry in both.entries if entry.id not in first))


def victim(row: Row, root: Path) -> str:
    """Return what the command line calls the row's victim, trained where it is a trained one."""
    if row.victim == "DINOv2":
        return dinov2_small(root)
    if not row.trained:
        return noise.VICTIMS[row.victim]
    plain = row.trained.translate(str.maketrans(":=,", "---"))
    path = assets.home() / "training" / "defenses" / f"{plain}.safetensors"
    if not path.exists():
        public = f"few/{LEARNED[row.victim]}@{root / 'cifar10_jpeg.zip'}"
        train(TrainRequest(row.trained, noise.VICTIMS[row.victim], (CUTS[row.victim],), public, path))
    return f"defended/{path}"


def run(row: Row, root: Path, benches: dict[str, Workbench]) -> list[Cell]:
    """Run a row's cells, or read them where they are on record; what was fitted for one row serves the next."""
    files, name = root / "cifar10_jpeg.zip", victim(row, root)
    cells: list[Cell] = []
    for reads, limit in (("labels", LABELS[row.victim]), ("pixels", PIXELS)):
        attacks = (PROBE,) if reads == "labels" else (JOINT, DECODER)
        if row.victim == "DINOv2" and reads == "pixels":
            continue
        request = Request(
            name,
            f"cifar10/test@{files}",
            layers=() if row.trained else (CUTS[row.victim],),
            attacks=attacks,
            defenses=row.stages,
            metrics=noise.METRICS[reads],
            # A trained defense learned from the first; its attackers own others.
            public=f"{'next' if row.trained else 'few'}/{LEARNED[row.victim]}@{files}",
            limit=limit,
        )
        first = benches.get(name + reads)
        bench = benches[name + reads] = Workbench(request) if first is None else first.beside(request)
        grid = [job for job in jobs(bench) if _asked(job.spec)]
        cells += run_audit(request, assets.home() / "benchmarks" / "defenses", bench=bench, grid=grid)
    return cells


def _asked(spec: Spec) -> bool:
    return spec.attacker in ASKED[spec.attack.partition(":")[0]]


def record(row: Row, cells: Sequence[Cell]) -> Record:
    """Return what of a row's cells goes into the tables."""
    found: list[Record] = []
    for cell in cells:
        attack = cell.spec.attack.partition(":")[0]
        one: Record = {"attack": attack, "attacker": cell.spec.attacker, "status": cell.status, "message": cell.message}
        if cell.status == "done":
            reads = "labels" if attack == "probe" else "pixels"
            metric, share, times, _ = SHOWN[reads]
            stats, recovery = cell.summary[metric], cell.summary[share]
            controls = {name: known[metric].mean for name, known in cell.controls.items() if metric in known}
            strongest = max(controls, key=lambda name: controls[name])
            one |= {
                "reads": reads,
                "n": stats.n,
                "value": [times * number for number in (stats.mean, stats.ci_low, stats.ci_high)],
                "control": [strongest, times * controls[strongest]],
                "recovery": [recovery.recovery, recovery.recovery_low, recovery.recovery_high],
                "bound": None if cell.bound is None else cell.bound.mse,
                "utility": cell.utility,
                "bytes": cell.bytes_per_image,
            }
        found.append(one)
    return {"row": row.name, "victim": row.victim, "defense": row.defense, "cells": found}


def line(one: Record) -> str:
    """Return a record's line of the table."""
    done = [cell for cell in one["cells"] if cell["status"] == "done"]
    if one["defense"] != "none" and not one["defense"].startswith("defense:"):
        defended = [cell for cell in done if cell["attacker"] != "none"]
    else:
        defended = done
    cells = [one["victim"], one["defense"].replace(",relative=true", " of the spread")]
    first = defended[0]
    cells += [f"{first['bytes'] / 1000:.1f}", f"{100 * first['utility']['agreement']:.1f} %"]
    bound = None
    for reads in SHOWN:
        naive = [cell for cell in defended if cell["reads"] == reads and cell["attacker"] == "naive"]
        knows = [cell for cell in defended if cell["reads"] == reads and cell["attacker"] != "naive"]
        cells.append(_value(naive[0]) if naive else "")
        if not knows:
            cells += ["", ""]
            continue
        best = max(knows, key=lambda cell: float(cell["value"][0]))
        cells += [_value(best, interval=True), f"{best['attack']}, {best['attacker'].removeprefix('aware:')}"]
        bound = max((cell["bound"] for cell in knows if cell["bound"]), default=bound)
    cells.append(f"{-10 * math.log10(bound):.1f} dB" if bound else "")
    return f"| {' | '.join(cells)} |"


def _value(cell: Record, *, interval: bool = False) -> str:
    unit = SHOWN[cell["reads"]][3]
    mean, low, high = (f"{number:.1f}" for number in cell["value"])
    return f"{mean}{unit} [{low}, {high}]" if interval else f"{mean}{unit}"


def lines(records: Iterable[Record]) -> list[str]:
    """Return the table, and beneath it who could not be run and why."""
    known = list(records)
    found = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS), *map(line, known), ""]
    controls = sorted(
        {
            (one["victim"], cell["reads"], f"{cell['control'][1]:.1f}{SHOWN[cell['reads']][3]}", cell["n"])
            for one in known
            for cell in one["cells"]
            if cell["status"] == "done" and cell["attacker"] == "none"
        }
    )
    for place, reads, reached, count in controls:
        found.append(f"- {place}, {reads}: the strongest control reaches {reached}; {count} pictures.")
    missing = sorted({_missing(one, cell) for one in known for cell in one["cells"] if cell["status"] != "done"})
    return [*found, *missing]


def _missing(one: Record, cell: Record) -> str:
    return f"- {one['defense']}, {cell['attack']}, {cell['attacker']}, {cell['status']}: {cell['message']}"


def write(records: Sequence[Record], results: Path = RESULTS) -> None:
    """Write both files anew."""
    results.mkdir(parents=True, exist_ok=True)
    (results / "defenses.json").write_text(json.dumps(records, indent=1) + "\n")
    stamp = f"{platform.machine()}, one thread, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}"
    text = "\n".join([f"`python benchmarks/defenses.py`, {stamp}.", "", *lines(records), ""])
    (results / "defenses.md").write_text(text)


def main(wanted: Sequence[str], *, listing: bool, results: Path = RESULTS) -> None:
    """Run the rows that are wanted, and write the tables after each."""
    chosen = [row for row in ROWS if not wanted or any(text in row.name for text in wanted)]
    if listing:
        print("\n".join(row.name for row in chosen))
        return
    if "SEEPAGE_DATA" not in os.environ:
        raise SystemExit("defenses: set SEEPAGE_DATA to the folder with cifar10_jpeg.zip")
    torch.set_num_threads(1)
    path, order = results / "defenses.json", [row.name for row in ROWS]
    known: list[Record] = json.loads(path.read_text()) if path.exists() else []
    benches: dict[str, Workbench] = {}
    for row in chosen:
        fresh = record(row, run(row, Path(os.environ["SEEPAGE_DATA"]), benches))
        known = [one for one in known if one["row"] != row.name and one["row"] in order] + [fresh]
        known.sort(key=lambda one: order.index(one["row"]))
        write(known, results)
        print(f"{datetime.now(UTC):%H:%M:%S} {line(fresh)}", flush=True)


if __name__ == "__main__":
    parser = asked.parser(__doc__)
    given = parser.parse_args()
    main(given.rows, listing=given.list)
