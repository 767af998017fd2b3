"""Why the first block of a vision transformer is the hard one: its tokens, taken one by one.

    SEEPAGE_DATA=... python benchmarks/tokens.py [--pictures 2]

Of a random ViT-B/16, whose patch embedding loses nothing, the first block is undone in three steps from what it gave,
to float32: its second half token by token, its first half for all tokens, the patch embedding patch by patch. Each is
measured against what the network was given. The second half is solved twice: from its own output, and from what the
picture of a quick `joint` gives it. `right` are tokens that end within a hundredth of the truth; the condition is that
of their Jacobian there. Photographs were not tuned on. Writes `results/tokens.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blocks import picture
from seepage import registry, victims
from seepage.attacks.joint import Joint
from seepage.inverses import Target, serving, unknowns
from seepage.inverses.halves import Halves, halves
from seepage.inverses.step import Step, steps
from seepage.solvers import DenseMarquardt, NewtonKrylov
from seepage.types import Images, Knowledge
from seepage.victims.cut import cut

RESULTS = Path(__file__).parent / "results" / "tokens.json"
VICTIM, LAYER = "timm/vit_base_patch16_224@random", "blocks.0"
SOLVED, RIGHT = 1e-5, 1e-2
EVERY = 14
COLUMNS = (
    *("picture", "condition of a token: median, worst", "from the output: solved, right, of", "quick joint, PSNR"),
    *("from its picture: right", "error: median, worst", "first half's error", "of that, alike in all tokens"),
    *("PSNR, all directions", "PSNR, as `affine` chooses", "seconds"),
)


def main(pictures: int) -> None:
    """Measure each photograph and write both files."""
    if "SEEPAGE_DATA" not in os.environ:
        raise SystemExit("tokens: set SEEPAGE_DATA to the folder with imagenet_samples_256.tar")
    split = cut(victims.load(VICTIM), LAYER)
    grey = torch.full((1, *split.image_shape), 0.5)
    path = steps(split.prefix, grey)
    fitted = registry.build("attack", "joint", dict(Joint.efforts["quick"])).fit(
        Knowledge(split.image_shape, split.prefix), torch.Generator().manual_seed(0)
    )
    found = []
    for turn in range(pictures):
        image = split.load(picture(Path(os.environ["SEEPAGE_DATA"]), split.image_shape[-1], turn))[None]
        began = time.perf_counter()
        guess = fitted.recover(split.leak(image), [torch.Generator().manual_seed(0)]).value
        assert isinstance(guess, Images)
        found.append({"picture": turn, **measured(path, image, guess.images)})
        found[-1]["seconds"] = time.perf_counter() - began
        print(f"{datetime.now(UTC):%H:%M:%S} picture {turn}", flush=True)
        write(found)


def measured(path: tuple[Step, ...], image: Tensor, guess: Tensor) -> dict[str, Any]:
    """Return how far each half comes back, and the picture behind both."""
    *embedding, block = path
    like = torch.randn(1, *block.segment.in_shape, generator=torch.Generator().manual_seed(0))
    parts = halves(block.segment.module, like)
    assert parts is not None
    with torch.no_grad():
        x, near = (given(embedding, one)[-1] for one in (image, guess))
        y, between, begun = block.segment.module(x), parts.first(x), parts.first(near)
    # The class token is the same for every picture: known.
    own, u = y[0, 1:], between[0, 1:]
    size = own.norm(dim=1, keepdim=True)
    plain = NewtonKrylov(12, 60, 1e-6).solve(partial(missed, parts), own.clone(), (own, size))
    closer = DenseMarquardt(20).solve(partial(missed, parts), begun[0, 1:].clone(), (own, size))
    solved = plain.residual <= SOLVED
    off = relative(unknowns(closer), u)
    first = between.clone()
    first[0, 1:] = unknowns(closer)
    back = attention(parts, first, near)
    wrong = (back - x)[0, 1:]
    return {
        "condition": conditions(lambda rows: parts.second(rows[:, None])[:, 0], u[::EVERY]),
        "tokens": len(u),
        "solved": int(solved.sum()),
        "right": int((solved & (relative(unknowns(plain), u) <= RIGHT)).sum()),
        "guess": psnr(guess, image),
        "right from there": int((off <= RIGHT).sum()),
        "error": [float(off.median()), float(off.max())],
        "attention": float(wrong.norm() / x[0, 1:].norm()),
        "alike": float(len(wrong) ** 0.5 * wrong.mean(0).norm() / wrong.norm()),
        "all": psnr(undone(embedding, back, guess, None).clamp(0, 1), image),
        "chosen": psnr(undone(embedding, back, guess, (0.0, 1.0)), image),
    }


def given(path: list[Step], image: Tensor) -> list[Tensor]:
    """Return a picture and what each step makes of it."""
    found = [image]
    with torch.no_grad():
        for step in path:
            found.append(step.segment.module(found[-1]))
    return found


def missed(parts: Halves, u: Tensor, z: tuple[Tensor, Tensor]) -> Tensor:
    """Return by how much the second half of tokens misses what it gave."""
    off: Tensor = (parts.second(u[:, None])[:, 0] - z[0]) / z[1]
    return off


def attention(parts: Halves, wanted: Tensor, near: Tensor) -> Tensor:
    """Return what the first half was given, by Newton's method from what is near, the first token held."""

    def residual(rows: Tensor, z: tuple[Tensor, Tensor]) -> Tensor:
        off: Tensor = parts.first(torch.cat([near[:, :1], rows], 1))[:, 1:] - z[0]
        return off.flatten(1) / z[1]

    own = wanted[:, 1:]
    newton = NewtonKrylov(12, 60, 1e-6, passes=400)
    found = newton.solve(residual, near[:, 1:].clone(), (own, own.flatten(1).norm(dim=1, keepdim=True)))
    return torch.cat([near[:, :1], unknowns(found)], 1)


