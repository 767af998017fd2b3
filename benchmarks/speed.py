"""Seconds to a given error: `joint`, with and without synthetic pictures, against `rmle`, each at several budgets.

    SEEPAGE_DATA=... python benchmarks/speed.py [--cuts TEXT]...

Every budget is a run of its own on the same pictures in the same process. Fitting is done once for a network and a cut,
whoever is looked at, so it stands apart: for each budget of `rmle` the table says which budget of `joint` is the first
to have a mean squared error at least as low, how much sooner it has searched, and how much sooner it is done on these
pictures with its fitting shared among them; a second table asks the other way round. Seconds are one core's, on one
thread. CIFAR pictures are test files, photographs are ImageNet samples of the half that tuning did not use. Writes
`results/speed.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from pathlib import Path

import torch
from PIL import Image

import inversion
import seepage
from seepage.audit.statistics import describe

RESULTS = Path(__file__).parent / "results"
CUTS = (
    ("zoo/cifar_preact_resnet20", "layer2.2", "cifar", 16),
    ("zoo/cifar_resnet20", "layer2.2", "cifar", 16),
    ("zoo/mobilenet_v2", "features.1", "photographs", 4),
)
LADDERS = {
    "rmle": tuple(f"rmle:steps={steps}" for steps in (100, 200, 400, 800, 1600)),
    "joint, synthetic pictures": (
        *(f"joint:corrections={count},steps=0,newton=0" for count in (1, 2, 4, 8)),
        *(f"joint:steps=0,newton={count}" for count in (1, 3, 10, 30)),
    ),
    "joint, no pictures": tuple(f"joint:start=grey,newton={count}" for count in (1, 2, 4, 8, 15, 30)),
}
BATCH = 8


def run(name: str, split: seepage.SplitModel, images: torch.Tensor) -> dict[str, object]:
    """Attack every picture; return their squared errors, the seconds of fitting and those a picture's search took."""
    attack = seepage.build("attack", name)
    knowledge = seepage.Knowledge(split.image_shape, split.prefix)
    began = time.process_time()
    recoverer = attack.fit(knowledge, seepage.generator(0, "fit", name))
    fitting = time.process_time() - began
    errors: list[float] = []
    began = time.process_time()
    for truth in images.split(BATCH):
        leak = split.leak(truth)
        draws = seepage.generators(0, "attack", seepage.row_hashes(leak.features))
        found = recoverer.recover(leak, draws).value.images
        errors += (found - truth).square().flatten(1).mean(1).tolist()
    each = (time.process_time() - began) / len(images)
    return {"attack": name, "mse": errors, "fit": fitting, "seconds": each}


def main() -> None:
    """Run every ladder at every cut and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", action="append", default=[], help="run the cuts whose victim holds this text")
    wanted = parser.parse_args().cuts
    root = os.environ.get("SEEPAGE_DATA")
    if root is None:
        sys.exit("speed: set SEEPAGE_DATA to the folder with cifar10_jpeg.zip and imagenet_samples_256.tar")
    folders = inversion.pictures(Path(root))
    torch.set_num_threads(1)
    machine = f"{platform.machine()}, one thread"
    kept = RESULTS / "speed.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    for victim, layer, pictures, count in CUTS:
        if wanted and not any(text in victim for text in wanted):
            continue
        split = seepage.cut(seepage.load(victim), layer)
        paths = sorted(path for path in Path(folders[pictures]).rglob("*") if path.is_file())
        chosen = paths[:: len(paths) // count][:count]
        images = torch.stack([split.load(Image.open(path).convert("RGB")) for path in chosen])
        run(LADDERS["rmle"][0], split, images[:1])  # the first run warms up
        found = {kind: [run(name, split, images) for name in ladder] for kind, ladder in LADDERS.items()}
        known[f"{victim} at {layer}"] = {"machine": machine, "torch": torch.__version__, "n": count, "rows": found}
        _write(known)
        print((RESULTS / "speed.md").read_text(), flush=True)


TIMES = 10


def _table(found: dict[str, list[dict[str, object]]]) -> list[str]:
    lines = [
        "| kind | attack | mean PSNR dB | MSE [95 %] | fitting, once: s | searching: s a picture |",
        "|---|---|---|---|---|---|",
    ]
    for kind, rows in found.items():
        for row in rows:
            mse = describe(row["mse"], higher_leaks=False)
            psnr = float((-10 * torch.tensor(row["mse"]).clamp_min(1e-16).log10()).mean())
            lines.append(
                f"| {kind} | `{row['attack']}` | {psnr:.1f} | {mse.mean:.1e} [{mse.ci_low:.1e}, {mse.ci_high:.1e}] | "
                f"{row['fit']:.1f} | {row['seconds']:.3f} |"
            )
    lines += ["", f"| as good as | s a picture | {' | '.join(list(LADDERS)[1:])} |", "|---|---|---|---|"]
    for row in found["rmle"]:
        cells = [_sooner(row, found[kind]) for kind in list(LADDERS)[1:]]
        lines.append(f"| `{row['attack']}` | {row['seconds']:.2f} | {' | '.join(cells)} |")
    lines += ["", "The other way round:", "", "| as good as | s a picture | rmle |", "|---|---|---|"]
    for kind in list(LADDERS)[1:]:
        for row in found[kind]:
            lines.append(f"| `{row['attack']}` | {row['seconds']:.3f} | {_later(row, found['rmle'])} |")
    return lines


def _later(row: dict[str, object], ladder: list[dict[str, object]]) -> str:
    """Say which rung is the first that is as good, and how many times as long it searches."""
    reached = [other for other in ladder if sum(other["mse"]) <= sum(row["mse"])]
    if not reached:
        return f"not reached in {max(other['seconds'] for other in ladder):.1f} s"
    first = min(reached, key=lambda other: other["seconds"])
    return f"`{first['attack']}`, {first['seconds'] / row['seconds']:.1f} times as long"


def _sooner(row: dict[str, object], ladder: list[dict[str, object]]) -> str:
    """Say how much sooner the first rung is that is as good: by searching, and with fitting shared by the pictures."""
    reached = [other for other in ladder if sum(other["mse"]) <= sum(row["mse"])]
    if not reached:
        return "not reached"
    n = len(row["mse"])
    best = min(reached, key=lambda other: other["seconds"])
    least = min(reached, key=lambda other: other["seconds"] + other["fit"] / n)
    whole = row["seconds"] / (least["seconds"] + least["fit"] / n)
    # Fitting is done once a cut: of so many pictures each takes a tenth.
    spare = [(row["seconds"] / TIMES - other["seconds"], other["fit"]) for other in reached]
    enough = [math.ceil(fit / left) for left, fit in spare if left > 0]
    many = f", {TIMES}x from {max(min(enough), 1)} pictures on" if enough and whole < TIMES else ""
    return f"{row['seconds'] / best['seconds']:.1f}x searching, {whole:.1f}x with fitting{many}"


def _write(known: dict[str, dict[str, object]]) -> None:
    lines = ["`python benchmarks/speed.py`; n pictures a row."]
    for name, cut in known.items():
        lines += ["", f"**{name}**, n = {cut['n']}, {cut['machine']}, torch {cut['torch']}", "", *_table(cut["rows"])]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "speed.json").write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
