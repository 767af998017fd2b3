"""CapRecover's noise in every reading: who is stopped by it, who is not, and what the next stage loses.

    SEEPAGE_DATA=... python benchmarks/noise.py [--rows TEXT]... [--list]

U[0, s) is added to what is sent (`noise-shift:scale=s`; the paper has s = 1 and takes it away at the next stage). What
leaks depends on what the attacker makes of it alone: he was trained on clean features and takes noised ones for such
(`naive`), takes the noise's mean away first (`aware:estimate`), was trained on noised ones (`aware:retrained`), has the
law inside his inversion (`aware:likelihood`), or has the mean of several sends (`repeated`). Trained on noised features
with their mean taken away he is the same as without: probes and decoders standardise each channel by its mean. What the
receiver does changes the answers alone: he takes the noise away, or its mean, or leaves it.

Labels: probes on CIFAR-10, trained on its train files (MobileNetV2 sees them at 224 px) and asked about others of its
test files. Pixels: `joint`, and a decoder trained on CIFAR-10's train files or, for MobileNetV2, on Flickr8k's. Words,
on MobileNetV2: the adapter that ships for it, if one does, and the captions of the nearest of Flickr8k's train files,
whose leaks are noised where the adapter's were not. A row is a cell of an audit: a kill loses nothing, the same command
goes on, and the tables are written after every row. Writes `results/noise.md` and `.json`.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import torch

import asked
import inversion
from seepage import assets, data
from seepage.attacks.caprecover import adapter
from seepage.audit.assemble import utility
from seepage.audit.exposure import Exposure
from seepage.audit.plan import jobs
from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.audit.workbench import Workbench
from seepage.data.source import PictureSource
from seepage.defenses.shift import NoiseShift
from seepage.registry import register
from seepage.schema import Cell
from seepage.studies.train import TrainRequest, train
from seepage.types import Generators, Leak, Secret

RESULTS = Path(__file__).parent / "results"
SENDS = 8
READINGS = {
    "none": "no noise",
    "naive": "clean features, nothing removed",
    "aware:estimate": "clean features, mean removed",
    "aware:retrained": "noised features",
    "aware:likelihood": "the law inside the inversion",
    "repeated": f"clean features, {SENDS} sends averaged",
}
NAMED = {"naive": "nothing removed", "aware:estimate": "mean removed"}
"""The same of an attack that is not trained on features."""
READS = {"labels": ("top1", 100.0, " %"), "pixels": ("psnr", 1.0, " dB"), "words": ("cider", 1.0, "")}
METRICS = {"labels": ("top1",), "pixels": ("mse", "psnr"), "words": ("cider", "bleu1")}
NORMALISED = {"psnr": "mse"}
COLUMNS = (
    *(
        "victim",
        "cut",
        "attack",
        "noise",
        "attacker: trained on, or does",
        "n",
        "came back [95 %]",
        "strongest control",
    ),
    *("recovery [95 %]", "verdict"),
)
RECEIVERS = {
    "takes the noise away": "noise-shift:scale={scale}",
    "takes its mean away": "uniform:scale={half}",
    "leaves it": "noise-left:scale={scale}",
}
Record = dict[str, Any]


@register("defense", "noise-left")
@dataclass(frozen=True)
class NoiseLeft(NoiseShift):
    """The same noise, which nobody takes away."""

    holder: ClassVar[str] = "nobody"
    keeps_secret: ClassVar[bool] = False

    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, Secret | None]:  # type: ignore[override]
        """Add the noise; nothing is kept."""
        return super().protect(leak, generators)[0], None

    def restore(self, leak: Leak, secret: Secret | None) -> Leak:
        """Return the leak as it is."""
        return leak


@dataclass(frozen=True)
class Sizes:
    """How many pictures are learned from, and are asked about."""

    learned: int
    labels: int
    pixels: int
    words: int = 200
    photographs: int = 1000


@dataclass(frozen=True)
class Row:
    """One attacker before one cut: `scale` is the noise's width, 0 for none."""

    victim: str
    layer: str
    reads: str
    attack: str
    scale: float
    attacker: str

    @property
    def name(self) -> str:
        """What `--rows` calls it."""
        return f"{self.victim}/{self.layer}/{self.reads}/{self.attack}/U[0,{self.scale:g})/{self.attacker}"


