"""What features say in words: CapRecover and what it must beat, trained on Flickr8k and measured on its test split.

    SEEPAGE_DATA=... python benchmarks/captions.py [--rows TEXT]... [--list] [--sheet FILE.html]

First trains what a row needs, then audits it with the 1,000 test photographs: a row is a cell of an audit, so that a
kill loses nothing and the same command goes on; the tables are written after every row. Training saw the train split,
settings were chosen on the dev split. Decoding is greedy but for the row that says beam. `nearest` answers with a
caption of the train split. `authors` is the scheme of the published code (one pooled token, padding in the loss, no
alignment) with as many steps of generation as the row beside it. `begun` went on from the adapter that ships for
MobileNetV2's last cut, by 300 steps of either stage; the row beside it had as many and began anew. A second table says
how captions read, beside the first human caption of each photograph. Writes `results/captions.md`, `.json` and
`docs/_static/captions_by_depth.svg`; `--sheet` also writes a page of twenty test photographs, drawn by seed, with what
was recovered of each; it shows the photographs, which are not ours to pass on. `results/captions_examples.md` has the
same twenty by name.
"""

from __future__ import annotations

import base64
import html
import json
import os
import platform
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import asked
from caption_chart import chart
from seepage import assets, data, registry
from seepage.attacks.caprecover import adapter
from seepage.attacks.process import Precision
from seepage.audit.plan import jobs
from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.audit.statistics import paired_difference
from seepage.audit.workbench import Workbench
from seepage.data.source import Entry
from seepage.metrics import fluency_of
from seepage.schema import Cell, Stats
from seepage.store import Store
from seepage.studies.train import TrainRequest, train
from victims import dinov2_small

RESULTS = Path(__file__).parent / "results"
FIGURE = Path(__file__).parents[1] / "docs" / "_static" / "captions_by_depth.svg"
METRICS = (
    *("bleu1", "bleu4", "rouge_l", "cider", "cosine", "nll", "nll_gap"),
    *("recall1", "recall5", "recall10"),
)
COLUMNS = (
    *("victim", "layer", "attack", "n", "CIDEr [95 %]", "ROUGE-L", "BLEU-1", "BLEU-4", "cosine", "R@10 of 500"),
    *("gap, nats a token", "strongest control's CIDEr", "seconds a picture"),
)
READS = ("victim", "layer", "attack", "words", "pairs repeated", "different words", "different pairs")
MOBILENET, CUTS = "zoo/mobilenet_v2", ("features.3", "features.13", "features.17")
SHOWN, SHEET_SEED = 20, 7
EFFORT = "standard"
AUTHORS = "authors' scheme"
SHEET_ROWS = ("caprecover", "nearest", "caprecover, one for three cuts")
Record = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """One adapter: `options` are caprecover's own parameters."""

    name: str
    victim: str
    layers: tuple[str, ...]
    options: str = ""
    steps: int | None = None
    seed: int = 0
    authors: bool = False
    effort: str = "full"
    storage: adapter.Storage = "fp16"
    precision: Precision = "bf16"
    begin: Path | None = None

    @property
    def file(self) -> Path:
        """Where the adapter lies."""
        return assets.home() / "training" / "captions" / f"{self.name}.safetensors"

    def request(self, root: Path) -> TrainRequest:
        """Return the training to run; `ship_adapter.py` ships what the first of them writes."""
        return TrainRequest(
            f"caprecover:{self.options}".rstrip(":"),
            self.victim,
            self.layers,
            f"flickr8k/train@{root}",
            self.file,
            select=f"flickr8k/dev@{root}",
            effort=self.effort,
            steps=self.steps,
            seed=self.seed,
            precision=self.precision,
            storage=self.storage,
            authors=self.authors,
            begin=self.begin,
            compiled=True,
        )


@dataclass(frozen=True)
class Row:
    """One attack at one cut."""

    label: str
    training: Training
    layer: str
    attack: str = "caprecover"
    options: str = ""
    public: bool = False

    @property
    def name(self) -> str:
        """What `--rows` calls it."""
        return f"{self.training.victim.partition('@')[0].partition(':')[0]}/{self.layer}/{self.label}"

    @property
    def text(self) -> str:
        """What an audit calls the attack."""
        return f"{self.attack}:{','.join(filter(None, (f'adapter={self.training.file}', self.options)))}"


