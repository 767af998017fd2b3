"""What carries leakage: skip, activation, pooling, first weights; networks that differ in one of them alone.

    SEEPAGE_DATA=... python benchmarks/factors.py [--only FACTOR]... [--train | --tables]

Trains the four networks of the skip study on the training files of `cifar10_jpeg.zip`, attacks every network on
16 test files at two depths, and writes `results/factors.md`, `.json` and `docs/_static/factors.svg` after every cell.
A kill loses no finished epoch, picture or cell. Settings are the attacks' own: nothing was tuned here. Random networks
are drawn from two seeds; a picture's score is then its mean over them, and intervals are over pictures. For the skip
study, the share of directions that the leak tells of a picture is computed as well, without any attack.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cifar_training import ARCHIVE, Recipe, measure, train
from factor_chart import chart
from factor_networks import FACTORS, Design, FactorNetwork
from factor_spectrum import told
from seepage import assets
from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.audit.statistics import describe
from seepage.data import open_source
from seepage.schema import Cell, Stats
from seepage.victims import load
from seepage.victims.cut import cut

RESULTS = Path(__file__).parent / "results"
FIGURE = Path(__file__).parents[1] / "docs" / "_static" / "factors.svg"
ATTACKS = ("joint", "rmle", "peel")
LAYERS = {"stages.4": "four blocks", "stages.2": "two blocks"}
Record = dict[str, Any]
PICTURES, PROBED, SEEDS, EPOCHS = 16, 2, (0, 1), 4


@dataclass(frozen=True)
class Row:
    """One network, or one drawn from several seeds, at one depth."""

    factor: str
    design: Design
    trained: bool
    layer: str

    @property
    def level(self) -> str:
        """The value that the factor has here."""
        value = getattr(self.design, self.factor)
        return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


def rows() -> Iterator[Row]:
    """Yield the rows in the order they are run."""
    for layer in LAYERS:
        for factor, designs in FACTORS.items():
            for trained in (True, False) if factor == "skip" else (False,):
                # Pooling lies between the two depths: before it nothing differs.
                if factor != "pooling" or layer != "stages.2":
                    yield from (Row(factor, design, trained, layer) for design in designs)


def place(design: Design) -> Path:
    """Return where a trained network's weights lie; what was measured of them lies beside, as JSON."""
    return assets.home() / "training" / "factors" / f"{design.name}.safetensors"


def trained(design: Design, archive: Path) -> dict[str, float]:
    """Train a network unless it was, and return what was measured of it."""
    target = place(design)
    facts = target.with_suffix(".json")
    if not facts.is_file():
        recipe = Recipe(EPOCHS, 0)
        model, loss, seconds = train(
            partial(FactorNetwork, design), _as_it_is, recipe, archive, target.with_suffix(".pt")
        )
        model = model.to(memory_format=torch.contiguous_format)
        save_file({key: value for key, value in model.state_dict().items() if value.is_floating_point()}, target)
        right, count = measure(model, _as_it_is, archive)
        found = {"accuracy": right / count, "loss": loss, "seconds": seconds, **asdict(recipe)}
        facts.write_text(json.dumps(found) + "\n")
    known: dict[str, float] = json.loads(facts.read_text())
    return known


def _as_it_is(pictures: Tensor) -> Tensor:
    """The stem scales pictures itself."""
    return pictures


def attacked(row: Row, attack: str, archive: Path) -> list[Cell]:
    """Run a row's cells of one attack, one a seed, or read them where they are on record."""
    store = assets.home() / "benchmarks" / "factors"
    cells = []
    for one in _weights(row):
        request = Request(
            f"module/factor_networks:{row.design.name}@{one}",
            f"cifar10/test@{archive}",
            layers=(row.layer,),
            attacks=(attack,),
            metrics=("mse", "psnr", "ssim"),
            limit=PICTURES,
        )
        cells += run_audit(request, store, listener=lambda event: None)
    return cells


