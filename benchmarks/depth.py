"""Pictures, words and labels by depth, from the same leaks: the two papers' curves in one figure.

    SEEPAGE_DATA=... python benchmarks/depth.py [--rows TEXT]... [--list]

What `seepage depth` does, for two victims: a ResNet-20 on CIFAR-10 (pictures by `joint`, labels by probes, 64 test
files) and MobileNetV2 on Flickr8k (pictures by `joint`; captions by the shipped adapter, to which an early leak is
run on, and by one that `captions.py` trained at all three cuts; 50 test photographs). Adapters that were not trained
yet are left out. Recovery is 0 for the strongest null control and 1 for the truth, or for one person's caption where
no caption is perfect. From each cut to the next the change is tested on the same pictures. Writes `results/depth.md`,
`.json` and `docs/_static/leakage_by_depth.svg`.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import asked
import captions
import labels
from seepage import assets
from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.report import depth as pages
from seepage.studies.depth import bench_of, leakage
from svg import document, mark

RESULTS = Path(__file__).parent / "results"
FIGURE = Path(__file__).parents[1] / "docs" / "_static" / "leakage_by_depth.svg"
COLOURS = {"images": "#1a6fb0", "labels": "#c05a12", "captions": "#7b4fb5"}
SHADES = ("", " 5 3", " 2 2", " 8 3 2 3")
LEFT, TOP, WIDTH, HEIGHT, APART = 52, 40, 330, 210, 70


@dataclass(frozen=True)
class Study:
    """One victim's cuts, pictures and attacks."""

    name: str
    victim: str
    images: str
    layers: tuple[str, ...]
    attacks: tuple[str, ...]
    limit: int
    public: str | None = None

    def request(self) -> Request:
        """Return the audit."""
        return Request(
            self.victim,
            self.images,
            layers=self.layers,
            attacks=self.attacks,
            public=self.public,
            effort="quick",
            limit=self.limit,
        )


def studies(root: Path) -> list[Study]:
    """Return both, with the adapters that are there."""
    cifar = {name: f"cifar10/{name}@{root / 'cifar10_jpeg.zip'}" for name in ("train", "test")}
    late = captions.CUTS[-1]
    words = [f"caprecover:adapter=zoo/mobilenet_v2,through={late}"]
    three = captions.three(captions.rows(root))
    words += [f"caprecover:adapter={three.file}"] if three.file.exists() else []
    return [
        Study(
            "ResNet-20, CIFAR-10",
            "zoo/cifar_resnet20",
            cifar["test"],
            ("layer1.2", "layer2.2", "layer3.2", "pool"),
            ("joint", *labels.PROBES[:1], labels.PROBES[2]),
            64,
            public=cifar["train"],
        ),
        Study(
            "MobileNetV2, Flickr8k",
            captions.MOBILENET,
            f"flickr8k/test@{root}",
            captions.CUTS,
            ("joint", *words),
            50,
        ),
    ]


