"""Train a small residual network to tell pneumonia from its absence on PneumoniaMNIST, and measure it.

    SEEPAGE_DATA=... python benchmarks/train_xray.py [--epochs 8] [--seed 0]

The victim of the X-ray rows of `peel_tables.py`: a ResNet-8 of the CIFAR kind on grey 28-pixel X-rays, three equal
channels. It trains on the train split of `pneumoniamnist.npz` (MedMNIST, CC BY 4.0), and the epoch with the best area
under the curve on the val split is kept; the test split is read once, after that. Weights go to seepage's cache folder,
figures to results/xray.json and .md. A few minutes on one thread.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from seepage import assets
from seepage.victims.cifar import CifarResNet
from seepage.victims.weights import seeded

ARCHIVE = "pneumoniamnist.npz"
RESULTS = Path(__file__).parent / "results"
SIDE, PAD = 28, 2
MEAN, DEVIATION = 0.57, 0.17


class XrayResNet(CifarResNet):
    """A ResNet-8 on X-rays: RGB in [0, 1], "b 3 28 28", to scores of (no pneumonia, pneumonia)."""

    image_shape = (3, SIDE, SIDE)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2"]:
        scores: Tensor = super().forward((images - MEAN) / DEVIATION)
        return scores


def network() -> XrayResNet:
    """Return the network, as `module/benchmarks/train_xray.py:network@FILE` has it."""
    return XrayResNet(1, 2)


def weights() -> Path:
    """Return where the trained weights are kept."""
    return assets.home() / "training" / "xray_resnet8.safetensors"


def read(archive: Path, split: str) -> tuple[Float[Tensor, "n 3 28 28"], Int[Tensor, "n"]]:
    """Return the X-rays of a split in [0, 1], grey in three channels, and whether each shows pneumonia."""
    with np.load(archive) as file:
        grey = torch.from_numpy(file[f"{split}_images"]).float() / 255
        return grey[:, None].repeat(1, 3, 1, 1), torch.from_numpy(file[f"{split}_labels"]).long().flatten()


def train(archive: Path, epochs: int, seed: int) -> tuple[XrayResNet, float, float]:
    """Return the network of the best epoch, its area under the curve on the val split, and the seconds it took."""
    images, labels = read(archive, "train")
    padded = F.pad(images, (PAD,) * 4, mode="replicate")
    with seeded(seed):
        model = network()
    generator = torch.Generator().manual_seed(seed)
    # As many of either: three in four X-rays show pneumonia.
    weight = len(labels) / (2 * labels.bincount().float())
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = len(labels) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, epochs * steps, pct_start=0.25)
    best, kept, began = 0.0, copy.deepcopy(model), time.perf_counter()
    for epoch in range(epochs):
        model.train()
        for rows in torch.randperm(len(labels), generator=generator)[: steps * 64].view(steps, -1):
            down, right = torch.randint(2 * PAD + 1, (2,), generator=generator).tolist()
            batch = padded[rows, :, down : down + SIDE, right : right + SIDE]
            loss = F.cross_entropy(model(batch), labels[rows], weight)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        area = measure(model, archive, "val")[1]
        print(f"epoch {epoch + 1} of {epochs}: val AUC {area:.4f}, {time.perf_counter() - began:.0f} s", flush=True)
        if area > best:
            best, kept = area, copy.deepcopy(model)
    return kept, best, time.perf_counter() - began


@torch.no_grad()
def measure(model: XrayResNet, archive: Path, split: str) -> tuple[float, float]:
    """Return the accuracy and the area under the curve on a split."""
    images, labels = read(archive, split)
    model.eval()
    scores = torch.cat([model(batch) for batch in images.split(256)]).softmax(1)[:, 1]
    accuracy = float(((scores > 0.5) == labels.bool()).float().mean())
    return accuracy, float(roc_auc_score(labels.numpy(), scores.numpy()))


def main(epochs: int, seed: int, archive: Path) -> None:
    """Train, keep, measure, record."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model, best, seconds = train(archive, epochs, seed)
    accuracy, area = measure(model, archive, "test")
    target = weights()
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, target)
    command = f"python benchmarks/train_xray.py --epochs {epochs} --seed {seed}"
    record = {
        "command": command,
        "data": ARCHIVE,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "accuracy": accuracy,
        "auc": area,
        "val_auc": best,
        "seconds": round(seconds, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%d"),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "xray.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "xray.md").write_text(
        f"`{command}`, {record['machine']}, {record['date']}: a ResNet-8 of {record['parameters']:,} parameters on "
        f"PneumoniaMNIST, {100 * accuracy:.1f} % of 624 test X-rays right, area under the curve {area:.3f}.\n"
    )
    print(f"test accuracy {accuracy:.3f}, AUC {area:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = os.environ.get("SEEPAGE_DATA")
    if not folder:
        parser.error(f"SEEPAGE_DATA must name the folder that holds {ARCHIVE}")
    main(options.epochs, options.seed, Path(folder) / ARCHIVE)