def directions(row: Row, archive: Path) -> float:
    """Return the share of a picture's directions that the leak tells: the mean over some pictures, and the networks.

    What was computed is kept beside the trained weights.
    """
    pictures = open_source(f"cifar10/test@{archive}").limit(PICTURES).entries[:: PICTURES // PROBED][:PROBED]
    found = []
    for one in _weights(row):
        kept = place(row.design).with_name(f"{row.design.name}-{row.layer}-{one.rpartition('/')[2]}.told.json")
        if not kept.is_file():
            split = cut(load(f"module/factor_networks:{row.design.name}@{one}"), row.layer)
            shares = [told(split.prefix, split.load(entry.path)) for entry in pictures]
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(shares) + "\n")
        found += json.loads(kept.read_text())
    return fmean(found)


def _weights(row: Row) -> list[str]:
    return [str(place(row.design))] if row.trained else [f"random:{seed}" for seed in SEEDS]


def record(row: Row, attack: str, cells: Sequence[Cell], accuracy: float | None, share: float | None) -> Record:
    """Return a row's figures under one attack."""
    undone = next((cell for cell in cells if cell.status != "done"), None)
    if undone is not None:
        raise SystemExit(f"{row}, {attack}: {undone.status}, {undone.message}")
    nulls = {name: fmean(cell.controls[name]["psnr"].mean for cell in cells) for name in cells[0].controls}
    residuals = [sample.residual for cell in cells for sample in cell.samples if sample.residual is not None]
    passes = sum(cell.cost.passes for cell in cells if cell.cost is not None)
    return {
        "factor": row.factor,
        "level": row.level,
        "trained": row.trained,
        "accuracy": accuracy,
        "told": share,
        "layer": row.layer,
        "shape": None if cells[0].cut is None else list(cells[0].cut.shape),
        "attack": attack,
        "networks": len(cells),
        "psnr": _over_pictures(cells, "psnr").model_dump(),
        "ssim": _over_pictures(cells, "ssim").model_dump(),
        "mse": _over_pictures(cells, "mse").model_dump(),
        "residual": median(residuals),
        "controls": nulls,
        "passes": passes // (len(cells) * PICTURES),
    }


def _over_pictures(cells: Sequence[Cell], metric: str) -> Stats:
    """Describe each picture's mean over networks: pictures are independent, seeds of one picture are not."""
    values = [
        fmean(sample.metrics[metric] for sample in group)
        for group in zip(*(cell.samples for cell in cells))
        if all(metric in sample.metrics for sample in group)
    ]
    missing = len(cells[0].samples) - len(values)
    return describe(values, higher_leaks=metric != "mse", n_failed=missing)