def chart(records: Sequence[Mapping[str, Any]]) -> str:
    """Return both studies beside each other: recovery by cut, a line an attack."""
    parts: list[str] = []
    most = max(len(record["curves"]) for record in records)
    for number, record in enumerate(records):
        left = LEFT + number * (WIDTH + APART)
        parts.append(f'<text class="head" x="{left}" y="{TOP - 18}">{record["title"]}</text>')
        parts.append(f'<path class="rule" d="M{left} {TOP}V{TOP + HEIGHT}H{left + WIDTH}"/>')
        for tick in range(0, 101, 25):
            parts.append(f'<text x="{left - 8}" y="{_up(tick / 100) + 4:.1f}" text-anchor="end">{tick} %</text>')
        layers, room = record["layers"], WIDTH / len(record["layers"])
        for place, layer in enumerate(layers):
            middle = left + room * (place + 0.5)
            parts.append(f'<text x="{middle:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{layer}</text>')
        for turn, curve in enumerate(record["curves"]):
            colour = COLOURS[curve["recovers"]]
            twins = [one["attack"] for one in record["curves"] if one["recovers"] == curve["recovers"]]
            dash = SHADES[twins.index(curve["attack"]) % len(SHADES)]
            shift = 5.0 * (turn - (len(record["curves"]) - 1) / 2)
            placed = [
                (left + room * (layers.index(point["layer"]) + 0.5) + shift, point)
                for point in curve["points"]
                if point["recovery"] is not None and math.isfinite(point["recovery"])
            ]
            line = " ".join(f"{x:.1f},{_up(point['recovery']):.1f}" for x, point in placed)
            parts.append(
                f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}" '
                f'points="{line}"/>'
            )
            for x, point in placed:
                ends = [(x, _up(point[end] if point[end] is not None else point["recovery"])) for end in _ENDS]
                parts.append(mark(colour, (x, _up(point["recovery"])), ends[0], ends[1]))
            y = TOP + HEIGHT + 42 + 18 * turn
            parts.append(
                f'<path stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}" d="M{left} {y - 4}h24"/>'
            )
            parts.append(f'<text x="{left + 32}" y="{y}">{pages.label(curve)}</text>')
    said = "Recovery by depth of the cut for two victims; the table beside has the numbers"
    return document(LEFT + 2 * WIDTH + APART + 60, TOP + HEIGHT + 50 + 18 * most, said, parts)


_ENDS = ("recovery_low", "recovery_high")


def _up(share: float) -> float:
    return TOP + HEIGHT * (1 - min(max(share, 0.0), 1.0))


def table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each attack's score at each cut, and what changes from one to the next."""
    lines: list[str] = []
    for record in records:
        layers = record["layers"]
        lines += ["", f"**{record['title']}**, n = {record['n']}", "", f"| attack | score | {' | '.join(layers)} |"]
        lines += ["|" + "---|" * (len(layers) + 2), *(f"| {' | '.join(row)} |" for row in pages.points(record))]
        lines += ["", f"| {' | '.join(pages.COLUMNS)} |", "|" + "---|" * len(pages.COLUMNS)]
        lines += [f"| {' | '.join(row)} |" for row in pages.steps(record)]
        lines += ["", *(f"- {sentence}" for sentence in pages.sentences(record))]
        lines += [f"- {line}" for line in record["missing"]]
    return lines


def main(wanted: Sequence[str], listing: bool) -> None:
    """Run what is missing and write table and figure."""
    if "SEEPAGE_DATA" not in os.environ:
        raise SystemExit("depth: set SEEPAGE_DATA to the folder with cifar10_jpeg.zip and Flickr8k")
    everything = studies(Path(os.environ["SEEPAGE_DATA"]))
    if listing:
        print("\n".join(study.name for study in everything))
        return
    path = RESULTS / "depth.json"
    known = {one["title"]: one for one in json.loads(path.read_text())["studies"]} if path.exists() else {}
    for study in everything:
        if wanted and not any(text in study.name for text in wanted):
            continue
        bench = bench_of(study.request())
        store = assets.home() / "benchmarks" / "depth" / study.name.replace(", ", "_")
        cells = run_audit(bench.request, store, listener=lambda event: None, bench=bench)
        known[study.name] = {"title": study.name, **leakage(bench, cells)}
        print(f"{datetime.now(UTC):%H:%M:%S} {study.name}", flush=True)
        records = [known[one.name] for one in everything if one.name in known]
        machine = f"{platform.machine()}, {os.cpu_count()} cores"
        stamp = f"`python benchmarks/depth.py`, {machine}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}."
        path.write_text(json.dumps({"stamp": stamp, "studies": records}, indent=1) + "\n")
        (RESULTS / "depth.md").write_text("\n".join([stamp, *table(records), ""]))
        FIGURE.write_text(chart(records))


if __name__ == "__main__":
    given = asked.parser(__doc__).parse_args()
    main(given.rows, given.list)