VICTIMS = {"ResNet-20": "zoo/cifar_resnet20", "MobileNetV2": "zoo/mobilenet_v2"}
CUTS = {
    "ResNet-20": ("layer1.2", "layer2.2", "layer3.2"),
    "MobileNetV2": ("features.3", "features.13", "features.17"),
}
WITH_A_DECODER = ("features.3",)
SIZES = {"ResNet-20": Sizes(10000, 1000, 8), "MobileNetV2": Sizes(2000, 500, 4)}
EFFORT = {"ResNet-20": "standard", "MobileNetV2": "quick"}
"""What an inversion may spend; a full one of MobileNetV2 takes minutes a picture."""


def rows() -> list[Row]:
    """Return the rows in the order they are run, what is undefended before what is not."""
    taught = ("naive", "aware:estimate", "aware:retrained")
    found = []
    for victim, layers in CUTS.items():
        for layer in layers:
            for probe in ("probe:kind=linear", "probe:kind=conv"):
                found += _of(victim, layer, "labels", probe, {1.0: (*taught, "repeated")})
        for layer in layers:
            found += _of(victim, layer, "pixels", "joint", {1.0: ("naive", "aware:estimate", "aware:likelihood")})
            if victim == "ResNet-20":
                found += _of(victim, layer, "labels", "probe:kind=conv", {4.0: taught}, bare=False)
                found += _of(victim, layer, "pixels", "decoder:train=public", {1.0: taught})
            else:
                found += _of(victim, layer, "words", "caprecover", {1.0: ("naive", "aware:estimate")})
                found += _of(victim, layer, "words", "nearest", {1.0: taught})
                if layer in WITH_A_DECODER:
                    found += _of(victim, layer, "pixels", "decoder:train=public", {1.0: taught})
    return found


def _of(
    victim: str, layer: str, reads: str, attack: str, who: dict[float, tuple[str, ...]], *, bare: bool = True
) -> list[Row]:
    undefended = [Row(victim, layer, reads, attack, 0.0, "none")] if bare else []
    return undefended + [Row(victim, layer, reads, attack, scale, one) for scale, names in who.items() for one in names]


@register("dataset", "few")
def few(split: str, path: Path | None) -> PictureSource:
    """Open `few/N@PATH`: N of CIFAR-10's train files, spread over their labels."""
    return data.open_source(f"cifar10/train@{path}").limit(int(split))


@register("dataset", "photographs")
def photographs(split: str, path: Path | None) -> PictureSource:
    """Open `photographs/N@PATH`: the first N of Flickr8k's train files."""
    return data.open_source(f"flickr8k/train@{path}").limit(int(split))