def rows(root: Path) -> list[Row]:
    """Return the rows, in the order they are run."""
    steps = 5000
    late = [
        Training(f"mobilenet_v2{'-' * bool(seed)}{seed or ''}", MOBILENET, CUTS[-1:], "align=1200", steps, seed)
        for seed in (0, 1, 2)
    ]
    shipped = replace(late[0], storage="int8")
    found = [Row("caprecover", shipped, CUTS[-1]), Row("nearest", shipped, CUTS[-1], "nearest", public=True)]
    found += [Row("caprecover, run on", shipped, layer, options=f"through={CUTS[-1]}") for layer in CUTS[-2::-1]]
    found.append(Row("caprecover, beam 5", shipped, CUTS[-1], options="decoding=beam,beams=5"))
    found += [Row(f"caprecover, seed {one.seed}", one, CUTS[-1]) for one in late[1:]]
    authors = Training("mobilenet_v2-authors", MOBILENET, CUTS[-1:], steps=steps, authors=True)
    found.append(Row(AUTHORS, authors, CUTS[-1]))
    shared = Training("mobilenet_v2-three", MOBILENET, CUTS, steps=2400, storage="int8")
    found += [Row("caprecover, one for three cuts", shared, layer) for layer in reversed(CUTS)]
    shared_authors = Training("mobilenet_v2-three-authors", MOBILENET, CUTS, steps=2400, authors=True)
    found += [Row(f"{AUTHORS}, one for three cuts", shared_authors, layer) for layer in reversed(CUTS)]
    vit = dinov2_small(root)
    middle = Training("dinov2_small", vit, ("encoder.layer.5", "encoder.layer.7"), steps=1500)
    found += [Row("caprecover", middle, layer) for layer in reversed(middle.layers)]
    lite = Training("efficientnet_lite0", "zoo/efficientnet_lite0", ("blocks.6",), steps=1500)
    found.append(Row("caprecover", lite, "blocks.6"))
    for victim, layer, name in ((MOBILENET, CUTS[0], "mobilenet_v2"), (lite.victim, "blocks.6", "efficientnet_lite0")):
        short = Training(f"{name}-short", victim, (layer,), "align=300", steps=300)
        begun = replace(short, name=f"{name}-begun", begin=Path("zoo/mobilenet_v2"))
        found += [Row("caprecover, 600 steps", short, layer), Row("caprecover, 600 steps, begun", begun, layer)]
    return found


def three(everything: Sequence[Row]) -> Training:
    """Return the training of one adapter for all cuts."""
    return next(row.training for row in everything if len(row.training.layers) == len(CUTS))


def counterpart(row: Row, everything: Sequence[Row]) -> Row | None:
    """Return the row of our scheme beside one of the authors', at the same cut and of as many steps."""
    label = row.label.replace(AUTHORS, "caprecover")
    return next(
        (one for one in everything if row.training.authors and (one.label, one.layer) == (label, row.layer)), None
    )


def run(row: Row, root: Path, store: Path) -> Cell:
    """Train what the row needs and run its cell, or read both where they are on disk."""
    if not row.training.file.exists():
        print(f"training {row.training.name}", flush=True)
        train(row.training.request(root), _say)
    request = Request(
        row.training.victim,
        f"flickr8k/test@{root}",
        layers=(row.layer,),
        attacks=(row.text,),
        metrics=METRICS,
        public=f"flickr8k/train@{root}" if row.public else None,
        effort=EFFORT,
    )
    known = audited(request, store)
    if known is not None:
        return known
    (cell,) = run_audit(request, store, listener=lambda event: None)
    return cell


def audited(request: Request, store: Path) -> Cell | None:
    """Return the newest cell of a request that is done, also from before its attack had some parameter.

    What the attack lacked then is at its default now; all else that determines a cell is the same.
    """
    (job,) = jobs(Workbench(request))
    name, full = registry.parse(job.spec.attack)
    plain = registry.parse(registry.spec("attack", registry.build("attack", name)))[1]
    for cell in reversed(Store(store).cells().values()):
        own, given = registry.parse(cell.spec.attack)
        same = cell.spec.model_copy(update={"attack": job.spec.attack}) == job.spec
        if cell.status == "done" and same and own == name and full == plain | given:
            return cell
    return None


def _say(stage: str, done: float, what: str) -> None:
    number = what.partition(" of ")[0].rpartition(" ")[2]
    if number.isdigit() and int(number) % 100 == 0:
        print(f"{datetime.now(UTC):%H:%M:%S} {stage}: {what}", flush=True)


