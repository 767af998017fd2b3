"""Seconds to a given error: `joint`, with and without synthetic pictures, against `rmle`, each at several budgets.

    SEEPAGE_DATA=... python benchmarks/speed.py [--pictures 8]

Every budget is a run of its own, fitting included, on the same pictures in the same process. For each budget of `rmle`
the table says which budget of `joint` is the first to have a mean squared error at least as low, and how much sooner.
CIFAR pictures are test files, photographs are ImageNet samples of the half that tuning did not use. Writes
`results/speed.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from PIL import Image

import inversion
import seepage
from seepage.audit.statistics import describe

RESULTS = Path(__file__).parent / "results"
CUTS = (
    ("zoo/mobilenet_v2", "features.1", "photographs"),
    ("zoo/cifar_preact_resnet20", "layer2.2", "cifar"),
    ("zoo/cifar_resnet20", "layer2.2", "cifar"),
)
LADDERS = {
    "rmle": tuple(f"rmle:steps={steps}" for steps in (100, 200, 400, 800, 1600)),
    "joint, synthetic pictures": (
        *(f"joint:corrections={count},steps=0,newton=0" for count in (1, 2, 4, 8)),
        "joint:steps=0",
        "joint",
    ),
    "joint, no pictures": (
        *(f"joint:start=grey,steps={steps},newton=0" for steps in (25, 50, 100, 200)),
        "joint:start=grey",
    ),
}
BATCH = 8


def run(name: str, split: seepage.SplitModel, images: torch.Tensor) -> dict[str, object]:
    """Attack every picture; return each one's squared error, and the seconds a picture took, fitting included."""
    began = time.perf_counter()
    attack = seepage.build("attack", name)
    knowledge = seepage.Knowledge(split.image_shape, split.prefix)
    recoverer = attack.fit(knowledge, seepage.generator(0, "fit", name))
    errors: list[float] = []
    for truth in images.split(BATCH):
        leak = split.leak(truth)
        draws = seepage.generators(0, "attack", seepage.row_hashes(leak.features))
        found = recoverer.recover(leak, draws).value.images
        errors += (found - truth).square().flatten(1).mean(1).tolist()
    return {"attack": name, "mse": errors, "seconds": (time.perf_counter() - began) / len(images)}


def main() -> None:
    """Run every ladder at every cut and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=8)
    count = parser.parse_args().pictures
    root = os.environ.get("SEEPAGE_DATA")
    if root is None:
        sys.exit("speed: set SEEPAGE_DATA to the folder with cifar10_jpeg.zip and imagenet_samples_256.tar")
    folders = inversion.pictures(Path(root))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    lines = [
        f"`python benchmarks/speed.py --pictures {count}`, {machine}, torch {torch.__version__}, "
        f"{datetime.now(UTC):%Y-%m-%d}. n = {count} a row; seconds are a picture's, fitting included.",
    ]
    record = []
    for victim, layer, pictures in CUTS:
        split = seepage.cut(seepage.load(victim), layer)
        paths = sorted(path for path in Path(folders[pictures]).rglob("*") if path.is_file())
        chosen = paths[:: len(paths) // count][:count]
        images = torch.stack([split.load(Image.open(path).convert("RGB")) for path in chosen])
        run(LADDERS["rmle"][0], split, images[:1])  # the first run warms up
        found = {kind: [run(name, split, images) for name in ladder] for kind, ladder in LADDERS.items()}
        lines += ["", f"**{victim} at {layer}**", "", *_table(found)]
        record.append({"victim": victim, "layer": layer, "rows": found})
        _write(lines, {"machine": machine, "cuts": record})
    print("\n".join(lines))


def _table(found: dict[str, list[dict[str, object]]]) -> list[str]:
    lines = ["| kind | attack | mean PSNR dB | MSE [95 %] | seconds |", "|---|---|---|---|---|"]
    for kind, rows in found.items():
        for row in rows:
            mse = describe(row["mse"], higher_leaks=False)
            psnr = float((-10 * torch.tensor(row["mse"]).clamp_min(1e-16).log10()).mean())
            lines.append(
                f"| {kind} | `{row['attack']}` | {psnr:.1f} | {mse.mean:.1e} [{mse.ci_low:.1e}, {mse.ci_high:.1e}] | "
                f"{row['seconds']:.2f} |"
            )
    lines += ["", "| as good as | seconds | joint, synthetic pictures | joint, no pictures |", "|---|---|---|---|"]
    for row in found["rmle"]:
        cells = [_sooner(row, found[kind]) for kind in list(LADDERS)[1:]]
        lines.append(f"| `{row['attack']}` | {row['seconds']:.2f} | {' | '.join(cells)} |")
    return lines


def _sooner(row: dict[str, object], ladder: list[dict[str, object]]) -> str:
    wanted = sum(row["mse"])
    reached = [other for other in ladder if sum(other["mse"]) <= wanted]
    if not reached:
        return "not reached"
    first = min(reached, key=lambda other: other["seconds"])
    return f"{first['seconds']:.2f} s: {row['seconds'] / first['seconds']:.1f}x sooner"


def _write(lines: list[str], record: object) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "speed.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
