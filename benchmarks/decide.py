"""The decision, timed and confirmed, and the frontiers that it is made from.

    SEEPAGE_DATA=... python benchmarks/decide.py [--part advise|confirm|mobilenet|resnet]...

`advise`: `seepage advise` on MobileNetV2 with eight photographs, from an empty folder, with the clock on. `confirm`: an
audit of what it advised, on eight others, which must keep to the same limit on what leaks. `mobilenet` and `resnet`:
`seepage frontier` on photographs and on CIFAR-10. Writes `results/decide.md` and `.json`, and a figure a frontier,
`docs/_static/frontier_mobilenet.svg` and `frontier_resnet.svg`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import inversion
from seepage import assets
from svg import document, mark

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parents[1] / "docs" / "_static"
SEEPAGE = Path(sys.executable).with_name("seepage")
VICTIM, MOST, LEAST = "zoo/mobilenet_v2", 18.0, 0.9
EACH, KEPT = 8, 0.98
DEFENSES = ("--defense", "gaussian:sigma=0.1,0.3,1,relative=true", "--defense", "quantize:bits=8,4")
COLOURS = ("#1a6fb0", "#c05a12", "#5b7f2b", "#7b4fb5")
LEFT, TOP, WIDTH, HEIGHT, RIGHT = 56, 34, 430, 260, 190


def main(wanted: Sequence[str]) -> None:
    """Run the parts and write all that is on record."""
    if "SEEPAGE_DATA" not in os.environ:
        raise SystemExit("decide: set SEEPAGE_DATA to the folder with cifar10_jpeg.zip and imagenet_samples_256.tar")
    root, path = Path(os.environ["SEEPAGE_DATA"]), RESULTS / "decide.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in wanted or PARTS:
        known[name] = {"said": _stamp(name), **PARTS[name](root, known)}
        path.write_text(json.dumps(known, indent=1) + "\n")
        (RESULTS / "decide.md").write_text("\n".join(line for part in PARTS for line in _lines(part, known)) + "\n")


def advised(root: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Ask for advice on some photographs, with nothing on record."""
    study = assets.home() / "benchmarks" / "decide" / "advise"
    shutil.rmtree(study, ignore_errors=True)
    limits = ("--max-psnr", str(MOST), "--min-utility", str(LEAST), "--max-bytes", "200k")
    command = ("advise", VICTIM, str(_folder(root, 0)), *limits, *DEFENSES, "--attack", "joint", "-o", str(study))
    return {**_timed(command), "answer": json.loads((study / "advise.json").read_text())["answer"]}