def undone(path: list[Step], tokens: Tensor, guess: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """Return the picture of tokens by the embedding's own rules, from a guess, between the bounds or without."""
    begun = given(path, guess)
    for step, start in zip(reversed(path), reversed(begun[:-1]), strict=True):
        low, high = (step.lower, step.upper) if bounds and step.first else (None, None)
        target = Target(tokens, step.start_at(start), low, high, None, True, True, step.known)
        tokens = unknowns(serving(step.segment)[1].invert(step.segment, target, 480))
    return tokens


def conditions(half: Callable[[Tensor], Tensor], rows: Tensor) -> list[float]:
    """Return the median and the worst condition of some tokens' Jacobians."""
    found = []
    for row in rows:
        jacobian: Tensor = torch.func.jacrev(lambda one: half(one[None])[0])(row)
        values = torch.linalg.svdvals(jacobian.double())
        found.append(float(values[0] / values[-1]))
    return [sorted(found)[len(found) // 2], max(found)]


def relative(found: Tensor, truth: Tensor) -> Tensor:
    """Return each row's error."""
    off: Tensor = (found - truth).norm(dim=1) / truth.norm(dim=1)
    return off


def psnr(found: Tensor, truth: Tensor) -> float:
    """Return decibels."""
    return -10 * math.log10(max(float((found - truth).square().mean()), 1e-20))


def write(found: list[dict[str, Any]]) -> None:
    """Write both files."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    stamp = f"`python benchmarks/tokens.py`, {machine}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}."
    lines = [stamp, "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for one in found:
        cells = (
            str(one["picture"]),
            "{:.0f}, {:.0f}".format(*one["condition"]),
            f"{one['solved']}, {one['right']}, {one['tokens']}",
            f"{one['guess']:.1f}",
            str(one["right from there"]),
            "{:.1e}, {:.1e}".format(*one["error"]),
            f"{one['attention']:.1e}",
            f"{100 * one['alike']:.0f} %",
            f"{one['all']:.1f}",
            f"{one['chosen']:.1f}",
            f"{one['seconds']:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2, help="how many photographs")
    main(parser.parse_args().pictures)
