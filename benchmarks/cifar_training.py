"""Training of small networks on CIFAR files, on one thread, resumable to the bit after every epoch."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from seepage.victims import cifar
from seepage.victims.weights import seeded

ARCHIVE = "cifar10_jpeg.zip"
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


def train(
    build: Callable[[], nn.Module], prepare: Callable[[Tensor], Tensor], recipe: Recipe, archive: Path, checkpoint: Path
) -> tuple[nn.Module, float, float]:
    """Return the network, the loss of its last epoch, and the seconds that all epochs took.

    `prepare` maps pictures "n 3 32 32" in [0, 1] to what the network takes; crops pad that with zeros.
    """
    images, labels = read(archive, "train")
    padded = F.pad(prepare(images / 255), (PAD,) * 4)
    with seeded(recipe.seed):
        model = build().to(memory_format=torch.channels_last)
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
        print(f"{checkpoint.stem}: epoch {epoch + 1} of {recipe.epochs}, loss {loss:.4f}, {seconds:.0f} s", flush=True)
        _keep(checkpoint, recipe, epoch + 1, loss, seconds, model, optimiser, schedule)
    return model, loss, seconds


@torch.no_grad()
def measure(model: nn.Module, prepare: Callable[[Tensor], Tensor], archive: Path) -> tuple[int, int]:
    """Return how many of the test files the network is right about, and how many there are."""
    images, labels = read(archive, "test")
    model.eval()
    right = sum(
        int((model(prepare(batch / 255)).argmax(1) == wanted).sum())
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