def confirmed(root: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Audit what was advised on other photographs; it resumes where it was killed."""
    answer = known.get("advise", {}).get("answer")
    if answer is None:
        raise SystemExit("decide: nothing was advised that could be confirmed: run --part advise first")
    audit = assets.home() / "benchmarks" / "decide" / "audit"
    defended = [word for stage in answer["defenses"] for word in ("--defense", stage)]
    where = ("--layer", answer["layer"], *defended, "--wire", answer["wire"])
    gate = ("--attack", "joint", "--attack", "rmle", "--fail-if", f"psnr.worst_high>{MOST:g}", "-o", str(audit))
    found = _timed(("audit", VICTIM, str(_folder(root, 1)), *where, *gate))
    return {**found, "kept": found["code"] == 0, "leaked": _worst(audit)}


def mobilenet(root: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Lay MobileNetV2's cuts and defenses side by side, quickly: an attack in full takes minutes a picture."""
    layers = [word for block in (3, 6, 13, 17) for word in ("--layer", f"features.{block}")]
    few = ("--effort", "quick", "--limit", str(EACH // 2))
    return _frontier("mobilenet", (VICTIM, str(_folder(root, 0)), *few, *layers, *DEFENSES, "--attack", "joint"))


def resnet(root: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Lay ResNet-20's stages and defenses side by side."""
    images = f"cifar10/test@{root / 'cifar10_jpeg.zip'}"
    layers = [word for stage in (1, 2, 3) for word in ("--layer", f"layer{stage}.2")]
    return _frontier("resnet", ("zoo/cifar_resnet20", images, "--limit", "16", *layers, *DEFENSES, "--attack", "joint"))


PARTS = {"advise": advised, "confirm": confirmed, "mobilenet": mobilenet, "resnet": resnet}


def _frontier(name: str, words: Sequence[str]) -> dict[str, Any]:
    folder = assets.home() / "benchmarks" / "decide" / name
    found = _timed(("frontier", *words, "-o", str(folder)))
    record = json.loads((folder / "frontier.json").read_text())
    (FIGURES / f"frontier_{name}.svg").write_text(chart(record["points"]))
    return {**found, "rows": record["points"]}


def chart(rows: Sequence[dict[str, Any]]) -> str:
    """Return an SVG of candidates: what leaks to the best attack over the bytes sent, a cut a colour.

    Hollow is what costs more than a fiftieth of the answers.
    """
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    known = [row for row in rows if row["leakage"].get("psnr") and "agreement" in row["utility"]]
    most = 5 * (int(max(row["leakage"]["psnr"]["high"] for row in known) / 5) + 1)
    ends = [math.log10(end(row["bytes"] for row in known)) for end in (min, max)]
    start, span = ends[0] - 0.1, ends[1] - ends[0] + 0.2

    def at(size: float, psnr: float) -> tuple[float, float]:
        return LEFT + WIDTH * (math.log10(size) - start) / span, TOP + HEIGHT * (1 - max(psnr, 0.0) / most)

    parts = [f'<path class="rule" d="M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}"/>']
    for tick in range(0, most + 1, 5 if most <= 50 else 20):
        parts.append(f'<text x="{LEFT - 8}" y="{at(1, tick)[1] + 4:.1f}" text-anchor="end">{tick}</text>')
    for size in (times * 10**power for power in range(2, 8) for times in (1, 2, 5)):
        if 0 <= (math.log10(size) - start) / span <= 1:
            x, y = at(size, 0)[0], TOP + HEIGHT + 18
            parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{size / 1000:g}</text>')
    for row in known:
        leaked, colour = row["leakage"]["psnr"], COLOURS[layers.index(row["layer"]) % len(COLOURS)]
        points = (at(row["bytes"], leaked[end]) for end in ("mean", "low", "high"))
        parts.append(mark(colour, *points, hollow=row["utility"]["agreement"] < KEPT))
    for place, layer in enumerate(layers):
        x, y = LEFT + WIDTH + 24, TOP + 20 + 22 * place
        parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{COLOURS[place % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 10}" y="{y + 4}">{layer}</text>')
    x, y = LEFT + WIDTH + 24, TOP + 28 + 22 * len(layers)
    parts.append(f'<circle class="page" cx="{x}" cy="{y}" r="4" stroke="#888"/>')
    parts.append(f'<text x="{x + 10}" y="{y + 4}">under {100 * KEPT:.0f} % of answers</text>')
    parts.append(f'<text x="{LEFT - 40}" y="{TOP - 14}">PSNR of the best attack, dB</text>')
    middle, below = LEFT + WIDTH / 2, TOP + HEIGHT + 38
    parts.append(f'<text x="{middle:.0f}" y="{below}" text-anchor="middle">kB sent a picture</text>')
    said = "What leaks over the bytes that are sent, a cut a colour; the table beside has the numbers"
    return document(LEFT + WIDTH + RIGHT, TOP + HEIGHT + 48, said, parts)


def _folder(root: Path, place: int) -> Path:
    """Return a folder of some photographs, or of others."""
    files = sorted(path for path in Path(inversion.pictures(root)["photographs"]).rglob("*") if path.is_file())
    folder = assets.home() / "benchmarks" / "decide" / f"photographs-{place}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in files[place::2][:EACH]:
        shutil.copy(file, folder / file.name)
    return folder


def _timed(words: Sequence[str]) -> dict[str, Any]:
    """Run a command; return how it is called, how it ended and after how many seconds."""
    began = time.perf_counter()
    code = subprocess.run([str(SEEPAGE), *words], check=False).returncode
    return {"command": _said(words), "code": code, "seconds": time.perf_counter() - began}


def _worst(folder: Path) -> list[dict[str, Any]]:
    cells = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    cells = [cell for cell in cells if cell.get("status") == "done" and "psnr" in cell["summary"]]
    return [{**{key: cell["spec"][key] for key in ("attack", "attacker")}, **cell["summary"]["psnr"]} for cell in cells]


def _said(words: Sequence[str]) -> str:
    """The command without this machine's folders."""
    return " ".join(["seepage", *(re.sub(r"(?<![\w.])/\S*/", "", word) for word in words)])


def _stamp(name: str) -> str:
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"`python benchmarks/decide.py --part {name}`, {machine}, {datetime.now(UTC):%Y-%m-%d}."


def _lines(name: str, known: dict[str, Any]) -> list[str]:
    if name not in known:
        return []
    found = known[name]
    # The others go on where they were killed: their clock is that of the last run alone.
    took = f" after {found['seconds'] / 60:.1f} minutes" if name == "advise" else ""
    lines = [
        found["said"],
        "",
        f"`{found['command']}`: exit {found['code']}{took}.",
        "",
    ]
    if name == "advise":
        answer = found["answer"]
        if answer is None:
            return [*lines, "Nothing keeps to the limits.", ""]
        setting = " ".join(answer["defenses"]) or "no defense"
        return [*lines, f"Advised: {answer['layer']}, {setting}, {answer['wire']}.", ""]
    if name == "confirm":
        lines += ["| attack | attacker | n | worst decile, dB | mean, dB [95 %] |", "|---|---|---|---|---|"]
        for cell in found["leaked"]:
            shown = f"{cell['mean']:.1f} [{cell['ci_low']:.1f}, {cell['ci_high']:.1f}]"
            attack = cell["attack"].partition(":")[0]
            lines.append(f"| {attack} | {cell['attacker']} | {cell['n']} | {cell['worst']:.1f} | {shown} |")
        kept = "Every attack keeps" if found["kept"] else "Not every attack keeps"
        return [*lines, "", f"{kept} to {MOST:g} dB on these pictures.", ""]
    lines += [
        "| cut | defense | wire | PSNR, dB [95 %] | by | utility | bytes | frontier |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return [*lines, *map(_row, found["rows"]), ""]


def _row(row: dict[str, Any]) -> str:
    leaked = row["leakage"].get("psnr")
    shown = f"{leaked['mean']:.1f} [{leaked['low']:.1f}, {leaked['high']:.1f}]" if leaked else "–"
    by = f"{leaked['attack'].partition(':')[0]}, {leaked['attacker']}" if leaked else "–"
    utility = f"{100 * row['utility']['agreement']:.0f} %" if "agreement" in row["utility"] else "–"
    cells = [row["layer"], " ".join(row["defenses"]) or "none", row["wire"], shown, by, utility, f"{row['bytes']:,}"]
    return f"| {' | '.join([*cells, '●' if row['front'] else ''])} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=tuple(PARTS), action="append", default=[])
    main(parser.parse_args().part)
