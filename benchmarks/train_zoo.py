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
import io
import json
import os
import platform
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from seepage import assets
from seepage.victims import cifar
from seepage.victims.victim import state_sha256
from seepage.victims.weights import fit, read_state, seeded

ARCHIVE = "cifar10_jpeg.zip"
RESULTS = Path(__file__).parent / "results"
WEIGHTS = Path(__file__).parents[1] / "src" / "seepage" / "victims" / "weights"
SIDE, PAD = 32, 4


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with Nesterov momentum under a one-cycle rate; crops and mirrored pictures."""

    epochs: int
    seed: int
    batch: int = 64
    rate: float = 0.1
    momentum: float = 0.9
    decay: float = 5e-4
    smoothing: float = 0.1


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


def read(archive: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return the pictures of a split as bytes "n 3 32 32", and their labels "n"."""
    images, labels = [], []
    with zipfile.ZipFile(archive) as files:
        for name in sorted(files.namelist()):
            parts = name.split("/")
            if parts[0] != split or not name.endswith(".jpg"):
                continue
            with Image.open(io.BytesIO(files.read(name))) as image:
                images.append(np.asarray(image.convert("RGB")))
            labels.append(cifar.CLASSES.index(parts[1]))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def augment(padded: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random crop "b 3 32 32" of every padded picture, every second one mirrored, by chance."""
    count = len(padded)
    down, right = torch.randint(2 * PAD + 1, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(SIDE), right + torch.arange(SIDE)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    picked = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def train(name: str, recipe: Recipe, archive: Path, checkpoint: Path) -> tuple[nn.Module, float, float]:
    """Return the network, the loss of its last epoch, and the seconds that all epochs took."""
    images, labels = read(archive, "train")
    normalise = cifar.preprocessing().normaliser()
    padded = F.pad(normalise(images / 255), (PAD,) * 4)
    with seeded(recipe.seed):
        model = cifar.NETWORKS[name]().to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        model.parameters(), recipe.rate, momentum=recipe.momentum, weight_decay=recipe.decay, nesterov=True
    )
    steps = len(labels) // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, recipe.epochs * steps, pct_start=0.25)
    done, loss, seconds = _resume(checkpoint, recipe, model, optimiser, schedule)
    for epoch in range(done, recipe.epochs):
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(1000 * recipe.seed + epoch)
        total = 0.0
        model.train()
        for rows in torch.randperm(len(labels), generator=generator)[: steps * recipe.batch].view(steps, -1):
            batch = augment(padded[rows], generator).contiguous(memory_format=torch.channels_last)
            step_loss = F.cross_entropy(model(batch), labels[rows], label_smoothing=recipe.smoothing)
            optimiser.zero_grad()
            step_loss.backward()
            optimiser.step()
            schedule.step()
            total += step_loss.item()
        loss = total / steps
        seconds += time.perf_counter() - began
        print(f"{name}: epoch {epoch + 1} of {recipe.epochs}, loss {loss:.4f}, {seconds:.0f} s", flush=True)
        _keep(checkpoint, recipe, epoch + 1, loss, seconds, model, optimiser, schedule)
    return model, loss, seconds


@torch.no_grad()
def measure(model: nn.Module, archive: Path) -> tuple[int, int]:
    """Return how many of the test files the network is right about, and how many there are."""
    images, labels = read(archive, "test")
    normalise = cifar.preprocessing().normaliser()
    model.eval()
    right = sum(
        int((model(normalise(batch / 255)).argmax(1) == wanted).sum())
        for batch, wanted in zip(images.split(250), labels.split(250), strict=True)
    )
    return right, len(labels)


def _resume(checkpoint: Path, recipe: Recipe, *parts: nn.Module | object) -> tuple[int, float, float]:
    if not checkpoint.is_file():
        return 0, float("nan"), 0.0
    state = torch.load(checkpoint, weights_only=True)
    if state["recipe"] != asdict(recipe):
        raise SystemExit(f"{checkpoint} was made by another recipe; remove it to start afresh")
    for part, saved in zip(parts, state["parts"], strict=True):
        part.load_state_dict(saved)
    return state["epoch"], state["loss"], state["seconds"]


def _keep(checkpoint: Path, recipe: Recipe, epoch: int, loss: float, seconds: float, *parts: object) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    fresh = checkpoint.with_suffix(".new")
    state = {"recipe": asdict(recipe), "epoch": epoch, "loss": loss, "seconds": seconds}
    torch.save(state | {"parts": [part.state_dict() for part in parts]}, fresh)
    fresh.replace(checkpoint)


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
    recipe, loss, seconds, source = None, None, 0.0, options.weights
    if source is None:
        recipe = Recipe(options.epochs, options.seed)
        checkpoint = options.checkpoint or assets.home() / "training" / f"{options.name}.pt"
        model, loss, seconds = train(options.name, recipe, archive, checkpoint)
        source = WEIGHTS / f"{options.name}.safetensors"
        source.parent.mkdir(exist_ok=True)
        state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
        save_file({key: value.half().contiguous() for key, value in state.items()}, source)
        source.chmod(0o644)
    shipped = cifar.NETWORKS[options.name]()
    fit(shipped, read_state(source), source.name)
    right, pictures = measure(shipped, archive)
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
