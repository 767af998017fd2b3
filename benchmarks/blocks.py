"""Every block of trained networks and of a random ViT on its own: from its output to its input, by rule and Adam-500.

    SEEPAGE_DATA=... python benchmarks/blocks.py [--networks NAME]... [--adam COUNT]

The true input is what a picture gives the block: a CIFAR test file or an ImageNet sample of the second half of the
alphabet, of which none was tuned on. Rule and baseline start at the block's output, or at what a grey picture gives
where shapes differ; the rule has 480 passes, the total variation that `peel` has, and bounds; Adam has 500 steps, a
cosine rate and no prior. Adam runs on the first COUNT blocks of a network. A row on record is
not run again. Writes `results/blocks.json` and `.md` after every block. Its time is in the
rule's, on this machine, whatever else ran.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from seepage.data.archive import folder_of
from seepage.inverses import Generic, Step, Target, steps, unknowns
from seepage.priors import total_variation
from seepage.priors.ridge import Layout
from seepage.solvers import Solution
from seepage.victims.cut import cut
from seepage.victims.kinds import RESIDUAL
from seepage.victims.layers import layers
from seepage.victims.load import load
from victims import dinov2_small

RESULTS = Path(__file__).parent / "results"
PASSES, ADAM, TV, SOLVED = 480, 501, 0.3, 1e-5


@dataclass(frozen=True)
class Row:
    """One block of one network, solved twice. Errors and residuals are relative, seconds and passes of one picture."""

    network: str
    block: str
    kind: str | None
    rule: str
    keeps_shape: bool
    start: float
    error: float
    residual: float
    passes: int
    seconds: float
    status: str
    adam_error: float | None = None
    adam_residual: float | None = None
    adam_seconds: float | None = None


def networks(data: Path) -> dict[str, str]:
    """Return the victims by the names they have here."""
    weights = data / "weights"
    return {
        "pre-activation ResNet-20": "zoo/cifar_preact_resnet20",
        "ResNet-20": "zoo/cifar_resnet20",
        "MobileFaceNet": f"zoo/mobilefacenet@{weights / 'mobilefacenet_apache2.pt'}",
        "MobileNetV2": "zoo/mobilenet_v2",
        "ViT-B/16, random": "timm/vit_base_patch16_224@random",
        "DINOv2-small": dinov2_small(data),
    }


def picture(data: Path, side: int, turn: int = 0) -> Path:
    """Return the picture that a network of this input size is shown, or another of those that were not tuned on."""
    if side == 32:
        root = folder_of(data / "cifar10_jpeg.zip", "cifar10/test", "train/ and test/")
        files = sorted(path for path in root.rglob("*") if path.is_file() and "test" in path.parts)
        return files[len(files) // 3 + 97 * turn]
    root = folder_of(data / "imagenet_samples_256.tar", "imagenet/samples", "photographs")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return files[3 * len(files) // 4 + turn]


def solve(network: str, step: Step, x: Tensor, y: Tensor, image_shape: tuple[int, int, int], adam: bool) -> Row:
    """Return how the rule and, if asked, Adam end on one block."""
    segment = step.segment
    start = step.grey if step.reshapes else y
    layout = Layout.of(segment.in_shape, image_shape)
    prior = None if layout.order == "vector" else lambda given: TV * total_variation(layout.arrange(given))
    target = Target(y, step.start_at(start), step.lower, step.upper, prior, not step.loses, True, step.known)
    name, inverse = step.served
    began = time.perf_counter()
    found = inverse.invert(segment, target, PASSES)
    seconds = time.perf_counter() - began
    row = Row(
        network,
        segment.name,
        segment.kind,
        name,
        not step.reshapes,
        _error(start, x),
        _error(found, x),
        float(found.residual),
        int(found.passes),
        seconds,
        found.status[0].kind,
    )
    if not adam:
        return row
    began = time.perf_counter()
    other = Generic(tolerance=0.0).invert(segment, Target(y, start, step.lower, step.upper, None, False), ADAM)
    seconds = time.perf_counter() - began
    return replace(row, adam_error=_error(other, x), adam_residual=float(other.residual), adam_seconds=seconds)


def _error(found: Solution | Tensor, x: Tensor) -> float:
    given = unknowns(found) if isinstance(found, Solution) else found
    return float((given - x).norm() / x.norm())


def write(rows: list[Row]) -> None:
    """Write both tables anew."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "blocks.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    lines = [
        f"`python benchmarks/blocks.py`, {machine}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}. "
        "One picture a network; errors and residuals are relative, in 2-norms.",
        "",
        "| network | blocks of one shape | error <= 1e-5 | Adam-500 | median error | times faster, if solved |",
        "|---|---|---|---|---|---|",
        *(_summary(name, rows) for name in dict.fromkeys(row.network for row in rows)),
        "",
        "| network | block | rule | start | error | residual | passes | status | Adam's error | residual | time |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
    ]
    (RESULTS / "blocks.md").write_text("\n".join([*lines, ""]))


