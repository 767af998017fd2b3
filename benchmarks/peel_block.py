"""PEEL's Figure 5 anew: the input of one small residual block from its output, by four ways to solve for it.

    python benchmarks/peel_block.py [--blocks 10] [--iterations 500]

The block is that of the paper's figure: y = x + W2 relu(W1 x), 5 channels of 8 x 8, 3 x 3 convolutions without bias,
float64, weights as PyTorch draws them. It is given the four embedded
photographs, brought to 8 x 8 and mixed to five channels at random. Each solver starts at the output and
sees nothing else. PyGRANSO (`pip install --group bench`) solves the same problem in x, p and n. Writes
`results/peel_block.md` and `.json`. Errors are relative; the paper's own figure, 3.64, is a norm, and its per cent that
norm over the count of 320 numbers, so both are given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import seepage
from pygranso_solver import missing, solve
from seepage.inverses import Constrained, Generic, IdentityResidual, Inverse, Split, Target, unknowns
from seepage.pictures import read_picture
from seepage.types import Segment

RESULTS = Path(__file__).parent / "results"
CHANNELS, SIDE = 5, 8
PASSES = 2000


class Block(nn.Module):
    """y = x + W2 relu(W1 x), "b 5 8 8" to the same."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        bound = (CHANNELS * 9) ** -0.5
        for conv in (self.first, self.second):
            nn.init.uniform_(conv.weight, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.relu(self.first(x)))


@dataclass(frozen=True)
class Row:
    """One solver on all blocks: relative errors, norms, norms over the count in per cent, seconds, one a block."""

    solver: str
    problem: str
    relative: list[float]
    norm: list[float]
    count: list[float]
    seconds: list[float]
    message: str = ""


def given(generator: torch.Generator, count: int) -> Tensor:
    """Return `count` inputs "n 5 8 8": small photographs, mixed to five channels and standardised."""
    small = []
    for entry in seepage.open_source().entries:
        pixels = np.asarray(read_picture(entry.path).resize((SIDE, SIDE)), dtype=np.float64) / 255
        small.append(torch.from_numpy(pixels).permute(2, 0, 1))
    pictures = torch.stack([small[i % len(small)] for i in range(count)])
    mixed = F.conv2d(pictures, torch.randn(CHANNELS, 3, 1, 1, generator=generator, dtype=torch.double))
    return (mixed - mixed.mean((1, 2, 3), keepdim=True)) / mixed.std((1, 2, 3), keepdim=True)


def run(name: str, problem: str, solve: Callable[[Block, Tensor], Tensor], cases: list[tuple[Block, Tensor]]) -> Row:
    """Time a solver on every block and compare what it gives with what the block was given."""
    row = Row(name, problem, [], [], [], [])
    for block, x in cases:
        began = time.perf_counter()
        found = solve(block, block(x))
        row.seconds.append(time.perf_counter() - began)
        off = float((found - x).norm())
        row.norm.append(off)
        row.relative.append(off / float(x.norm()))
        row.count.append(100 * off / x.numel())
    print(f"{name}: {statistics.median(row.relative):.1e}, {statistics.median(row.seconds):.2f} s", flush=True)
    return row


def by(inverse: Inverse) -> Callable[[Block, Tensor], Tensor]:
    """Return one of seepage's inverses as a solver of blocks."""

    def solver(block: Block, y: Tensor) -> Tensor:
        shape = tuple(y.shape[1:])
        segment = Segment("block", "pre-activation", block, shape, shape)
        return unknowns(inverse.invert(segment, Target(y, y), PASSES))

    return solver


def main(count: int, iterations: int, limit: float, reports: Path) -> None:
    """Solve every block by every solver and write the table."""
    generator = torch.Generator().manual_seed(0)
    inputs = given(generator, count)
    cases = [(Block(generator).double().requires_grad_(False), inputs[row : row + 1]) for row in range(count)]
    split = "x, p, n; constraints"
    rows = [
        run("what comes out, unsolved", "-", lambda block, y: y, cases),
        run("Anderson, then Levenberg-Marquardt (rule of the kind)", "x alone", by(IdentityResidual()), cases),
        run("Adam, then Levenberg-Marquardt (generic rule)", "x alone", by(Generic()), cases),
        run("multipliers (form=constrained)", split, by(Constrained()), cases),
        run("Adam with penalties (form=penalty)", "x, p, n; penalties", by(Split()), cases),
    ]
    reason = missing()
    if reason is None:

        def granso(block: Block, y: Tensor) -> Tensor:
            return solve(block.first, block.second, y, iterations, limit)[0]

        rows.append(run(f"PyGRANSO, {iterations} iterations", split, granso, cases))
    else:
        rows.append(Row("PyGRANSO", split, [], [], [], [], reason))
    write(rows, count, iterations, reports)


def write(rows: list[Row], count: int, iterations: int, reports: Path) -> None:
    """Write the table and what it is made of."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    command = f"python benchmarks/peel_block.py --blocks {count} --iterations {iterations}"
    stamp = f"`{command}`, {machine}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}."
    lines = [
        stamp,
        "",
        "| solver | problem | relative error: median | worst | error norm: median | norm / 320, per cent | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.message:
            lines.append(f"| {row.solver} | {row.problem} | {row.message} | | | | |")
            continue
        middle = statistics.median
        lines.append(
            f"| {row.solver} | {row.problem} | {middle(row.relative):.1e} | {max(row.relative):.1e} "
            f"| {middle(row.norm):.1e} | {middle(row.count):.1e} | {middle(row.seconds):.2f} |"
        )
    reports.mkdir(exist_ok=True)
    record = {"command": command, "machine": machine, "blocks": count, "rows": [asdict(row) for row in rows]}
    (reports / "peel_block.json").write_text(json.dumps(record, indent=1) + "\n")
    (reports / "peel_block.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=500, help="of PyGRANSO")
    parser.add_argument("--seconds", type=float, default=60, help="PyGRANSO ends after so many a block")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="where the table goes")
    arguments = parser.parse_args()
    main(arguments.blocks, arguments.iterations, arguments.seconds, arguments.output)
