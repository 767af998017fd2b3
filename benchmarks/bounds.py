"""Bounds: how long they take at 224 px, and how near an attacker who knows the noise comes to them.

    SEEPAGE_DATA=... python benchmarks/bounds.py [--part seconds|attack]... [--pictures 8]

`seconds`: processor time at MobileNetV2's default cuts, 224 px, under Gaussian noise of a tenth of the features'
spread, with the budgets that `standard` effort has. `attack`: the pre-activation ResNet-20 at the end of its first
stage, which lets a picture through whole, under Gaussian noise over two decades. The attacker knows noise and prior
and takes the likeliest picture, by Levenberg-Marquardt from grey and, where that fails for all to see, from other
starts: on pictures drawn from the bound's own prior, and on CIFAR-10 test files. Beside the bound stands its formula at
the pictures themselves. A mean's interval is that of its pictures. Writes `results/bounds.md` and `.json`, and
`docs/_static/bounds.svg`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import inversion
import seepage
from bound_chart import chart
from seepage import bounds, seeding, victims
from seepage.audit.bounds import BUDGETS
from seepage.audit.statistics import describe
from seepage.solvers import LevenbergMarquardt
from seepage.types import Noise, SplitModel

RESULTS = Path(__file__).parent / "results"
FIGURE = Path(__file__).parents[1] / "docs" / "_static" / "bounds.svg"
SHARES = (0.003, 0.01, 0.03, 0.1, 0.3)
ATTEMPTS, UNEXPLAINED = 6, 1.3
STANDARD = BUDGETS["standard"]
ATTACKED = "zoo/cifar_preact_resnet20", "layer1.2"


def likeliest(split: SplitModel, sent: Tensor, noise: Noise, *, inside: bool) -> Tensor:
    """Return the likeliest pictures behind what was sent, in [0, 1] where they are `inside`.

    A search that ends where the features are off by more than the noise explains has failed, and the attacker sees it:
    he begins anew at a picture drawn from the prior.
    """
    prior = bounds.NaturalPrior(split.image_shape)
    told = bounds.dfil(
        split.prefix, torch.full((1, *split.image_shape), 0.5), noise, seeding.generator(0, "metric")
    ).value

    def whiten(v: Tensor) -> Tensor:
        return prior.shrink(v.view(-1, *split.image_shape), told).flatten(1)

    def off(x: Tensor, y: Tensor) -> Tensor:
        return (split.prefix(x) - y) / noise.scale

    solver = LevenbergMarquardt(40, 60, preconditioner=whiten, gradient_tolerance=1e-9, first=10)
    low, high = (0.0, 1.0) if inside else (None, None)
    starts = seeding.generator(0, "attack", "starts")
    found = torch.full((len(sent), *split.image_shape), 0.5)
    lost = torch.ones(len(sent), dtype=torch.bool)
    for attempt in range(ATTEMPTS):
        if attempt:
            found[lost] = prior.draw(int(lost.sum()), starts)
        solution = solver.solve(off, found[lost], sent[lost], penalty=prior.surprise, lower=low, upper=high).x
        assert isinstance(solution, Tensor)
        found[lost] = solution
        with torch.no_grad():
            lost = off(found, sent).square().flatten(1).mean(1) > UNEXPLAINED
        if not lost.any():
            break
    return found


def attack(data: Path, count: int) -> list[dict[str, Any]]:
    """Return bound and attack, strength by strength."""
    split = seepage.cut(victims.load(ATTACKED[0]), ATTACKED[1])
    prior = bounds.NaturalPrior(split.image_shape)
    paths = sorted(path for path in Path(inversion.pictures(data)["cifar"]).rglob("*") if path.is_file())
    natural = torch.stack(
        [split.load(Image.open(path).convert("RGB")) for path in paths[:: len(paths) // count][:count]]
    )
    drawn = prior.draw(count, seeding.generator(0, "metric", "drawn"))
    with torch.no_grad():
        spread = float(split.prefix(natural).std())
    rows = []
    for share in SHARES:
        noise = Noise("gaussian", share * spread)
        draws = seeding.generator(0, "metric", str(share))
        bound = bounds.van_trees(split.prefix, noise, prior, draws, probes=16, steps=48, draws=4)
        row: dict[str, Any] = {"noise over spread": share, "deviation": noise.scale, "bound": asdict(bound)}
        for name, pictures in (("drawn", drawn), ("natural", natural)):
            with torch.no_grad():
                features = split.prefix(pictures)
            sent = features + noise.scale * torch.randn(
                features.shape, generator=seeding.generator(0, "defense", name, str(share))
            )
            recovered = likeliest(split, sent, noise, inside=name == "natural")
            errors = (recovered - pictures).square().flatten(1).mean(1).tolist()
            local = [
                bounds.at_picture(split.prefix, picture[None], noise, prior, draws, probes=16, steps=48).value
                for picture in pictures[:4]
            ]
            row[name] = {"mse": errors, "at the pictures": sum(local) / len(local)}
        rows.append(row)
        print(attack_line(row), flush=True)
    return rows


def attack_line(row: dict[str, Any]) -> str:
    """Return one strength's line of the table."""
    bound = row["bound"]
    parts = [f"{row['noise over spread']:g}", f"{bound['value']:.2e} [{bound['low']:.2e}, {bound['high']:.2e}]"]
    for name in ("drawn", "natural"):
        stats, local = describe(row[name]["mse"], higher_leaks=False), row[name]["at the pictures"]
        parts.append(f"{stats.mean:.2e} [{stats.ci_low:.2e}, {stats.ci_high:.2e}]")
        parts += [f"{stats.mean / bound['low']:.2f}", f"{stats.mean / local:.2f}"]
    return f"| {' | '.join(parts)} |"