def _summary(name: str, rows: list[Row]) -> str:
    mine = [row for row in rows if row.network == name and row.keeps_shape]
    errors = sorted(row.error for row in mine)
    compared = [row for row in mine if row.adam_error is not None]
    adam = sum(row.adam_error <= SOLVED for row in compared if row.adam_error is not None)
    ratios = sorted(row.adam_seconds / row.seconds for row in compared if row.adam_seconds and row.error <= SOLVED)
    faster = f"{statistics.median(ratios):.0f}" if ratios else "none"
    solved = sum(row.error <= SOLVED for row in mine)
    median = "" if not errors else f"{statistics.median(errors):.1e}"
    return f"| {name} | {len(mine)} | {solved} | {adam} of {len(compared)} | {median} | {faster} |"


def _line(row: Row) -> str:
    cells = [row.network, row.block, row.rule, f"{row.start:.2f}", f"{row.error:.1e}", f"{row.residual:.1e}"]
    cells += [str(row.passes), row.status]
    if row.adam_error is None or row.adam_residual is None or row.adam_seconds is None:
        cells += ["", "", ""]
    else:
        cells += [f"{row.adam_error:.1e}", f"{row.adam_residual:.1e}", f"{row.adam_seconds / row.seconds:.1f}"]
    return f"| {' | '.join(cells)} |"


def main(wanted: list[str], adam: int) -> None:
    """Run the rows that are missing and write the tables."""
    root = os.environ.get("SEEPAGE_DATA")
    if root is None:
        sys.exit("blocks: set SEEPAGE_DATA to the folder with cifar10_jpeg.zip, imagenet_samples_256.tar and weights")
    data, path = Path(root), RESULTS / "blocks.json"
    rows = [Row(**record) for record in json.loads(path.read_text())] if path.exists() else []
    order = list(networks(data))
    for name, victim in networks(data).items():
        if wanted and name not in wanted:
            continue
        loaded = load(victim)
        split = cut(loaded, layers(loaded)[-1].name)
        grey = torch.full((1, *split.image_shape), 0.5)
        x, runs = split.load(picture(data, split.image_shape[-1]))[None], 0
        for step in steps(split.prefix, grey):
            with torch.no_grad():
                y = step.segment.module(x.clone())
            known = any((row.network, row.block) == (name, step.segment.name) for row in rows)
            if step.segment.kind in RESIDUAL:
                runs += 1
                if not known:
                    row = solve(name, step, x, y, split.image_shape, runs <= adam)
                    rows = sorted([*rows, row], key=lambda row: order.index(row.network))
                    write(rows)
                    print(f"{datetime.now(UTC):%H:%M:%S} {_line(row)}", flush=True)
            x = y


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", action="append", default=[], help="run this network alone; may be repeated")
    parser.add_argument("--adam", type=int, default=99, help="how many blocks of a network Adam runs on")
    arguments = parser.parse_args()
    main(arguments.networks, arguments.adam)
