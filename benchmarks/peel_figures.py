"""PEEL's Figures 2 and 4 anew, on photographs that come with scikit-image and scikit-learn.

    python benchmarks/peel_figures.py [--effort quick] [--pictures 2] [--size 64]

Figure 2: what comes back of each stage of a random ResNet-18 by `rmle`, by `peel` and by `joint`, the original first.
Figure 4: a feature map of each stage, below it the one that `peel` recovered on its way back from the last, and below
that what the other reading makes of it, which is given the true output of the stage behind; all in grey, scaled by the
true map's range. Writes docs/_static/peel_figure2.png and peel_figure4.png, and what they show in numbers
to results/peel_figures.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import seepage
from peel_restart import PASSES, restart
from seepage.inverses import steps
from seepage.types import Images, Recovery

RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parents[1] / "docs" / "_static"
VICTIM = "torchvision/resnet18@random"
STAGES = ("layer1", "layer2", "layer3", "layer4")
ATTACKS = ("rmle", "peel", "joint")
EDGE, GAP = 64, 4


def recovered(split: seepage.SplitModel, name: str, effort: str, images: Float[Tensor, "b 3 h w"]) -> Recovery:
    """Return what an attack makes of the leak of `images`."""
    kind = type(seepage.build("attack", name))
    attack = seepage.build("attack", name, kind.efforts[effort])
    recoverer = attack.fit(seepage.Knowledge(split.image_shape, split.prefix), seepage.generator(0, "fit", name))
    leak = split.leak(images)
    return recoverer.recover(leak, seepage.generators(0, "attack", seepage.row_hashes(leak.features)))


def sheet(rows: list[list[Float[Tensor, "3 h w"]]]) -> Float[Tensor, "3 h w"]:
    """Return pictures beside and below each other, all of one size, white between them."""
    lines = []
    for row in rows:
        large = [F.interpolate(one[None], (EDGE, EDGE), mode="nearest")[0] for one in row]
        lines.append(torch.cat([F.pad(one, (GAP,) * 4, value=1.0) for one in large], 2))
    return torch.cat(lines, 1).clamp(0, 1)


def write(picture: Float[Tensor, "3 h w"], name: str) -> None:
    """Write a sheet in 256 colours: noise in more of them does not compress."""
    pixels = (255 * picture).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).quantize(256).save(PICTURES / name, optimize=True)


def second(load: Callable[[str], seepage.SplitModel], effort: str, images: Tensor) -> dict[str, list[float]]:
    """Draw Figure 2 and return the PSNR of each attack at each stage."""
    rows: list[list[Tensor]] = [[] for _ in range(len(images) * len(ATTACKS))]
    figures: dict[str, list[float]] = {}
    for place, name in enumerate(ATTACKS):
        for number, picture in enumerate(images):
            rows[number * len(ATTACKS) + place].append(picture)
        for stage in STAGES:
            value = recovered(load(stage), name, effort, images).value
            assert isinstance(value, Images)
            error = (value.images - images).square().flatten(1).mean(1)
            figures.setdefault(name, []).append(float((-10 * error.clamp_min(1e-16).log10()).mean()))
            for number, picture in enumerate(value.images):
                rows[number * len(ATTACKS) + place].append(picture)
            print(f"{name}, {stage}: {figures[name][-1]:.1f} dB", flush=True)
    write(sheet(rows), "peel_figure2.png")
    return figures


def fourth(load: Callable[[str], seepage.SplitModel], effort: str, images: Tensor) -> dict[str, dict[str, float]]:
    """Draw Figure 4 and return the relative errors behind each segment, of the chain from the last and of restarts."""
    split, given = load(STAGES[-1]), images[:1]
    trace = recovered(split, "peel", effort, given).trace
    walked = steps(split.prefix, torch.full_like(given, 0.5))
    told = restart(split, given, PASSES[effort]).inputs
    rows: dict[str, list[Tensor]] = {"true": [], "chain": [], "restart": []}
    errors: dict[str, dict[str, float]] = {"chain": {}, "restart": {}}
    # The trace runs from the leak to the picture, and ends before the picture.
    for step, behind, back in zip(walked[:-1], walked[1:], reversed(trace), strict=True):
        with torch.no_grad():
            given = step.segment.module(given)
        # The map that says most about this picture.
        chosen = int(given[0].flatten(1).var(1).argmax())
        low, high = given[0, chosen].min(), given[0, chosen].max()
        shown = {"true": given, "chain": back, "restart": told[behind.segment.name]}
        for name, features in shown.items():
            rows[name].append(((features[0, chosen] - low) / (high - low)).expand(3, -1, -1))
        for name in errors:
            errors[name][step.segment.name] = float((shown[name] - given).norm() / given.norm())
    write(sheet(list(rows.values())), "peel_figure4.png")
    return errors


def main(effort: str, count: int, size: int) -> None:
    """Draw both and write what they show."""
    victim = seepage.load(VICTIM, size=size)
    splits: dict[str, seepage.SplitModel] = {}

    def load(stage: str) -> seepage.SplitModel:
        return splits.setdefault(stage, seepage.cut(victim, stage))

    entries = seepage.open_source().entries[:count]
    images = torch.stack([load(STAGES[0]).load(entry.path) for entry in entries])
    PICTURES.mkdir(exist_ok=True)
    psnr, errors = second(load, effort, images), fourth(load, effort, images)
    command = f"python benchmarks/peel_figures.py --effort {effort} --pictures {count} --size {size}"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    stamp = f"`{command}`, {machine}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}."
    RESULTS.mkdir(exist_ok=True)
    record = {"stamp": stamp, "victim": VICTIM, "stages": STAGES, "psnr": psnr, "errors": errors, "n": len(images)}
    (RESULTS / "peel_figures.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [stamp, "", f"| PSNR | {' | '.join(STAGES)} |", "|" + "---|" * (len(STAGES) + 1)]
    lines += [f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |" for name, values in psnr.items()]
    lines += ["", f"| relative error | from {STAGES[-1]} alone (chain) | from every stage (restart) |", "|---|---|---|"]
    lines += [
        f"| after {name} | {error:.2f} | {errors['restart'][name]:.2g} |" for name, error in errors["chain"].items()
    ]
    (RESULTS / "peel_figures.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effort", choices=("quick", "standard", "full"), default="quick")
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    main(arguments.effort, arguments.pictures, arguments.size)
