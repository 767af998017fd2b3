"""Pictures from features: attack x victim x depth, through the audit's own store.

    SEEPAGE_DATA=... python benchmarks/inversion.py [--rows NAME]... [--list]

A row is a cell of an audit: a kill loses nothing, the same command goes on, and the table is written after every row.
CIFAR rows use 32 test files of `cifar10_jpeg.zip` (lossy JPEGs), 224-pixel rows ImageNet samples of the second half of
the alphabet: n stands in the table, 32, of the slow rows 8, of the slowest 4 or 2. Settings were tuned on training
files and on the first half. Seconds and passes are a picture's, fitting included. Writes `results/inversion.md` and
`.json`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import asked
from seepage import assets
from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.data.archive import folder_of
from seepage.schema import Cell

RESULTS = Path(__file__).parent / "results"
SMALL, LARGE = 32, 8
METRICS = ("mse", "psnr", "ssim")
# Whoever runs two at a time says so: --beside.
BESIDE = False


SEARCHED, GREY = "peel:start=search,passes=2400", "joint:start=grey"
AGAIN = "joint:again=6"
WAYS = ("peel:window=3", "peel:starts=4")
BASELINES = ("deep-image-prior", "divide", "decoder")


@dataclass(frozen=True)
class Row:
    """One victim at one layer, attacked by several attacks: as many cells."""

    group: str
    victim: str
    layer: str
    attacks: tuple[str, ...]
    pictures: str
    effort: str = "standard"
    size: int | None = None
    limit: int | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """What `--rows` calls it."""
        return "/".join(filter(None, (self.group, self.layer, self.effort, self.label, self.variant)))

    @property
    def variant(self) -> str:
        """The parameters of an attack that stands alone in its row."""
        return self.attacks[0].partition(":")[2] if len(self.attacks) == 1 else ""


def rows(data: Path) -> list[Row]:
    """Return the rows, in the order they are run."""
    published = {depth: next((data / "weights").glob(f"resnet{depth}-*.th"), None) for depth in (20, 56)}
    small = [("pre-activation ResNet-20", "zoo/cifar_preact_resnet20"), ("ResNet-20", "zoo/cifar_resnet20")]
    small += [
        (f"ResNet-{depth}, published weights", f"zoo/cifar_resnet{depth}@{path}")
        for depth, path in published.items()
        if path is not None
    ]
    found = [
        Row(group, victim, layer, ("joint", "rmle", "peel"), "cifar")
        for group, victim in small
        for layer in stages(victim)
    ]
    found += [Row(group, victim, layer, (GREY,), "cifar") for group, victim in small[:2] for layer in stages(victim)]
    found += [
        Row(group, victim, layer, (way,), "cifar")
        for group, victim in small[:2]
        for layer in stages(victim)
        for way in WAYS
    ]
    found += [
        Row(group, victim, layer, (AGAIN,), "cifar") for group, victim in small[1:] for layer in stages(victim)[:2]
    ]
    found += [
        Row(group, victim, layer, BASELINES, "cifar", label="baselines")
        for group, victim in small[:2]
        for layer in stages(victim)
    ]
    found += [
        Row(group, victim, layer, ("joint",), "cifar", "full", limit=8)
        for group, victim in small[:2]
        for layer in stages(victim)
    ]
    found += [
        Row("ResNet-20", "zoo/cifar_resnet20", layer, ("joint", "rmle"), "cifar", "quick")
        for layer in ("pool", "linear")
    ]
    found += [
        Row("MobileNetV2", "zoo/mobilenet_v2", layer, ("joint", "rmle"), "photographs" if few else "more photographs")
        for layer, few in (
            *(("features.1", True), ("features.3", True), ("features.6", False)),
            *(("features.13", True), ("features.17", True)),
        )
    ]
    # At 224 pixels two minutes a picture are not enough for their standard effort.
    found += [
        Row("MobileNetV2", "zoo/mobilenet_v2", layer, attacks, "photographs", "quick", limit=limit, label=label)
        for layer in ("features.1", "features.3", "features.6")
        for attacks, limit, label in ((BASELINES[:1], 2, "deep image prior"), (BASELINES[1:], LARGE, "baselines"))
    ]
    found += [
        Row("MobileNetV2", "zoo/mobilenet_v2", layer, ("joint",), pictures, "full")
        for layer, pictures in (("features.1", "photographs"), ("features.6", "more photographs"))
    ]
    pooled = "torchvision/resnet18@random"
    # Walking back from the last stage of 224 pixels takes PEEL a quarter of an hour a picture.
    walked = ((64, "maxpool"), (64, "layer4"), (224, "maxpool"))
    bare = f"module/{Path(__file__).with_name('victims.py')}:resnet18_without_pool@random"
    found += [
        Row(f"ResNet-18, random, {size} px{name}", victim, layer, attacks, "photographs", size=size, limit=limit)
        for size, limit in ((64, LARGE), (224, 4))
        for name, victim, layers in (
            (", no pool", bare, ("network.relu", "network.layer1", "network.layer2")),
            ("", pooled, ("maxpool", "layer1", "layer2", "layer4")),
        )
        for layer in layers
        if size == 64 or layer in ("network.relu", "maxpool", "layer4")
        for attacks in (("joint", "rmle", "peel") if (size, layer) in walked else ("joint", "rmle"),)
    ]
    found.append(Row("ResNet-18, random, 64 px", pooled, "maxpool", ("joint",), "photographs", "full", size=64))
    found += [
        Row("ViT-B/16, random", "timm/vit_base_patch16_224@random", layer, attacks, "photographs", effort, limit=2)
        for layer in ("blocks.0", "blocks.5")
        for attacks, effort in ((("peel", "joint"), "standard"), (("joint",), "quick"))
    ]
    found += [
        Row("ViT-B/16, random", "timm/vit_base_patch16_224@random", layer, (SEARCHED,), "photographs", limit=limit)
        for layer, limit in (("blocks.0", 4), ("blocks.5", 2))
    ]
    return found


def stages(victim: str) -> tuple[str, ...]:
    """Return the ends of the three stages of a CIFAR network."""
    last = 8 if "56" in victim else 2
    return tuple(f"layer{stage}.{last}" for stage in (1, 2, 3))


def pictures(data: Path) -> dict[str, str]:
    """Return the folders that rows name, unpacked into seepage's cache."""
    cifar = folder_of(data / "cifar10_jpeg.zip", "cifar10/test", "train/ and test/")
    samples = folder_of(data / "imagenet_samples_256.tar", "imagenet/samples", "photographs")
    names = sorted(path for path in samples.rglob("*") if path.is_file())
    half = names[len(names) // 2 :]
    test = next(path for path in (cifar / "test", *cifar.rglob("test")) if path.is_dir())
    found = {"cifar": str(test)}
    for name, count in (("photographs", LARGE), ("more photographs", SMALL)):
        chosen = assets.home() / "benchmarks" / name.replace(" ", "_")
        chosen.mkdir(parents=True, exist_ok=True)
        for path in half[:: len(half) // count][:count]:
            shutil.copy(path, chosen / path.name)
        found[name] = str(chosen)
    return found


def run(row: Row, folders: dict[str, str], store: Path) -> list[Cell]:
    """Run a row's cells, or read them where they are on record."""
    limit = row.limit or (LARGE if row.pictures == "photographs" else SMALL)
    request = Request(
        row.victim,
        folders[row.pictures],
        layers=(row.layer,),
        attacks=row.attacks,
        metrics=METRICS,
        effort=row.effort,
        size=row.size,
        limit=limit,
    )
    return run_audit(request, store, listener=lambda event: None)


def note(row: Row, cells: list[Cell]) -> None:
    """Put a row's cells among the results and write both tables anew."""
    path = RESULTS / "inversion.json"
    known = json.loads(path.read_text()) if path.exists() else []
    mine = [_record(row, cell) for cell in sorted(cells, key=lambda cell: cell.spec.attack)]
    write([record for record in known if record["row"] != row.name] + mine)


def write(known: list[dict[str, Any]]) -> None:
    """Write records as both tables, in the order of the rows."""
    order = [other.name for other in rows(Path(os.environ["SEEPAGE_DATA"]))]
    known = sorted(
        (record for record in known if record["row"] in order), key=lambda record: order.index(record["row"])
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "inversion.json").write_text(json.dumps(known, indent=1) + "\n")
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    columns = (
        "victim", "layer", "attack", "effort", "auxiliary", "n", "PSNR mean [95 %]", "median", "min", "MSE", "SSIM",
        "residual", "seconds", "passes",
    )  # fmt: skip
    lines = [
        f"`python benchmarks/inversion.py`, {machine}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}. "
        "Seconds with † were taken on one thread while other runs shared the cores: upper bounds. Passes compare.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *(f"| {' | '.join(record['line'])} |" for record in known),
        "",
        "The best without auxiliary pictures, beside the best with synthetic ones, of each cut that both were run at:",
        "",
        "| victim | layer | without: attack, effort | n | PSNR [95 %] | with: attack, effort | n | PSNR [95 %] |",
        "|---|---|---|---|---|---|---|---|",
        *_apart(known),
    ]
    (RESULTS / "inversion.md").write_text("\n".join([*lines, ""]))


def _apart(known: Sequence[Mapping[str, Any]]) -> list[str]:
    best: dict[tuple[str, str], dict[str, tuple[float, list[str]]]] = {}
    for record in known:
        if record["status"] == "done":
            victim, layer, attack, effort, auxiliary, n, psnr, *_ = record["line"]
            found = best.setdefault((victim, layer), {})
            score = record["summary"]["psnr"]["mean"]
            if score > found.get(auxiliary, (-math.inf, []))[0]:
                found[auxiliary] = score, [f"{attack}, {effort}", n, psnr]
    return [
        f"| {' | '.join([*place, *found['none'][1], *found['synthetic'][1]])} |"
        for place, found in best.items()
        if {"none", "synthetic"} <= set(found)
    ]


def _record(row: Row, cell: Cell) -> dict[str, Any]:
    psnr = [sample.metrics.get("psnr") for sample in cell.samples]
    kept = cell.model_dump(mode="json", include={"status", "message", "summary", "controls", "cost"})
    return {"row": row.name, "attack": cell.spec.attack, "line": _line(row, cell), **kept, "psnr": psnr}


def _line(row: Row, cell: Cell) -> list[str]:
    name = ":".join(filter(None, (cell.spec.attack.partition(":")[0], row.variant)))
    head = [row.group, row.layer, name, row.effort, cell.spec.auxiliary]
    if cell.status != "done" or cell.cost is None:
        return [*head, f"{cell.status}: {cell.message}", *[""] * 8]
    psnr, n = cell.summary["psnr"], len(cell.samples)
    residuals = sorted(sample.residual for sample in cell.samples if sample.residual is not None)
    return [
        *head,
        str(psnr.n),
        f"{psnr.mean:.1f} [{psnr.ci_low:.1f}, {psnr.ci_high:.1f}]",
        f"{psnr.median:.1f}",
        f"{psnr.min:.1f}",
        f"{cell.summary['mse'].mean:.1e}",
        f"{cell.summary['ssim'].mean:.3f}",
        f"{residuals[len(residuals) // 2]:.1e}",
        f"{(cell.cost.fit_seconds + cell.cost.seconds) / n:.1f}{'†' if BESIDE else ''}",
        str(cell.cost.passes // n),
    ]


def main(wanted: Iterable[str], listing: bool) -> None:
    """Run the rows that are missing and write the tables."""
    root = os.environ.get("SEEPAGE_DATA")
    if root is None:
        sys.exit("inversion: set SEEPAGE_DATA to the folder with cifar10_jpeg.zip and imagenet_samples_256.tar")
    everything = rows(Path(root))
    chosen = [row for row in everything if not wanted or any(text in row.name for text in wanted)]
    if listing:
        print("\n".join(row.name for row in chosen))
        return
    folders = pictures(Path(root))
    store = assets.home() / "benchmarks" / "inversion"
    for row in chosen:
        note(row, run(row, folders, store))
        print(f"{datetime.now(UTC):%H:%M:%S} {row.name}", flush=True)


if __name__ == "__main__":
    parser = asked.parser(__doc__)
    parser.add_argument("--beside", action="store_true", help="mark seconds: another run shares the machine")
    arguments = parser.parse_args()
    BESIDE = arguments.beside
    main(arguments.rows, arguments.list)