def record(row: Row, cell: Cell, human: Mapping[str, str]) -> Record:
    """Return what is kept of a row; `human` is the first caption of each photograph, by its file's hash."""
    said = [(one.recovered.caption or "", human[one.image_sha256]) for one in cell.samples if one.recovered is not None]
    fluency = [asdict(fluency_of(texts)) for texts in zip(*said, strict=True)]
    kept = cell.model_dump(mode="json", include={"status", "message", "summary", "controls", "ceilings", "cost"})
    return {
        "row": row.name,
        "victim": row.training.victim.partition("@")[0].partition(":")[0],
        "layer": row.layer,
        "label": row.label,
        "adapter": cell.spec.adapter_sha256,
        "n": len(cell.samples),
        "fluency": fluency,
        **kept,
    }


def step(cell: Cell, deeper: Cell) -> Record:
    """Return how much more CIDEr the next deeper cut has, or what else is named second, by a paired bootstrap."""
    found = [
        {one.image_sha256: one.metrics["cider"] for one in each.samples if "cider" in one.metrics}
        for each in (cell, deeper)
    ]
    both = sorted(found[0].keys() & found[1].keys())
    difference, low, high = paired_difference(*([one[key] for key in both] for one in found))
    return {"layer": deeper.spec.layer, "n": len(both), "difference": difference, "low": low, "high": high}


def note(fresh: Record, order: Sequence[str]) -> None:
    """Put a row among the results and write both files anew."""
    path = RESULTS / "captions.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    before: Record = next((one for one in known if one["row"] == fresh["row"]), {})
    if "deeper" in before and before["adapter"] == fresh["adapter"]:  # its deeper cut may not be among today's rows
        fresh = {"deeper": before["deeper"], **fresh}
    known = [one for one in known if one["row"] != fresh["row"] and one["row"] in order] + [fresh]
    known.sort(key=lambda one: order.index(one["row"]))
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    stamp = f"`python benchmarks/captions.py`, {machine}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}. "
    stamp += "Seconds were taken on one thread or two: an order of size."
    path.write_text(json.dumps({"stamp": stamp, "rows": known}, indent=1) + "\n")
    lines = [stamp, "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(line(one))} |" for one in known]
    human = next((one["ceilings"].get("human") for one in known if one.get("ceilings")), None)
    if human:
        said = ", ".join(f"{key} {human[key]['mean']:.3f}" for key in ("cider", "rouge_l", "bleu4") if key in human)
        lines += ["", f"One person against the others, the ceiling: {said}."]
    for one in known:
        if one.get("deeper"):
            change = one["deeper"]
            interval = f"{change['difference']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
            lines += ["", f"From {one['layer']} to {change['layer']}, {one['label']}: CIDEr {interval}, paired."]
        if one.get("ours"):
            change = one["ours"]
            interval = f"{change['difference']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
            lines += ["", f"Ours instead of {one['label']}, at {one['layer']}: CIDEr {interval}, paired."]
    lines += ["", f"| {' | '.join(READS)} |", "|" + "---|" * len(READS)]
    told = [one for one in known if one.get("fluency")]
    lines += [f"| {' | '.join(reads(one, 0))} |" for one in told]
    persons = {"victim": "", "layer": "", "label": "one person each"}
    lines += [f"| {' | '.join(reads({**one, **persons}, 1))} |" for one in told[:1]]
    (RESULTS / "captions.md").write_text("\n".join([*lines, ""]))
    FIGURE.write_text(chart([one for one in known if one["victim"] == MOBILENET], CUTS))


def reads(one: Record, which: int) -> list[str]:
    """Return how a row's captions read, or the human ones beside them."""
    found = one["fluency"][which]
    shares = [f"{100 * found[key]:.1f} %" for key in ("repetition", "distinct1", "distinct2")]
    return [one["victim"], one["layer"], one["label"], f"{found['words']:.1f}", *shares]


def line(one: Record) -> list[str]:
    """Return one row of the table."""
    head = [one["victim"], one["layer"], one["label"]]
    if one["status"] != "done":
        return [*head, f"{one['status']}: {one['message']}", *[""] * 9]
    scores = {key.partition(":")[0]: value for key, value in one["summary"].items()}
    controls = [value["cider"]["mean"] for value in one["controls"].values() if "cider" in value]

    def show(key: str, digits: int = 3) -> str:
        return f"{value(scores[key]):.{digits}f}" if key in scores else "–"

    cider = Stats(**scores["cider"])
    interval = f"{value(scores['cider']):.3f} [{cider.ci_low:.3f}, {cider.ci_high:.3f}]"
    # What the true captions lose where the features are another picture's.
    other = one["controls"].get("shuffled", {}).get("nll")
    gap = "–" if other is None else f"{other['mean'] - scores['nll']['mean']:.2f}"
    cost = one["cost"]
    seconds = (cost["fit_seconds"] + cost["seconds"]) / max(one["n"], 1)
    return [
        *head, str(one["n"]), interval, show("rouge_l"), show("bleu1"), show("bleu4"), show("cosine"),
        show("recall10"), gap, f"{max(controls):.3f}" if controls else "–", f"{seconds:.2f}",
    ]  # fmt: skip


