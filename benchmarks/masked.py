"""The one-time mask attacked: what every attacker gets of a leak under it, on real networks and pictures.

    SEEPAGE_DATA=... python benchmarks/masked.py [--rows TEXT]... [--list]

Whoever knows the mask takes its law's estimate, trains on masked leaks or averages sends; whoever does not takes what
is sent for the leak. Labels: a linear probe on CIFAR-10, trained on some of its train files and asked about 28,000
others of all its files, since an interval of 0.01 takes so many. Pixels: `joint`, `rmle` and, on ResNet-20, a decoder
trained on train files. Recovery is 0 at the strongest null control and 1 at the truth; sound is a mask where no
recovery's interval goes beyond 0.01. A row is cells of an audit: a kill loses nothing, the same command goes on.
Writes `results/masked.md` and `.json`.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import asked
import inversion
import noise
from seepage import assets, data
from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.data.source import PictureSource
from seepage.registry import register
from seepage.schema import Cell

RESULTS = Path(__file__).parent / "results"
LIMIT = 0.01
SENDS = 8
SCORES = {"labels": ("top1", "top1", 100.0, " %"), "pixels": ("psnr", "mse", 1.0, " dB")}
COLUMNS = ("victim", "cut", "attack", "attacker", "n", "came back", "strongest control", "recovery [95 %]", "sound")
Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """Attacks of one kind on one victim at one cut."""

    victim: str
    layer: str
    reads: str
    attacks: tuple[str, ...]
    pictures: int
    learned: int = 0
    effort: str = "standard"
    sends: int = SENDS

    @property
    def name(self) -> str:
        """What `--rows` calls it."""
        return f"{self.victim}/{self.layer}/{self.reads}"


PROBES = ("probe:kind=linear",)
ROWS = (
    Row("zoo/cifar_resnet20", "layer3.2", "labels", PROBES, 28000, 2000, sends=1),
    Row("zoo/cifar_resnet20", "layer1.2", "pixels", ("joint", "rmle", "decoder:train=public"), 32, 5000),
    Row("zoo/mobilenet_v2", "features.3", "pixels", ("joint", "rmle"), 32, effort="quick"),
)


@register("dataset", "others")
def others(split: str, path: Path | None) -> PictureSource:
    """Open `others/N@PATH`: CIFAR-10's test files, and its train files but those that `few/N@PATH` opens."""
    learned = {entry.id for entry in noise.few(split, path).entries}
    test, train = (data.open_source(f"cifar10/{name}@{path}") for name in ("test", "train"))
    rest = (entry for entry in train.entries if entry.id not in learned)
    entries = (replace(entry, id=f"{entry.path.parent.parent.name}/{entry.id}") for entry in (*test.entries, *rest))
    return replace(test, name="cifar10/others", entries=tuple(entries))


def run(row: Row, root: Path) -> list[Cell]:
    """Run a row's cells, or read them where they are on record."""
    files = root / "cifar10_jpeg.zip"
    small = "cifar" in row.victim
    request = Request(
        row.victim,
        _images(row, files) if small else inversion.pictures(root)["more photographs"],
        layers=(row.layer,),
        attacks=row.attacks,
        defenses=("mask",),
        sends=row.sends,
        metrics=noise.METRICS[row.reads],
        public=f"few/{row.learned}@{files}" if row.learned else None,
        effort=row.effort,
        limit=row.pictures,
    )
    return run_audit(request, assets.home() / "benchmarks" / "masked", listener=lambda event: None)


def _images(row: Row, files: Path) -> str:
    return f"others/{row.learned}@{files}" if row.reads == "labels" else f"cifar10/test@{files}"


def record(row: Row, cell: Cell) -> Record:
    """Return what of a cell goes into the table."""
    found: Record = {
        "row": row.name,
        "victim": row.victim,
        "layer": row.layer,
        "attack": cell.spec.attack.partition(",")[0] if row.reads == "labels" else cell.spec.attack.partition(":")[0],
        "attacker": cell.spec.attacker,
        "status": cell.status,
        "message": cell.message,
    }
    if cell.status != "done":
        return found
    metric, share, times, unit = SCORES[row.reads]
    stats, recovery = cell.summary[metric], cell.summary[share]
    controls = {name: known[metric].mean for name, known in cell.controls.items() if metric in known}
    strongest = max(controls, key=lambda name: controls[name])
    return found | {
        "n": stats.n,
        "value": times * stats.mean,
        "unit": unit,
        "control": [strongest, times * controls[strongest]],
        "recovery": [recovery.recovery, recovery.recovery_low, recovery.recovery_high],
        "sound": recovery.recovery_high is not None and recovery.recovery_high <= LIMIT,
    }


def line(one: Record) -> str:
    """Return a record's line of the table."""
    cells = [one["victim"], one["layer"], one["attack"], one["attacker"]]
    if one["status"] == "done":
        low_high = ["–" if number is None else f"{number:.3f}" for number in one["recovery"]]
        control, reached = one["control"]
        cells += [str(one["n"]), f"{one['value']:.1f}{one['unit']}", f"{reached:.1f}{one['unit']} ({control})"]
        masked = one["attacker"] != "none"
        cells += [f"{low_high[0]} [{low_high[1]}, {low_high[2]}]", ("no", "yes")[one["sound"]] if masked else ""]
    else:
        cells += ["", f"{one['status']}: {one['message']}", "", "", ""]
    return f"| {' | '.join(cells)} |"


def write(records: Sequence[Record], results: Path = RESULTS) -> None:
    """Write both files anew."""
    results.mkdir(parents=True, exist_ok=True)
    (results / "masked.json").write_text(json.dumps(records, indent=1) + "\n")
    stamp = f"{platform.machine()}, one thread, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}"
    lines = [f"`python benchmarks/masked.py`, {stamp}.", "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    (results / "masked.md").write_text("\n".join([*lines, *map(line, records), ""]))


def main(wanted: Sequence[str], *, listing: bool) -> None:
    """Run the rows that are wanted, and write the tables after each."""
    chosen = [row for row in ROWS if not wanted or any(text in row.name for text in wanted)]
    if listing:
        print("\n".join(row.name for row in chosen))
        return
    if "SEEPAGE_DATA" not in os.environ:
        raise SystemExit("masked: set SEEPAGE_DATA to the folder with cifar10_jpeg.zip")
    root = Path(os.environ["SEEPAGE_DATA"])
    torch.set_num_threads(1)
    path = RESULTS / "masked.json"
    known: list[Record] = json.loads(path.read_text()) if path.exists() else []
    order = [row.name for row in ROWS]
    for row in chosen:
        fresh = [record(row, cell) for cell in run(row, root)]
        known = [one for one in known if one["row"] != row.name and one["row"] in order] + fresh
        known.sort(key=lambda one: order.index(one["row"]))
        write(known)
        print("\n".join(map(line, fresh)), flush=True)


if __name__ == "__main__":
    given = asked.parser(__doc__).parse_args()
    main(given.rows, listing=given.list)