def write(records: Sequence[Record]) -> None:
    """Write the records, their table and their figure."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "factors.json").write_text(json.dumps(records, indent=1) + "\n")
    (RESULTS / "factors.md").write_text(table(records))
    deepest = [record for record in records if record["layer"] == next(iter(LAYERS))]
    FIGURE.write_text(chart(deepest, ATTACKS))


def table(records: Sequence[Record]) -> str:
    """Return the records as a table, one line a network and depth, the attacks side by side."""
    machine = f"{platform.machine()}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}"
    columns = ["factor", "", "weights", "accuracy", "leak after", "numbers", "directions", "n", "control"]
    columns += ["`joint`: PSNR [95 %]", "SSIM", "residual"]
    others = [attack for attack in ATTACKS[1:] if _passes(records, attack)]
    columns += [f"`{attack}`: PSNR [95 %]" for attack in others]
    grouped: dict[tuple[object, ...], dict[object, Record]] = {}
    for one in records:
        key = tuple(one[name] for name in ("factor", "level", "trained", "layer"))
        grouped.setdefault(key, {})[one["attack"]] = one
    lines = [
        f"`python benchmarks/factors.py`, {machine}. PSNR in dB, mean over pictures; passes a picture: "
        + ", ".join(f"`{attack}` up to {_passes(records, attack)}" for attack in ATTACKS if _passes(records, attack))
        + ".",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *(f"| {' | '.join(_line(attacks, others))} |" for attacks in grouped.values()),
    ]
    return "\n".join([*lines, ""])


def _passes(records: Sequence[Record], attack: str) -> int:
    return max((int(str(one["passes"])) for one in records if one["attack"] == attack), default=0)


def _line(attacks: dict[object, Record], others: Sequence[str]) -> list[str]:
    first = next(iter(attacks.values()))
    accuracy, shape = first["accuracy"], first["shape"]
    numbers = 1
    for side in shape if isinstance(shape, list) else ():
        numbers *= side
    joint = attacks.get("joint")
    control = max(max(one["controls"].values()) for one in attacks.values())
    seeds = f", {first['networks']} seeds" if first["networks"] > 1 else ""
    weights = "trained" if first["trained"] else f"random{seeds}"
    return [
        str(first["factor"]),
        str(first["level"]),
        weights,
        f"{100 * accuracy:.1f} %" if isinstance(accuracy, float) else "–",
        LAYERS[str(first["layer"])],
        f"{numbers:,}",
        f"{100 * first['told']:.0f} %" if first["told"] is not None else "",
        str(first["psnr"]["n"]),
        f"{control:.1f}",
        _psnr(joint),
        f"{joint['ssim']['mean']:.3f}" if joint else "",
        f"{joint['residual']:.1e}" if joint else "",
        *(_psnr(attacks.get(attack)) for attack in others),
    ]


def _psnr(one: Record | None) -> str:
    if one is None:
        return ""
    stats = Stats.model_validate(one["psnr"])
    return f"{stats.mean:.1f} [{stats.ci_low:.1f}, {stats.ci_high:.1f}]"


def main() -> None:
    """Train what is not trained, run what is missing, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], choices=sorted(FACTORS), help="factors to run")
    parser.add_argument("--train", action="store_true", help="train the networks of the skip study and stop")
    parser.add_argument("--tables", action="store_true", help="write table and figure anew from the records")
    options = parser.parse_args()
    known = RESULTS / "factors.json"
    records: list[Record] = json.loads(known.read_text()) if known.is_file() else []
    if options.tables:
        return write(records)
    root = os.environ.get("SEEPAGE_DATA")
    if root is None:
        sys.exit(f"factors: set SEEPAGE_DATA to the folder with {ARCHIVE}")
    archive = Path(root) / ARCHIVE
    torch.set_flush_denormal(True)
    if options.train:
        for design in FACTORS["skip"]:
            print(design.name, trained(design, archive), flush=True)
        return None
    # One attack on every network before the next: a table that breaks off still compares like with like.
    plan = [(row, attack) for layer in LAYERS for attack in ATTACKS for row in rows() if row.layer == layer]
    order = [_key(row.factor, row.level, row.trained, row.layer, attack) for row in rows() for attack in ATTACKS]
    for row, attack in plan:
        if options.only and row.factor not in options.only:
            continue
        accuracy = trained(row.design, archive)["accuracy"] if row.trained else None
        share = directions(row, archive) if row.factor == "skip" else None
        made = record(row, attack, attacked(row, attack, archive), accuracy, share)
        records = [one for one in records if _of(one) != _of(made)] + [made]
        records = sorted((one for one in records if _of(one) in order), key=lambda one: order.index(_of(one)))
        write(records)
        print(f"{datetime.now(UTC):%H:%M:%S}", *_of(made), f"{made['psnr']['mean']:.1f} dB", flush=True)
    return None


def _key(factor: str, level: str, trained: bool, layer: str, attack: str) -> tuple[str, ...]:
    return factor, level, str(trained), layer, attack


def _of(one: Record) -> tuple[str, ...]:
    return _key(*(one[name] for name in ("factor", "level", "trained", "layer", "attack")))


if __name__ == "__main__":
    main()
