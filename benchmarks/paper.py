"""CapRecover's published cells: what the paper prints, what is measured here with its own models and data.

    python benchmarks/paper.py --data DIR [--preset NAME]... [--steps N] [--limit N] [--device cuda] [--random]

A cell is a preset: a victim, a cut, training and test pictures, BLIP-2's Q-Former and language model, batch, rate,
epochs and beams as the paper and its README give them. DIR is where the data sets lie in the layouts they are published
in, one folder a set (`coco`, `cifar10`, `tiny_imagenet`, `imagenet`) or all in one. What is absent is named and its
cell not run; the others run through the store, so that a kill loses nothing. `--random` takes the victims with random
weights: that shows that a cell runs, and its scores are none of the paper's. Ours is of BLEU the corpus' value, of
others the mean over captions. Writes `results/paper.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from seepage import assets, data, victims
from seepage.attacks.caprecover.presets import Preset, preset, presets
from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.schema import Stats
from seepage.studies.train import TrainRequest, train
from seepage.types import SeepageError

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("cell", "layer", "data", "metric", "published", "ours [95 %]", "n", "")


UNPUBLISHED = {"caption": ("bleu1", "cider", "cosine"), "words": ("top1",)}
"""What is measured where the paper prints a number that cannot be told."""


@dataclass(frozen=True)
class Result:
    """One published number and ours, with its interval; `absent` says why there is none."""

    cell: str
    victim: str
    layer: str
    data: str
    metric: str
    published: float | None
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    absent: str = ""


@dataclass(frozen=True)
class Options:
    """Where things lie and how much is spent."""

    root: Path
    steps: int | None = None
    limit: int | None = None
    device: str = "cpu"
    random: bool = False


def lacking(cell: Preset, options: Options) -> tuple[str, ...]:
    """Return what a cell needs and does not find: names of weights and data sets."""
    found = [cell.start] if cell.absent() is not None else []
    for split in (cell.train, cell.test):
        try:
            data.open_source(place(split, options.root))
        except SeepageError:
            found.append(split)
    try:
        victims.load(name_of(cell, options))
    except SeepageError:
        found.append(name_of(cell, options))
    return tuple(found)


def place(split: str, root: Path) -> str:
    """Return DATASET/SPLIT@PATH: its own folder below `root`, where there is one."""
    own = root / split.partition("/")[0]
    return f"{split}@{own if own.is_dir() else root}"


def name_of(cell: Preset, options: Options) -> str:
    """Return the victim's name."""
    return f"{cell.victim.partition('@')[0]}@random" if options.random else cell.victim


def told(options: Options) -> str:
    """Return what tells a training of these options from the whole one, for its file's name."""
    few = [f"{count}-{what}" for count, what in ((options.steps, "steps"), (options.limit, "pictures")) if count]
    return "".join(f"-{part}" for part in (["random"] if options.random else []) + few)


def run(cell: Preset, options: Options) -> list[Result]:
    """Train a cell's attack, audit its test pictures and return a line for each published number."""
    victim = name_of(cell, options)
    said = (cell.name, victim, cell.layer, cell.test)
    published = cell.published or dict.fromkeys(UNPUBLISHED[cell.read])
    missing = lacking(cell, options)
    if missing:
        absent = f"absent: {', '.join(missing)}"
        return [Result(*said, key, number, absent=absent) for key, number in published.items()]
    home = assets.home()
    request = TrainRequest(
        f"caprecover:read={cell.read}",
        victim,
        (cell.layer,),
        place(cell.train, options.root),
        home / "training" / "paper" / f"{cell.name}{told(options)}.safetensors",
        steps=options.steps,
        limit=options.limit,
        device=options.device,
        precision="bf16" if options.device.startswith("cuda") else "fp32",
        preset=cell.name,
    )
    if not request.output.exists():
        train(request)
    attack = f"caprecover:adapter={request.output},read={cell.read},decoding=beam,beams={cell.beams}"
    audit = Request(
        victim,
        place(cell.test, options.root),
        layers=(cell.layer,),
        attacks=(attack,),
        metrics=tuple(key if key != "cider" or options.limit is None else "cider:least=2" for key in published),
        limit=options.limit,
        device=options.device,
    )
    (found,) = run_audit(audit, home / "benchmarks" / "paper", listener=lambda event: None)
    if found.status != "done":
        return [Result(*said, key, number, absent=found.message) for key, number in published.items()]
    scores = {name.partition(":")[0]: stats for name, stats in found.summary.items()}
    lines = []
    for key, number in published.items():
        stats = scores.get(key)
        reason = found.unavailable.get(key, "no value") if stats is None else ""
        lines.append(Result(*said, key, number, *figures(stats), reason))
    return lines


def figures(stats: Stats | None) -> tuple[float | None, float | None, float | None, int]:
    """Return a value, the ends of its interval and n: of the corpus where that has an interval of its own."""
    if stats is None:
        return None, None, None, 0
    if stats.corpus_low is not None:
        return stats.corpus, stats.corpus_low, stats.corpus_high, stats.n
    return stats.mean, stats.ci_low, stats.ci_high, stats.n


def table(results: Sequence[Result]) -> list[str]:
    """Return the lines of the table, one for all numbers of a cell that was not run."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    seen = set()
    for one in results:
        if one.n == 0 and one.absent:
            if one.cell not in seen:
                own = [other for other in results if other.cell == one.cell]
                keys = ", ".join(other.metric for other in own)
                numbers = ", ".join(_number(other.published) for other in own)
                lines.append(
                    f"| {one.cell} | {one.layer} | {one.data} | {keys} | {numbers} | not run | – | {one.absent} |"
                )
            seen.add(one.cell)
            continue
        more = "the victim's weights are random: no result" if "@random" in one.victim else ""
        cells = (one.cell, one.layer, one.data, one.metric, _number(one.published))
        ours = f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]"
        lines.append(f"| {' | '.join((*cells, ours, str(one.n), more))} |")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def main(names: Sequence[str], options: Options, results: Path) -> list[Result]:
    """Run the cells, print the table and write it."""
    found: list[Result] = []
    for name in names or sorted(presets()):
        found += run(preset(name), options)
    print("\n".join(table(found)))
    results.mkdir(parents=True, exist_ok=True)
    (results / "paper.json").write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    (results / "paper.md").write_text("\n".join(["`python benchmarks/paper.py`", "", *table(found), ""]))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the data sets lie")
    parser.add_argument("--preset", action="append", default=[], help="one cell; all unless told")
    parser.add_argument("--steps", type=int, help="steps of training; the paper's epochs unless told")
    parser.add_argument("--limit", type=int, help="so many pictures of each split")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--random", action="store_true", help="victims with random weights")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="where the table goes")
    given = parser.parse_args()
    main(given.preset, Options(given.data, given.steps, given.limit, given.device, given.random), given.output)
