"""What the leak says of a picture to first order: rank and conditioning of the prefix's Jacobian at real pictures.

    SEEPAGE_DATA=... python benchmarks/identifiability.py [--pictures 3]

CIFAR networks at the ends of their stages and at the pooled vector, on test files. The Jacobian at the true picture is
formed column by column in float32 and its singular values computed in float64. Only rows that move count: a ReLU that
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

RESULTS = Path(__file__).parent / "results"
VICTIMS = ("zoo/cifar_preact_resnet20", "zoo/cifar_resnet20")
LAYERS = ("layer1.2", "layer2.2", "layer3.2", "pool")
ROUNDING = 1e-6
COLUMNS = 64


def jacobian(split: seepage.SplitModel, image: Tensor) -> Tensor:
    """Return the prefix's Jacobian at one picture, "outputs inputs"."""
    flat = image.flatten()
    columns = []
    for basis in torch.eye(flat.numel()).split(COLUMNS):

        def push(direction: Tensor) -> Tensor:
            pushed: Tensor = torch.func.jvp(
                lambda x: split.prefix(x.view(1, *split.image_shape)).flatten(), (flat,), (direction,)
            )[1]
            return pushed

        with torch.no_grad():
            columns.append(torch.func.vmap(push)(basis))
    return torch.cat(columns).T


def measure(split: seepage.SplitModel, image: Tensor) -> dict[str, float]:
    """Return counts and conditioning at one picture."""
    found = jacobian(split, image)
    moving = found[found.abs().amax(1) > 0].double()
    gram = moving.T @ moving if len(moving) >= moving.shape[1] else moving @ moving.T
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)
    rank = int((values > ROUNDING * values[0]).sum())
    unknowns = found.shape[1]
    full = rank == unknowns
    return {
        "unknowns": unknowns,
        "outputs": found.shape[0],
        "moving": len(moving),
        "rank": rank,
        "condition": float(values[0] / values[rank - 1]) if full else math.inf,
        "share of energy": float((values[:rank].square().cumsum(0) / values.square().sum() > 0.99).float().argmax())
        + 1,
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
    for victim in VICTIMS:
        loaded = seepage.load(victim)
        for layer in LAYERS:
            split = seepage.cut(loaded, layer)
            images = [split.load(Image.open(path).convert("RGB")) for path in paths[:: len(paths) // count][:count]]
            rows = [measure(split, image) for image in images]
            record.append({"victim": victim, "layer": layer, "rows": rows})
            middle = {key: sorted(row[key] for row in rows)[len(rows) // 2] for key in rows[0]}
            lines.append(
                f"| {victim} | {layer} | {middle['unknowns']} | {middle['outputs']} | {middle['moving']} | "
                f"{middle['rank']} | {middle['condition']:.0e} | {middle['share of energy']:.0f} |"
            )
            print(lines[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "identifiability.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "identifiability.json").write_text(json.dumps({"machine": machine, "cuts": record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