def run(row: Row, root: Path, sizes: Sizes) -> Cell | str:
    """Run a row's cell, or read it where it is on record; a sentence where it cannot be."""
    files, images = root / "cifar10_jpeg.zip", f"cifar10/test@{root / 'cifar10_jpeg.zip'}"
    attack, public, limit = row.attack, None, sizes.labels
    if row.reads == "labels" and row.attacker != "aware:retrained":
        attack = f"{row.attack},adapter={_probe(row, files, sizes.learned)}"
    elif row.attacker == "aware:retrained" or row.attack.startswith(("decoder", "nearest")):
        small = row.victim == "ResNet-20" or row.reads == "labels"
        public = f"few/{sizes.learned}@{files}" if small else f"photographs/{sizes.photographs}@{root}"
    if row.reads == "pixels":
        limit = sizes.pixels
        if row.victim == "MobileNetV2":
            images = inversion.pictures(root)["photographs"]
    if row.reads == "words":
        limit, images = sizes.words, f"flickr8k/test@{root}"
    if row.attack == "caprecover":
        shipped = adapter.ready_for(VICTIMS[row.victim])
        if not shipped:
            return f"no adapter ships for {VICTIMS[row.victim]} yet"
        (attack,) = shipped[:1]
    request = Request(
        VICTIMS[row.victim],
        images,
        layers=(row.layer,),
        attacks=(attack,),
        defenses=(f"noise-shift:scale={row.scale:g}",) if row.scale else (),
        # Whoever is wanted alone is taken from among them: a naive one by himself is refused.
        attackers=("naive", "aware:estimate", row.attacker) if row.scale else (),
        sends=SENDS if row.attacker == "repeated" else 1,
        metrics=METRICS[row.reads],
        public=public,
        effort=EFFORT[row.victim] if row.attack == "joint" else "standard",
        limit=limit,
    )
    bench = Workbench(request)
    # Who learns from clean features learns once for both that he meets.
    alike = ("naive", "aware:estimate")
    wanted = alike if row.attacker in alike and public else (row.attacker,)
    grid = [job for job in jobs(bench) if job.spec.attacker in wanted]
    cells = run_audit(request, assets.home() / "benchmarks" / "noise", bench=bench, grid=grid)
    return next(cell for cell in cells if cell.spec.attacker == row.attacker)


def _probe(row: Row, files: Path, learned: int) -> Path:
    """Return the probe that was trained on clean features, once for all who use it."""
    plain = f"{row.victim}-{row.layer}-{row.attack}-{learned}".replace(":", "-").replace("=", "-")
    path = assets.home() / "training" / "noise" / f"{plain}.safetensors"
    if not path.exists():
        train(TrainRequest(row.attack, VICTIMS[row.victim], (row.layer,), f"few/{learned}@{files}", path))
    return path


def kept(victim: str, layer: str, scale: float, root: Path, sizes: Sizes) -> dict[str, float]:
    """Return how often the victim's answer stays as it was, by what the receiver does."""
    found = {}
    for receiver, text in RECEIVERS.items():
        defense = text.format(scale=f"{scale:g}", half=f"{scale / 2:g}")
        images = f"cifar10/test@{root / 'cifar10_jpeg.zip'}"
        bench = Workbench(Request(VICTIMS[victim], images, layers=(layer,), defenses=(defense,), limit=sizes.labels))
        found[receiver] = utility(Exposure(bench, bench.split(layer), "naive"))["agreement"]
    return found


def record(row: Row, cell: Cell | str) -> Record:
    """Return what of a row goes into the table."""
    metric, times, unit = READS[row.reads]
    found: Record = {
        "row": row.name,
        **asdict(row),
        "status": "absent",
        "message": cell if isinstance(cell, str) else "",
    }
    if isinstance(cell, str):
        return found
    found |= {"status": cell.status, "message": cell.message}
    if cell.status == "done":
        stats, share = cell.summary[metric], cell.summary[NORMALISED.get(metric, metric)]
        controls = {name: known[metric].mean for name, known in cell.controls.items() if metric in known}
        strongest = max(controls, key=lambda name: controls[name])
        found |= {
            "n": stats.n,
            "value": [times * number for number in (stats.mean, stats.ci_low, stats.ci_high)],
            "unit": unit,
            "control": [strongest, times * controls[strongest]],
            "recovery": [share.recovery, share.recovery_low, share.recovery_high],
        }
    return found


def verdict(one: Record, bare: Record | None) -> str:
    """Say on which side of half of what comes back without noise the interval of the recovery lies.

    Recovery is 0 at the strongest null control and 1 at the truth.
    """
    if bare is None or bare["status"] != "done" or None in (*one["recovery"], *bare["recovery"]):
        return "–"
    if bare["recovery"][1] <= 0:
        return "nothing comes back without noise"
    if one["attacker"] == "none":
        return ""
    half = bare["recovery"][0] / 2
    return "collapses" if one["recovery"][2] < half else "recovers" if one["recovery"][1] > half else "in between"