def value(stats: Record) -> float:
    """Return a metric's value over the corpus, where it has one, else the mean."""
    return float(stats["mean"] if stats.get("corpus") is None else stats["corpus"])


def drawn(root: Path) -> list[Entry]:
    """Return twenty test photographs, drawn by seed."""
    source = data.open_source(f"flickr8k/test@{root}")
    return [source.entries[index] for index in sorted(random.Random(SHEET_SEED).sample(range(len(source)), SHOWN))]


def examples(cell: Cell, root: Path) -> None:
    """Write what the shipped adapter said of each of twenty photographs, named by their files, and how it scored."""
    known = {one.image_sha256: one for one in cell.samples}
    lines = ["| photograph | said of its leak | said by a person | ROUGE-L | cosine |", "|---|---|---|---|---|"]
    for entry in drawn(root):
        one = known[entry.file_sha256]
        said = one.recovered.caption if one.recovered is not None else f"{one.status}: {one.message}"
        scores = f"{one.metrics['rouge_l']:.2f} | {one.metrics['cosine']:.2f}"
        lines.append(f"| {entry.path.stem} | {said} | {entry.captions[0]} | {scores} |")
    (RESULTS / "captions_examples.md").write_text("\n".join([*lines, ""]))


def sheet(cells: dict[str, Cell], root: Path, path: Path) -> None:
    """Write the drawn photographs beside what was recovered of each at each cut."""
    parts = ["<!doctype html><meta charset=utf-8><title>recovered captions</title>",
             "<style>body{font:16px/1.4 sans-serif;max-width:70em;margin:2em auto}img{width:224px}",
             "td{vertical-align:top;padding:.5em 1em}</style><table>"]  # fmt: skip
    for entry in drawn(root):
        picture = base64.b64encode(entry.path.read_bytes()).decode()
        said = []
        for name, cell in cells.items():
            found = next((one for one in cell.samples if one.image_sha256 == entry.file_sha256), None)
            if found is not None and found.recovered is not None:
                said.append(f"<b>{html.escape(name)}</b> {html.escape(found.recovered.caption or '')}")
        own = f"<i>{html.escape(entry.captions[0])}</i>"
        parts.append(f"<tr><td><img src='data:image/jpeg;base64,{picture}'><td>{'<br>'.join([*said, own])}")
    path.write_text("\n".join(parts))


def main(wanted: Sequence[str], listing: bool, page: Path | None) -> None:
    """Run the rows that are missing and write the tables."""
    root = Path(os.environ.get("SEEPAGE_DATA", ""))
    if "SEEPAGE_DATA" not in os.environ:
        raise SystemExit("captions: set SEEPAGE_DATA to the folder with flickr8k_images.tar and flickr8k_text.tgz")
    everything = rows(root)
    chosen = [row for row in everything if not wanted or any(text in row.name for text in wanted)]
    if listing:
        print("\n".join(row.name for row in chosen))
        return
    entries = data.open_source(f"flickr8k/test@{root}").entries
    human = {entry.file_sha256: entry.captions[0] for entry in entries}
    store, order = assets.home() / "benchmarks" / "captions", [row.name for row in everything]
    shown: dict[str, Cell] = {}
    deeper: dict[str, Cell] = {}
    for row in chosen:
        cell = run(row, root, store)
        fresh = record(row, cell, human)
        if len(row.training.layers) > 1 and cell.status == "done":  # whose rows begin at the deepest cut
            before = deeper.get(row.training.name)
            fresh |= {} if before is None else {"deeper": step(cell, before)}
            deeper[row.training.name] = cell
        ours = counterpart(row, everything)
        if ours is not None and ours.training.file.exists() and cell.status == "done":
            other = run(ours, root, store)
            fresh |= {"ours": step(cell, other)} if other.status == "done" else {}
        note(fresh, order)
        if row.name == order[0] and cell.status == "done":
            examples(cell, root)
        if row.training.victim == MOBILENET and row.label in SHEET_ROWS:
            shown[f"{row.label}, {row.layer}:"] = cell
        print(f"{datetime.now(UTC):%H:%M:%S} {row.name}: {cell.status} {cell.message}", flush=True)
    if page is not None:
        sheet(shown, root, page)


if __name__ == "__main__":
    parser = asked.parser(__doc__)
    parser.add_argument("--sheet", type=Path, help="write a page of twenty photographs and their captions")
    given = parser.parse_args()
    main(given.rows, given.list, given.sheet)
