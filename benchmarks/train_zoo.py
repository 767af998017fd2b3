"""Train a CIFAR network of the zoo on one thread, and measure it.

    SEEPAGE_DATA=... python benchmarks/train_zoo.py NAME [--epochs 10] [--seed 0]
    SEEPAGE_DATA=... python benchmarks/train_zoo.py NAME --weights FILE

The first trains NAME on the training files of `cifar10_jpeg.zip`, writes its weights in half precision to
src/seepage/victims/weights/NAME.safetensors and measures those on the test files; the second only measures a file.
Either adds a row to results/zoo.json and .md beside this file. The test files are read once, after training: nothing is
chosen by them. After every epoch the state is kept in `--checkpoint`; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from cifar_training import ARCHIVE, Recipe, measure, train
from seepage import assets
from seepage.seeding import state_sha256
from seepage.victims import cifar
from seepage.victims.weights import fit, read_state

RESULTS = Path(__file__).parent / "results"
WEIGHTS = Path(__file__).parents[1] / "src" / "seepage" / "victims" / "weights"


@dataclass(frozen=True)
class Row:
    """What was measured of one set of weights; `recipe` is None where they came from a file."""

    name: str
    weights: str
    weights_sha256: str
    parameters: int
    accuracy: float
    right: int
    pictures: int
    recipe: Recipe | None
    loss: float | None
    seconds: float
    command: str
    machine: str
    date: str


def record(row: Row) -> None:
    """Put the row in the place of an older one of the same network and weights."""
    path = RESULTS / "zoo.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    rows = [old for old in rows if (old["name"], old["weights"]) != (row.name, row.weights)] + [asdict(row)]
    rows.sort(key=lambda old: (old["name"], old["weights"]))
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps({"data": ARCHIVE, "rows": rows}, indent=1) + "\n")
    lines = [
        f"`python benchmarks/train_zoo.py` on `{ARCHIVE}`: accuracy on its 10,000 test files, lossy JPEGs of CIFAR-10.",
        "",
        "| network | weights | parameters | test accuracy | epochs | training minutes | machine, date |",
        "|---|---|---|---|---|---|---|",
    ]
    for old in rows:
        trained = old["recipe"] is not None
        made = f"{old['recipe']['epochs']} | {old['seconds'] / 60:.0f}" if trained else "– | –"
        lines.append(
            f"| {old['name']} | {old['weights']} | {old['parameters']:,} | {100 * old['accuracy']:.2f} % | {made} "
            f"| {old['machine']}, {old['date']} |"
        )
    (RESULTS / "zoo.md").write_text("\n".join([*lines, ""]))


def main() -> None:
    """Train or read, write, measure, record."""
    parser = argparse.ArgumentParser(description="Train or measure a CIFAR network of the zoo.")
    parser.add_argument("name", choices=sorted(cifar.NETWORKS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="measure this file instead of training")
    parser.add_argument("--checkpoint", type=Path, help="default: training/NAME.pt in seepage's cache folder")
    options = parser.parse_args()
    folder = os.environ.get("SEEPAGE_DATA")
    if not folder:
        parser.error(f"SEEPAGE_DATA must name the folder that holds {ARCHIVE}")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    archive = Path(folder) / ARCHIVE
    prepare = cifar.preprocessing().normaliser()
    recipe, loss, seconds, source = None, None, 0.0, options.weights
    if source is None:
        recipe = Recipe(options.epochs, options.seed)
        checkpoint = options.checkpoint or assets.home() / "training" / f"{options.name}.pt"
        model, loss, seconds = train(cifar.NETWORKS[options.name], prepare, recipe, archive, checkpoint)
        source = WEIGHTS / f"{options.name}.safetensors"
        source.parent.mkdir(exist_ok=True)
        state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
        save_file({key: value.half().contiguous() for key, value in state.items()}, source)
        source.chmod(0o644)
    shipped = cifar.NETWORKS[options.name]()
    fit(shipped, read_state(source), source.name)
    right, pictures = measure(shipped, prepare, archive)
    row = Row(
        name=options.name,
        weights=source.name,
        weights_sha256=state_sha256(shipped),
        parameters=sum(weight.numel() for weight in shipped.parameters()),
        accuracy=right / pictures,
        right=right,
        pictures=pictures,
        recipe=recipe,
        loss=loss,
        seconds=round(seconds, 1),
        command=f"python benchmarks/train_zoo.py {options.name}"
        + (f" --weights {source.name}" if recipe is None else f" --epochs {recipe.epochs} --seed {recipe.seed}"),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}",
        date=time.strftime("%Y-%m-%d"),
    )
    record(row)
    print(f"{row.name}, {row.weights}: {right} of {pictures} right")


if __name__ == "__main__":
    main()