def seconds(data: Path, count: int) -> list[dict[str, Any]]:
    """Return what each number takes at 224 px, cut by cut."""
    victim = victims.load("zoo/mobilenet_v2")
    paths = sorted(path for path in Path(inversion.pictures(data)["photographs"]).rglob("*") if path.is_file())
    rows = []
    for layer in victim.defaults or ():
        split = seepage.cut(victim, layer)
        for path in paths[:count]:
            picture = split.load(Image.open(path).convert("RGB"))[None]
            with torch.no_grad():
                noise = Noise("gaussian", 0.1 * float(split.prefix(picture).std()))
            found, taken = looked_at(split, picture, noise)
            rows.append({"layer": layer, "seconds": taken, "found": found})
            print(seconds_line(rows[-1]), flush=True)
    return rows


def looked_at(split: SplitModel, picture: Tensor, noise: Noise) -> tuple[dict[str, Any], dict[str, float]]:
    """Return each number at one picture, and the seconds it took."""
    prior, prefix = bounds.NaturalPrior(split.image_shape), split.prefix
    spent = {"probes": STANDARD.probes, "steps": STANDARD.steps}
    lanczos = {"probes": STANDARD.spectrum_probes, "steps": STANDARD.spectrum_steps}
    ways: dict[str, Callable[[torch.Generator], Any]] = {
        "dFIL": lambda draws: bounds.dfil(prefix, picture, noise, draws, probes=STANDARD.probes),
        "spectrum": lambda draws: bounds.spectrum(prefix, picture, draws, **lanczos),
        "at the picture": lambda draws: bounds.at_picture(prefix, picture, noise, prior, draws, **spent),
        "bound": lambda draws: bounds.van_trees(prefix, noise, prior, draws, draws=STANDARD.draws, **spent),
    }
    found, taken = {}, {}
    for name, compute in ways.items():
        began = time.process_time()
        found[name] = asdict(compute(seeding.generator(0, "metric", split.layer)))
        taken[name] = time.process_time() - began
    return found, taken


def seconds_line(row: dict[str, Any]) -> str:
    """Return one picture's line of the table."""
    found, taken = row["found"], row["seconds"]
    rank, bound = found["spectrum"]["rank"], found["bound"]
    parts = [
        row["layer"],
        f"{found['dFIL']['value']:.3g} [{found['dFIL']['low']:.3g}, {found['dFIL']['high']:.3g}]",
        f"{rank['low']:,.0f} to {rank['high']:,.0f} of {found['spectrum']['inputs']:,}",
        f"{bound['value']:.2e} [{bound['low']:.2e}, {bound['high']:.2e}]",
        f"{found['at the picture']['value']:.2e}",
        *(f"{taken[name]:.0f}" for name in ("dFIL", "spectrum", "at the picture", "bound")),
        f"{sum(taken.values()):.0f}",
    ]
    return f"| {' | '.join(parts)} |"


HEADS = {
    "attack": (
        "noise over spread", "bound on MSE [95 %]", "drawn: MSE [95 %]", "over bound", "over the formula there",
        "CIFAR-10: MSE [95 %]", "over bound", "over the formula there",
    ),
    "seconds": (
        "cut", "dFIL [95 %]", "rank", "bound on MSE [95 %]", "formula at the picture", "s: dFIL", "s: spectrum",
        "s: formula", "s: bound (a cut)", "s: all",
    ),
}  # fmt: skip
PARTS = {"attack": (attack, attack_line), "seconds": (seconds, seconds_line)}


def main() -> None:
    """Run the parts asked for and write all that is on record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=tuple(PARTS), action="append")
    parser.add_argument("--pictures", type=int, default=8)
    asked = parser.parse_args()
    root = os.environ.get("SEEPAGE_DATA")
    if root is None:
        sys.exit("bounds: set SEEPAGE_DATA to the folder with cifar10_jpeg.zip and imagenet_samples_256.tar")
    torch.set_num_threads(1)
    path = RESULTS / "bounds.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in asked.part or PARTS:
        count = asked.pictures if name == "attack" else 1
        said = (
            f"`python benchmarks/bounds.py --part {name} --pictures {asked.pictures}`, {platform.machine()}, "
            f"one thread, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}."
        )
        known[name] = {"said": said, "rows": PARTS[name][0](Path(root), count)}
        path.write_text(json.dumps(known, indent=1) + "\n")
    lines = []
    for name in (name for name in PARTS if name in known):
        head = HEADS[name]
        lines += [known[name]["said"], "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        lines += [*map(PARTS[name][1], known[name]["rows"]), ""]
    (RESULTS / "bounds.md").write_text("\n".join(lines))
    if "attack" in known:
        FIGURE.write_text(chart(known["attack"]["rows"]))


if __name__ == "__main__":
    main()
