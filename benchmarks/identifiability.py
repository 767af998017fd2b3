"""What the leak says of a picture to first order: rank and conditioning of the prefix's Jacobian at real pictures.

    SEEPAGE_DATA=... python benchmarks/identifiability.py [--pictures 3]

CIFAR networks at the ends of their stages and at the pooled vector, on test files. The Jacobian at the true picture is
formed in float32 and its singular values computed in float64. Only rows that move count: a ReLU that
is off says nothing to first order. A singular value counts towards the rank above 1e-6 of the largest, the rounding of
float32. Writes `results/identifiability.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import inversion
import seepage
from seepage import bounds

RESULTS = Path(__file__).parent / "results"
OURS = ("zoo/cifar_preact_resnet20", "zoo/cifar_resnet20")
STAGES = ("layer1.2", "layer2.2", "layer3.2", "pool")


def cuts(root: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return names to print, victims, and the ends of their stages."""
    found = [(victim, victim, STAGES) for victim in OURS]
    for depth, last in ((20, 2), (56, 8)):
        for path in sorted((root / "weights").glob(f"resnet{depth}-*.th")):
            layers = tuple(f"layer{stage}.{last}" for stage in (1, 2, 3))
            found.append((f"ResNet-{depth}, published weights", f"zoo/cifar_resnet{depth}@{path}", layers))
    return found


def measure(split: seepage.SplitModel, image: Tensor) -> dict[str, float]:
    """Return counts and conditioning at one picture."""
    found = bounds.jacobian(split.prefix, image[None])
    values = bounds.singular_values(found)
    rank = int((values > bounds.ROUNDING * values[0]).sum())
    outputs, unknowns = found.shape
    energy = values.square().cumsum(0) / values.square().sum()
    return {
        "unknowns": unknowns,
        "outputs": outputs,
        "moving": int((found.abs().amax(1) > 0).sum()),
        "rank": rank,
        "condition": float(values[0] / values[-1]) if rank == unknowns else math.inf,
        "share of energy": float((energy > 0.99).float().argmax()) + 1,
    }


def main() -> None:
    """Measure every cut at every picture and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=3)
    count = parser.parse_args().pictures
    root = os.environ.get("SEEPAGE_DATA")
    if root is None:
        sys.exit("identifiability: set SEEPAGE_DATA to the folder with cifar10_jpeg.zip")
    folder = Path(inversion.pictures(Path(root))["cifar"])
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    lines = [
        f"`python benchmarks/identifiability.py --pictures {count}`, {machine}, torch {torch.__version__}, "
        f"{datetime.now(UTC):%Y-%m-%d}. Medians of {count} pictures; the condition is infinite where rank is lost.",
        "",
        "| victim | layer | unknowns | outputs | that move | rank | condition | directions with 99 % of the energy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    record = []
    for name, victim, layers in cuts(Path(root)):
        loaded = seepage.load(victim)
        for layer in layers:
            split = seepage.cut(loaded, layer)
            images = [split.load(Image.open(path).convert("RGB")) for path in paths[:: len(paths) // count][:count]]
            rows = [measure(split, image) for image in images]
            record.append({"victim": name, "layer": layer, "rows": rows})
            middle = {key: sorted(row[key] for row in rows)[len(rows) // 2] for key in rows[0]}
            lines.append(
                f"| {name} | {layer} | {middle['unknowns']} | {middle['outputs']} | {middle['moving']} | "
                f"{middle['rank']} | {middle['condition']:.0e} | {middle['share of energy']:.0f} |"
            )
            print(lines[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "identifiability.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "identifiability.json").write_text(json.dumps({"machine": machine, "cuts": record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