def line(one: Record, known: Sequence[Record]) -> str:
    """Return a row's line of the table."""
    noise = f"U[0, {one['scale']:g})" if one["scale"] else "none"
    does = READINGS[one["attacker"]]
    if one["attack"] == "joint":
        does = NAMED.get(one["attacker"], does)
    head = [one["victim"], one["layer"], one["attack"], noise, does]
    if one["status"] != "done":
        return _joined([*head, f"{one['status']}: {one['message']}", "", "", "", ""])
    same = ("victim", "layer", "reads", "attack")
    bare = next((r for r in known if r["attacker"] == "none" and all(r[key] == one[key] for key in same)), None)
    digits = 1 if one["reads"] != "words" else 3
    mean, low, high = (f"{number:.{digits}f}" for number in one["value"])
    control, reached = one["control"]
    back = ["–" if number is None else f"{number:.2f}" for number in one["recovery"]]
    return _joined(
        [
            *head,
            str(one["n"]),
            f"{mean}{one['unit']} [{low}, {high}]",
            f"{reached:.{digits}f}{one['unit']} ({control.replace('_', ' ')})",
            f"{back[0]} [{back[1]}, {back[2]}]",
            verdict(one, bare),
        ]
    )


def _joined(fields: Sequence[str]) -> str:
    return f"| {' | '.join(fields)} |"


def write(rows_known: Sequence[Record], receivers: Sequence[Record], results: Path) -> None:
    """Write both files anew."""
    results.mkdir(parents=True, exist_ok=True)
    (results / "noise.json").write_text(json.dumps({"rows": rows_known, "receivers": receivers}, indent=1) + "\n")
    machine = f"{platform.machine()}, one thread"
    stamp = f"`python benchmarks/noise.py`, {machine}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}."
    lines = [stamp, "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [line(one, rows_known) for one in rows_known]
    if receivers:
        names = list(RECEIVERS)
        lines += ["", "The victim's answers that stay as they were, by what the receiver does with the noise:", ""]
        lines += [f"| victim | cut | noise | n | {' | '.join(names)} |", "|" + "---|" * (4 + len(names))]
        for one in receivers:
            answers = " | ".join(f"{100 * one['agreement'][name]:.1f} %" for name in names)
            lines.append(f"| {one['victim']} | {one['layer']} | U[0, {one['scale']:g}) | {one['n']} | {answers} |")
    (results / "noise.md").write_text("\n".join([*lines, ""]))


def main(wanted: Sequence[str], *, listing: bool, sizes: Sizes | None = None, results: Path = RESULTS) -> None:
    """Run the rows that are wanted and not yet on record, and write the tables after each."""
    everything = rows()
    chosen = [row for row in everything if not wanted or any(text in row.name for text in wanted)]
    if listing:
        print("\n".join(row.name for row in chosen))
        return
    if "SEEPAGE_DATA" not in os.environ:
        raise SystemExit("noise: set SEEPAGE_DATA to the folder with cifar10_jpeg.zip")
    root = Path(os.environ["SEEPAGE_DATA"])
    torch.set_num_threads(1)
    path = results / "noise.json"
    known: dict[str, list[Record]] = json.loads(path.read_text()) if path.exists() else {"rows": [], "receivers": []}
    order = [row.name for row in everything]
    for row in chosen:
        own = sizes or SIZES[row.victim]
        fresh = record(row, run(row, root, own))
        known["rows"] = [one for one in known["rows"] if one["row"] != row.name and one["row"] in order] + [fresh]
        known["rows"].sort(key=lambda one: order.index(one["row"]))
        place = {"victim": row.victim, "layer": row.layer, "scale": row.scale, "n": own.labels}
        if row.scale and not any(all(one[key] == place[key] for key in place) for one in known["receivers"]):
            answers = kept(row.victim, row.layer, row.scale, root, own)
            known["receivers"] = [*known["receivers"], {**place, "agreement": answers}]
        write(known["rows"], known["receivers"], results)
        print(f"{datetime.now(UTC):%H:%M:%S} {line(fresh, known['rows'])}", flush=True)


if __name__ == "__main__":
    parser = asked.parser(__doc__)
    given = parser.parse_args()
    main(given.rows, listing=given.list)
