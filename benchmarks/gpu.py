"""Images a second of 200 steps, on this machine's CPU and on its GPU: of an inversion, and of learning to speak.

    python benchmarks/gpu.py [--device cpu|cuda]... [--steps 200] [-o FILE.json]

`inversion`: `rmle` on a random ResNet-18 at 224 px, cut behind layer1; synthetic pictures, as many at once as serve
the device. `captions`: CapRecover's generation steps in bf16, from maps of MobileNetV2's late cut drawn at random,
before the embedded language model, or before `--language`. What is timed is the steps alone, after one that warms up.
Peak memory is what the device gave to tensors, on a CPU the process's largest size. Prints a row a device and task,
and adds it to `results/gpu.json` and `.md`, where rows of several machines stand beside each other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from seepage import cut, registry
from seepage import load as load_victim
from seepage.attacks.caprecover.language import load as load_language
from seepage.attacks.caprecover.model import CapRecoverModel, ModelConfig, configured
from seepage.attacks.caprecover.qformer import QFormerConfig
from seepage.priors.dead_leaves import dead_leaves
from seepage.types import Knowledge

RESULTS = Path(__file__).parent / "results"
AT_ONCE = {"inversion": {"cpu": 4, "cuda": 256}, "captions": {"cpu": 16, "cuda": 128}}
WORDS = "a brown dog runs through the green grass with a red ball"


@dataclass(frozen=True)
class Row:
    """One task on one device."""

    task: str
    device: str
    machine: str
    torch: str
    steps: int
    at_once: int
    seconds: float
    peak_mib: float

    @property
    def rate(self) -> float:
        """Images times steps, over steps and seconds: how many images take all the steps in a second."""
        return self.at_once / self.seconds


def inversion(device: torch.device, at_once: int, steps: int) -> Callable[[], object]:
    """Return what recovers so many pictures by gradient descent."""
    split = cut(load_victim("torchvision/resnet18@random:0", device=str(device)), "layer1")
    pictures = dead_leaves(at_once, split.image_shape, torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        leak = split.leak(pictures)
    attack = registry.build("attack", f"rmle:steps={steps}")
    recoverer = attack.fit(Knowledge(split.image_shape, prefix=split.prefix), torch.Generator().manual_seed(0))
    draws = [torch.Generator().manual_seed(row) for row in range(at_once)]
    return lambda: recoverer.recover(leak, draws)


def captions(device: torch.device, at_once: int, steps: int, name: str) -> Callable[[], object]:
    """Return what makes so many steps of learning to speak."""
    language = load_language(name, device, torch.bfloat16)
    config = configured(ModelConfig(QFormerConfig().sized()), language)
    model = CapRecoverModel(config, {"late": (320, 7, 7)}).train().to(device)
    features = torch.randn(at_once, 320, 7, 7, device=device)
    tokens = language.tokens([WORDS] * at_once, config.most_tokens)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def run() -> None:
        for _ in range(steps):
            adam.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                loss = model.generation_loss("late", features, tokens, language)
            torch.autograd.backward(loss)
            adam.step()

    return run


def measure(task: str, name: str, steps: int, language: str) -> Row:
    """Warm up, then time a task."""
    device, at_once = torch.device(name), AT_ONCE[task][name]

    def build(count: int) -> Callable[[], object]:
        if task == "inversion":
            return inversion(device, at_once, count)
        return captions(device, at_once, count, language)

    build(1)()
    run = build(steps)
    if name == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    run()
    if name == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peak = torch.cuda.max_memory_allocated() / 2**20 if name == "cuda" else used
    cores = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    machine = torch.cuda.get_device_name() if name == "cuda" else cores
    return Row(task, name, machine, torch.__version__, steps, at_once, seconds, peak)


def write(rows: list[Row], path: Path) -> None:
    """Put rows among those on record and write both files."""
    known = [Row(**one) for one in json.loads(path.read_text())["rows"]] if path.exists() else []
    fresh = {(row.task, row.machine) for row in rows}
    known = sorted(
        [row for row in known if (row.task, row.machine) not in fresh] + rows, key=lambda row: (row.task, row.device)
    )
    stamp = f"`python benchmarks/gpu.py`, {datetime.now(UTC):%Y-%m-%d}."
    path.write_text(json.dumps({"stamp": stamp, "rows": [asdict(row) for row in known]}, indent=1) + "\n")
    slowest = {row.task: row.rate for row in known if row.device == "cpu"}
    lines = [stamp, "", "| task | machine | steps | at once | images a second | times the CPU | peak memory |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in known:
        times = f"{row.rate / slowest[row.task]:.1f}" if row.task in slowest else "–"
        lines.append(
            f"| {row.task} | {row.machine} | {row.steps} | {row.at_once} | {row.rate:.3g} | {times} | "
            f"{row.peak_mib:.0f} MiB |"
        )
    path.with_suffix(".md").write_text("\n".join([*lines, ""]))


def main(devices: list[str], steps: int, language: str, path: Path) -> None:
    """Measure both tasks on each device."""
    found = []
    for device in devices or ["cpu", *["cuda"] * torch.cuda.is_available()]:
        for task in AT_ONCE:
            row = measure(task, device, steps, language)
            print(f"{row.task} on {row.machine}: {row.rate:.3g} images a second, {row.peak_mib:.0f} MiB", flush=True)
            found.append(row)
    write(found, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", action="append", default=[], choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--language", default="smollm2")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "gpu.json")
    given = parser.parse_args()
    main(given.device, given.steps, given.language, given.output)
