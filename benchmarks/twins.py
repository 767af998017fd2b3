"""Inputs of one trained residual block that give the same output: why no solver can be asked for the true one.

    SEEPAGE_DATA=... python benchmarks/twins.py [--block NAME] [--pictures COUNT] [--starts COUNT]

For a block of the pre-activation ResNet-20 and CIFAR test pictures: Anderson acceleration and then
Levenberg-Marquardt, all in float64, from the block's output and from the truth plus noise of 0.1 to 1 of its size. What
ends at a relative residual of at most 1e-9 is a root; roots further than 1e-6 apart are different inputs with one
output. Half way between the truth and a root the singular values of the Jacobian are bounded by Lanczos: between two
roots of a map the mean Jacobian is singular. Writes `results/twins.md` and `.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

from blocks import picture
from seepage import seeding
from seepage.solvers import LevenbergMarquardt
from seepage.solvers.anderson import Anderson
from seepage.studies.diagnose import spectrum
from seepage.victims.cut import cut
from seepage.victims.layers import layers
from seepage.victims.load import load

RESULTS = Path(__file__).parent / "results"
ROOT, APART = 1e-9, 1e-6


def ended(block: nn.Module, start: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """Return where the two solvers end, and the relative residual there."""

    def missed(x: Tensor, z: Tensor) -> Tensor:
        given: Tensor = (block(x) - z) / y.norm()
        return given

    first = Anderson(150, patience=40, tolerance=1e-12).solve(lambda x, z: block(x) - z, start, y)
    assert isinstance(first.x, Tensor)
    x, residual = first.x, float((block(first.x) - y).norm() / y.norm())
    if residual > ROOT and residual < 1e-2:
        second = LevenbergMarquardt(8, 40, tolerance=ROOT / 10, gradient_tolerance=0.0).solve(missed, x, y)
        assert isinstance(second.x, Tensor)
        x, residual = second.x, float(second.residual)
    return x, residual


def apart(a: Tensor, b: Tensor) -> float:
    """Return the distance relative to the second."""
    return float((a - b).norm() / b.norm())


def study(name: str, block: nn.Module, truth: Tensor, starts: int) -> dict[str, object]:
    """Return a block's roots: how far each is from the truth, and the smallest singular value on the way, bounded."""
    with torch.no_grad():
        y = block(truth)
        generator = seeding.generator(0, "control", "twins", name)
        noise = torch.randn(starts, *truth.shape, generator=generator, dtype=truth.dtype) * truth.square().mean().sqrt()
        places = [y, *(truth + size * one for size, one in zip(torch.logspace(-1, 0, starts).tolist(), noise))]
        roots: list[Tensor] = [truth]
        for start in places:
            x, residual = ended(block, start, y)
            if residual <= ROOT and all(apart(x, root) > APART for root in roots):
                roots.append(x)
    ways = [spectrum(block.float(), ((truth + root) / 2).float()) for root in roots]
    return {
        "block": name,
        "from_output": apart(y, truth),
        "starts": len(places),
        "twins": [apart(root, truth) for root in roots[1:]],
        "smallest": [way.smallest for way in ways],
        "largest": ways[0].largest,
    }


def main(block: str, pictures: int, starts: int) -> None:
    """Study a block at each picture and write the table."""
    root = os.environ.get("SEEPAGE_DATA")
    if root is None:
        sys.exit("twins: set SEEPAGE_DATA to the folder with cifar10_jpeg.zip")
    victim = load("zoo/cifar_preact_resnet20")
    split, rows = cut(victim, layers(victim)[-1].name), []
    for turn in range(pictures):
        x = split.load(picture(Path(root), 32, turn))[None]
        for segment in split.prefix.segments:
            with torch.no_grad():
                given, x = x, segment.module(x.clone())
            if segment.name == block:
                rows.append(study(block, copy.deepcopy(segment.module).double(), given.double(), starts))
                print(rows[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "twins.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        f"`python benchmarks/twins.py --block {block}`, {platform.machine()}, torch {torch.__version__}, "
        f"{datetime.now(UTC):%Y-%m-%d}. Distances are relative to the true input.",
        "",
        "| picture | output, away | starts | same output, away | sigma max | sigma min, truth | half way |",
        "|---|---|---|---|---|---|---|",
    ]
    for turn, row in enumerate(rows):
        twins, smallest = (row[key] for key in ("twins", "smallest"))
        assert isinstance(twins, list)
        assert isinstance(smallest, list)
        cells = [str(turn), f"{row['from_output']:.2f}", str(row["starts"])]
        cells += [", ".join(f"{twin:.1e}" for twin in twins) or "none found", f">= {row['largest']:.1f}"]
        cells += [f"<= {smallest[0]:.1e}", ", ".join(f"<= {value:.1e}" for value in smallest[1:])]
        lines.append(f"| {' | '.join(cells)} |")
    (RESULTS / "twins.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", default="layer2.1", help="a block that keeps its shape")
    parser.add_argument("--pictures", type=int, default=6, help="how many test pictures")
    parser.add_argument("--starts", type=int, default=4, help="starts near the truth, beside the block's output")
    arguments = parser.parse_args()
    main(arguments.block, arguments.pictures, arguments.starts)
