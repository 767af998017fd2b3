"""Ship the adapters that captions.py trained and measured: the files go into the package, a card of each beside.

    SEEPAGE_DATA=... python benchmarks/ship_adapter.py

Copies two trainings of `captions.py`, unchanged, to `src/seepage/attacks/caprecover/adapters`: the one for the late cut
and the one for three. Writes each card from the file's own header and `results/captions.json`.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import captions
from seepage.attacks.caprecover import adapter

FOLDER = Path(adapter.__file__).parent / "adapters"


def curve(record: Path) -> list[str]:
    """Return, as a table, what the training asked on the way, and what it had learned since it last asked."""
    stage = json.loads(record.read_text())["stages"][-1]
    held, losses = stage["held"], stage["curve"]["loss"]
    lines = ["| step | training loss | held-out pictures | of another picture's features | of none |"]
    lines.append("|---|---|---|---|---|")
    before = 0
    for place, (step, own) in enumerate(held["held-out"]):
        since = losses[before:step]
        loss = f"{sum(since) / len(since):.2f}" if since else "–"
        others = " | ".join(f"{held[name][place][1]:.2f}" for name in ("shuffled", "no features"))
        lines.append(f"| {step} | {loss} | {own:.2f} | {others} |")
        before = step
    return lines


def card(path: Path, record: Path) -> str:
    """Return what there is to know of an adapter, as Markdown; `record` is what its training wrote."""
    header = adapter.read_header(path)
    measured = json.loads((captions.RESULTS / "captions.json").read_text())
    rows = [one for one in measured["rows"] if one["adapter"] == adapter.sha256(path)]
    network = header.config.qformer
    lines = [
        f"# caprecover:adapter=zoo/{path.stem}",
        "",
        f"Captions from leaks of `{header.victim}` (weights `{header.weights_sha256[:12]}`) at "
        + ", ".join(f"`{layer}`" for layer in header.layers)
        + f", and with `through={list(header.layers)[-1]}` at every cut before.",
        "",
        f"- Network: a Q-Former of {network.layers} blocks, {network.width} wide, with {network.queries} queries, and "
        f"one mapper a layer; `{header.config.language}` (`{header.language_sha256[:12]}`), frozen, fetched once and "
        "not part of this file, reads its prompt.",
        f"- Trained on: {header.trained_on}, seed {header.seed}, by `python benchmarks/captions.py`. Flickr8k (Hodosh, "
        "Young and Hockenmaier 2013) shows people and animals in everyday scenes; five captions a photograph.",
        f"- File: {path.stat().st_size / 1e6:.1f} MB, matrices in int8, SHA-256 `{adapter.sha256(path)}`.",
        f"- The constant caption that scores best on its training split: {header.caption!r}.",
        "- Meant for: measuring what a leak says of one's own pictures. It has seen few people, places and things, "
        "errs on others, and repeats the habits of its captions, of sex and age above all: what it says is evidence of "
        "leakage, no description to act on.",
        "",
        "Measured on the 1,000 photographs of Flickr8k's test split, greedy unless said, beside the strongest null "
        "control's CIDEr:",
        "",
        f"| {' | '.join(captions.COLUMNS[1:])} |",
        "|" + "---|" * len(captions.COLUMNS[1:]),
        *(f"| {' | '.join(captions.line(one)[1:])} |" for one in rows),
        "",
        "The second stage's training: nats a token of captions, the training loss with three tenths of the "
        "alignment's, the rest on 32 photographs of the dev split:",
        "",
        *curve(record),
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Copy the files that are there and write their cards."""
    rows = captions.rows(Path(os.environ["SEEPAGE_DATA"]))
    FOLDER.mkdir(exist_ok=True)
    for name, training in {"mobilenet_v2": rows[0].training, "mobilenet_v2_by_depth": captions.three(rows)}.items():
        if training.file.exists():
            target = FOLDER / f"{name}.safetensors"
            shutil.copyfile(training.file, target)
            target.with_suffix(".md").write_text(card(target, training.file.with_suffix(".training.json")))
            print(target)


if __name__ == "__main__":
    main()
