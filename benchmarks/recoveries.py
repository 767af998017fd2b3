"""What comes back at each depth, to look at: pictures for docs/inversion.md.

    python benchmarks/recoveries.py [--effort standard] [--pictures 2]

The first photographs that come with scikit-image and scikit-learn, at the input sizes of MobileNetV2 and of the
post-activation ResNet-20, and what `joint` and `rmle` make of their leaks at each depth, each picture with its PSNR.
Writes docs/_static/recoveries_mobilenet.png and recoveries_resnet.png, and the numbers to results/recoveries.json and
.md. These are two pictures a network, to look at; `benchmarks/inversion.py` measures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import seepage
from peel_figures import PICTURES, RESULTS, recovered
from seepage.types import Images

ATTACKS = ("joint", "rmle")
EDGE, GAP, LINE, MARGIN = 112, 6, 16, 46
INK, PAPER = (34, 34, 34), (255, 255, 255)


@dataclass(frozen=True)
class Shown:
    """A network, its depths, and the name of its sheet."""

    victim: str
    layers: tuple[str, ...]
    name: str


SHEETS = (
    Shown(
        "zoo/mobilenet_v2",
        ("features.1", "features.3", "features.6", "features.13", "features.17"),
        "recoveries_mobilenet.png",
    ),
    Shown("zoo/cifar_resnet20", ("relu", "layer1.2", "layer2.2", "layer3.2", "pool"), "recoveries_resnet.png"),
)


def psnr(found: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]) -> list[float]:
    """Return each picture's peak signal-to-noise ratio in dB."""
    error = (found - truth).square().flatten(1).mean(1)
    values: list[float] = (-10 * error.clamp_min(1e-16).log10()).tolist()
    return values


def sheet(
    truth: Float[Tensor, "b 3 h w"],
    found: dict[str, list[Float[Tensor, "b 3 h w"]]],
    layers: Sequence[str],
) -> Image.Image:
    """Return pictures in rows: each original, and beside it what every attack made of it, a depth a column."""
    columns, rows = 1 + len(layers), len(truth) * len(found)
    height = EDGE + LINE + GAP
    drawn = Image.new("RGB", (MARGIN + columns * (EDGE + GAP), LINE + GAP + rows * height), PAPER)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(12)
    for column, title in enumerate(("original", *layers)):
        pen.text((MARGIN + column * (EDGE + GAP) + EDGE / 2, 2), title, INK, font, anchor="ma")
    for number, picture in enumerate(truth):
        for place, (attack, depths) in enumerate(found.items()):
            top = LINE + GAP + (number * len(found) + place) * height
            pen.text((2, top + EDGE / 2), attack, INK, font, anchor="lm")
            for column, one in enumerate((picture, *(images[number] for images in depths))):
                left = MARGIN + column * (EDGE + GAP)
                drawn.paste(_enlarged(one), (left, top))
                if column:
                    said = f"{psnr(one[None], picture[None])[0]:.1f} dB"
                    pen.text((left + EDGE / 2, top + EDGE + 2), said, INK, font, anchor="ma")
    return drawn


def _enlarged(picture: Float[Tensor, "3 h w"]) -> Image.Image:
    pixels = (255 * picture.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    small = picture.shape[-1] < EDGE
    return Image.fromarray(pixels).resize((EDGE, EDGE), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def draw(shown: Shown, effort: str, count: int) -> dict[str, dict[str, list[float]]]:
    """Draw one network's sheet and return the PSNR of each picture, by attack and depth."""
    victim = seepage.load(shown.victim)
    splits = [seepage.cut(victim, layer) for layer in shown.layers]
    truth = torch.stack([splits[0].load(entry.path) for entry in seepage.open_source().entries[:count]])
    found: dict[str, list[Tensor]] = {}
    figures: dict[str, dict[str, list[float]]] = {}
    for attack in ATTACKS:
        for split in splits:
            value = recovered(split, attack, effort, truth).value
            assert isinstance(value, Images)
            found.setdefault(attack, []).append(value.images)
            figures.setdefault(attack, {})[split.layer] = psnr(value.images, truth)
            print(f"{victim.name}, {split.layer}, {attack}: {figures[attack][split.layer]}", flush=True)
    # In 256 colours: noise in more of them does not compress.
    sheet(truth, found, shown.layers).quantize(256).save(PICTURES / shown.name, optimize=True)
    return figures


def main(effort: str, count: int) -> None:
    """Draw the sheets and write their numbers."""
    figures = {shown.victim: draw(shown, effort, count) for shown in SHEETS}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    command = f"python benchmarks/recoveries.py --effort {effort} --pictures {count}"
    stamp = f"`{command}`, {machine}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}."
    (RESULTS / "recoveries.json").write_text(json.dumps({"stamp": stamp, "psnr": figures}, indent=1) + "\n")
    lines = [stamp, "", "| victim | layer | attack | PSNR of each picture |", "|---|---|---|---|"]
    for victim, attacks in figures.items():
        for attack, layers in attacks.items():
            for layer, values in layers.items():
                lines.append(f"| {victim} | {layer} | {attack} | {', '.join(f'{one:.1f}' for one in values)} |")
    (RESULTS / "recoveries.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effort", choices=("quick", "standard", "full"), default="standard")
    parser.add_argument("--pictures", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.effort, arguments.pictures)
