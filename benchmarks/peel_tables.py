"""PEEL beside every baseline: faces, chest X-rays, photographs and small pictures, at several depths.

    SEEPAGE_DATA=... python benchmarks/train_xray.py            # once: the victim of the X-ray rows
    SEEPAGE_DATA=... python benchmarks/train_face_judge.py      # once: the judge of the face rows
    SEEPAGE_DATA=... python benchmarks/peel_tables.py [--rows TEXT]... [--list] [--effort quick] [--limit N]
                     [--faces DIR --gallery DIR] [--xrays DIR] [--photographs DIR] [--generator faces=FILE]...

A row is a cell of an audit: a kill loses nothing, the same command goes on, and the tables are written after every row.
Without folders of yours the pictures are those of SEEPAGE_DATA: five people of AT&T/ORL whom a generator has not seen,
the test split of PneumoniaMNIST, ImageNet samples of the second half of the alphabet, test files of CIFAR-10. With
them the same rows are made of CelebA, ChestX-ray14 or ImageNet: a folder a person for faces, any folder otherwise.
Identities are judged among twenty people by a second face network, EfficientNet-lite0 adapted to faces on twenty other
people of ORL. Leave-one-out among the twenty its rank-1 is 100.0 % and that of MobileFaceNet, the victim, 99.5 %; with
one gallery picture a person 92.8 % and 93.4 % (results/face_judge.md; under the table too, beside what the originals
score).
Attacks see one leak (`peel` is the chain); `restart` rows are no attack but the authors' scripts' reading, given the
leak of every stage. `gan` runs on faces and CIFAR-10 where --generator names weights that `train_generator.py` made of
such pictures, and as GMI does, for the class that the leak names (`gan:objective=class`), where the leak is the scores
of classes. Seconds are a picture's, fitting included. Writes `results/peel_tables.md` and `.json`;
`peel_figures.py` draws what the paper draws.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import face_judge
import seepage
import train_xray
from peel_restart import PASSES, restart
from seepage import assets
from seepage.audit.statistics import describe
from seepage.data.archive import folder_of
from seepage.pictures import write_png
from seepage.schema import Cell

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BASELINES = ("joint", "rmle", "deep-image-prior", "divide", "decoder")
PEELS = ("peel", "peel:form=constrained", "peel:form=penalty")
# As many steps a block as the paper takes.
LONG = ("peel:form=constrained,passes=1000", "peel:form=penalty,passes=1000")
GANS = ("gan", "gan:objective=class")
RESTART = "restart (the leak of every stage)"
# Whoever runs two at a time says so: --beside.
BESIDE = False
FACE_METRICS = ("knn_distance", "rank1")
RESTARTED = (
    "A `restart` is no attack: it is given the true output of every stage, as the authors' scripts are, and shows how "
    "well the first stage is inverted, whatever layer stands beside it. `gan` searches a generator of such pictures, "
    "and there is none of X-rays or of photographs."
)


@dataclass(frozen=True)
class Group:
    """One victim on one kind of picture."""

    name: str
    pictures: str
    victim: str
    layers: tuple[str, ...]
    limit: int
    size: int | None = None
    generator: str | None = None
    long: bool = False
    scores: str | None = None

    def attacks(self, layer: str) -> tuple[str, ...]:
        """Return what is run at a layer: at the scores of classes whoever says something of these, and GMI's kind."""
        if layer == self.scores:
            return ("joint", "rmle", *GANS)
        return (*PEELS, *(LONG if self.long else ()), *BASELINES, GANS[0], RESTART)


def groups(data: Path) -> list[Group]:
    """Return the groups, in the order they are run."""
    faces = data / "weights" / "mobilefacenet_apache2.pt"
    xray = f"module/{HERE}/train_xray.py:network@{train_xray.weights()}"
    return [
        Group(
            "CIFAR-10, ResNet-20", "cifar", "zoo/cifar_resnet20", ("layer1.2", "layer2.2", "layer3.2", "linear"), 8,
            generator="cifar10", long=True, scores="linear",
        ),
        Group("chest X-rays, ResNet-8", "xrays", xray, ("layer1.0", "layer2.0", "layer3.0"), 8, long=True),
        Group(
            "faces, MobileFaceNet", "faces", f"zoo/mobilefacenet@{faces}", ("features.1", "features.7"), 5,
            generator="faces",
        ),
        Group("ImageNet, MobileNetV2", "photographs", "zoo/mobilenet_v2", ("features.1", "features.6"), 2, size=96),
        Group(
            "ImageNet, ResNet-18, random", "photographs", "torchvision/resnet18@random",
            ("layer1", "layer2", "layer4"), 4, size=64,
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One line of the table: means with their 95 % intervals over `n` pictures; `judge` says who knows the people."""

    row: str
    group: str
    layer: str
    attack: str
    effort: str
    auxiliary: str
    n: int
    status: str
    message: str
    figures: dict[str, tuple[float, float, float]]
    control_mse: float | None
    ceilings: dict[str, float]
    seconds: float
    judge: str = ""


def folders(data: Path, own: dict[str, Path | None]) -> dict[str, str]:
    """Return the folder of each kind of picture: the user's, else one made of the research data in the cache."""
    found = {name: str(path) for name, path in own.items() if path is not None}
    made = {"cifar": _cifar, "photographs": _photographs, "xrays": _xrays, "faces": _faces, "gallery": _gallery}
    for name, make in made.items():
        # Whose gallery would the research data's be beside faces of the user's own?
        if name not in found and not (name == "gallery" and own["faces"] is not None):
            found[name] = str(make(data))
    return found


def audited(group: Group, layer: str, attack: str, places: dict[str, str], effort: str, limit: int | None) -> Record:
    """Run one attack's cell, or read it where it is on record."""
    people = group.pictures == "faces" and "gallery" in places
    request = seepage.Request(
        group.victim,
        places[group.pictures],
        layers=(layer,),
        attacks=(attack,),
        metrics=("mse", "psnr", *(FACE_METRICS if people else ())),
        judges=(f"face={face_judge.name()}",) if people else (),
        gallery=places["gallery"] if people else None,
        effort=effort,
        size=group.size,
        limit=limit or group.limit,
    )
    (cell,) = seepage.run_audit(request, assets.home() / "benchmarks" / "peel_tables", listener=lambda event: None)
    return _record(group, layer, attack, effort, cell)


def restarted(group: Group, layer: str, places: dict[str, str], effort: str, limit: int | None) -> Record:
    """Invert every stage from its true output, and score the picture."""
    victim = seepage.load(group.victim, size=group.size)
    split = seepage.cut(victim, layer)
    entries = seepage.open_source(places[group.pictures]).limit(limit or group.limit).entries
    images = torch.stack([split.load(entry.path) for entry in entries])
    began = time.perf_counter()
    found = restart(split, images, PASSES[effort]).images
    seconds = (time.perf_counter() - began) / len(images)
    error = (found - images).square().flatten(1).mean(1)
    figures = {"mse": _interval(error), "psnr": _interval(-10 * error.clamp_min(1e-16).log10())}
    return Record(
        f"{group.name}/{layer}", group.name, layer, RESTART, effort, "every leak",
        len(images), "done", "", figures, None, {}, seconds,
    )  # fmt: skip


def note(record: Record, order: Sequence[tuple[str, str]], results: Path) -> None:
    """Put a record among the results and write both tables anew."""
    path = results / "peel_tables.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    key = (record.row, record.attack, record.effort)
    known = [one for one in known if (one["row"], one["attack"], one["effort"]) != key] + [asdict(record)]
    known.sort(key=lambda one: order.index((one["row"], one["attack"])))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    stamp = f"`{command(sys.argv[1:])}`, {machine}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}."
    if BESIDE:
        stamp += " Seconds were taken while other runs shared the cores: upper bounds."
    results.mkdir(exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"stamp": stamp, "rows": known}, indent=1) + "\n")
    fresh.replace(path)
    write(stamp, known, results)


def command(words: Sequence[str]) -> str:
    """Return the command as the tables name it: which rows were asked for last says nothing of the others."""
    kept: list[str] = []
    given = iter(words)
    for word in given:
        if word == "--rows":
            next(given, None)
        elif word != "--beside" and not word.startswith("--rows="):
            kept.append(re.sub(r"[^= ]*/", "", word))  # of files and folders the names alone
    return " ".join(["python benchmarks/peel_tables.py", *kept])


def write(stamp: str, known: list[dict[str, Any]], results: Path) -> None:
    """Write the tables of records."""
    lines = [stamp, *(_table(name, known) for name in dict.fromkeys(one["group"] for one in known)), RESTARTED]
    (results / "peel_tables.md").write_text("\n\n".join(lines) + "\n")


def _table(name: str, known: list[dict[str, Any]]) -> str:
    mine = [one for one in known if one["group"] == name]
    faces = any("knn_distance" in one["figures"] for one in mine)
    columns = ["layer", "attack", "effort", "auxiliary", "n", "MSE [95 %]", "control", "PSNR"]
    columns += ["KNN distance", "rank-1"] if faces else []
    lines = [f"**{name}**", "", f"| {' | '.join([*columns, 'seconds'])} |", "|" + "---|" * (len(columns) + 1)]
    for one in mine:
        cells = [one["layer"], one["attack"], one["effort"], one["auxiliary"], str(one["n"])]
        if one["status"] != "done":
            lines.append(f"| {' | '.join([*cells, one['status'] + ': ' + one['message']])} |")
            continue
        figures, control = one["figures"], one["control_mse"]
        mean, low, high = figures["mse"]
        cells += [f"{mean:.1e} [{low:.1e}, {high:.1e}]", "–" if control is None else f"{control:.1e}"]
        cells += [f"{figures['psnr'][0]:.1f}"]
        cells += [f"{figures[key][0]:.2f}" if key in figures else "–" for key in FACE_METRICS] if faces else []
        cells += [f"{one['seconds']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    ceilings = next((one["ceilings"] for one in mine if one["ceilings"]), None)
    if ceilings:
        said = ", ".join(f"{key.replace('_', ' ')} {value:.2f}" for key, value in ceilings.items())
        lines += ["", f"The judge on the originals themselves: {said}.{_both(RESULTS / 'face_judge.json')}"]
    return "\n".join(lines)


def _both(measured: Path) -> str:
    """Say how well the judge and the victim know people from their true pictures, where that has been measured."""
    if not measured.exists():
        return ""
    said = []
    for label, kinds in json.loads(measured.read_text())["networks"].items():
        rates = [f"{100 * kinds['clean'][key]['value']:.1f} %" for key in ("leave_one_out", "one_picture")]
        said.append(f"{label} {rates[0]} ({rates[1]})")
    return (
        " Rank-1 on true pictures of twenty people of ORL from whom the judge has not learned, leave-one-out (with one "
        f"gallery picture a person): {'; '.join(said)}."
    )


def _record(group: Group, layer: str, attack: str, effort: str, cell: Cell) -> Record:
    figures = {key: (stats.mean, stats.ci_low, stats.ci_high) for key, stats in cell.summary.items()}
    controls = [stats["mse"].mean for stats in cell.controls.values() if "mse" in stats]
    ceilings = cell.ceilings.get("original", {})
    spent = 0.0 if cell.cost is None else cell.cost.fit_seconds + cell.cost.seconds
    return Record(
        row=f"{group.name}/{layer}",
        group=group.name,
        layer=layer,
        attack=attack,
        effort=effort,
        auxiliary=cell.spec.auxiliary,
        n=len(cell.samples),
        status=cell.status,
        # A path of this machine is no part of a reason.
        message=cell.message.replace(str(HERE), "benchmarks"),
        figures=figures,
        control_mse=min(controls, default=None),
        ceilings={key: ceilings[key].mean for key in FACE_METRICS if key in ceilings},
        seconds=spent / max(len(cell.samples), 1),
        judge=cell.spec.judges["face"].name.partition("@")[0].rpartition("/")[2] if "face" in cell.spec.judges else "",
    )


def _interval(values: torch.Tensor) -> tuple[float, float, float]:
    stats = describe(values.tolist(), higher_leaks=False)
    return stats.mean, stats.ci_low, stats.ci_high


def _cifar(data: Path) -> Path:
    root = folder_of(data / "cifar10_jpeg.zip", "cifar10/test", "train/ and test/")
    return next(path for path in (root / "test", *root.rglob("test")) if path.is_dir())


def _photographs(data: Path) -> Path:
    root = folder_of(data / "imagenet_samples_256.tar", "imagenet/samples", "photographs")
    names = sorted(path for path in root.rglob("*") if path.is_file())
    half = names[len(names) // 2 :]
    return _chosen("photographs", [(path, path.name) for path in half[:: len(half) // 16][:16]])


def _xrays(data: Path) -> Path:
    images, labels = train_xray.read(data / train_xray.ARCHIVE, "test")
    place = assets.home() / "benchmarks" / "peel_xrays"
    place.mkdir(parents=True, exist_ok=True)
    # As many of either finding, in turn.
    order = torch.stack([(labels == finding).nonzero().flatten()[:32] for finding in (0, 1)], 1).flatten().tolist()
    for number, row in enumerate(order):
        target = place / f"{number:02d}_{'pneumonia' if labels[row] else 'normal'}.png"
        if not target.exists():
            write_png(images[row], target)
    return place


def _faces(data: Path) -> Path:
    root = folder_of(data / "orl_faces.tgz", "orl/all", "faces")
    names = [(person, number) for number in (6, 7, 8, 9, 10) for person in face_judge.TARGETS]
    found = {(path.parent.name, path.stem): path for path in root.rglob("*.pgm")}
    return _chosen("peel_faces", [(found[f"s{p}", str(n)], f"s{p}/{n}.pgm") for p, n in names], people=True)


def _gallery(data: Path) -> Path:
    root = folder_of(data / "orl_faces.tgz", "orl/all", "faces")
    names = [(person, number) for person in face_judge.JUDGED for number in range(1, 6)]
    found = {(path.parent.name, path.stem): path for path in root.rglob("*.pgm")}
    return _chosen("peel_gallery", [(found[f"s{p}", str(n)], f"s{p}/{n}.pgm") for p, n in names], people=True)


def _chosen(name: str, files: list[tuple[Path, str]], people: bool = False) -> Path:
    """Copy files under new names to a folder of the cache, with who is on them where they are people."""
    place = assets.home() / "benchmarks" / name
    for source, target in files:
        (place / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place / target)
    if people:
        lines = [json.dumps({"file_name": target, "identity": target.partition("/")[0]}) for _, target in files]
        (place / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return place


def _require_judge() -> None:
    file = face_judge.weights()
    if not file.is_file():
        raise SystemExit(f"face rows need their judge, {file}, which is not there: run benchmarks/train_face_judge.py")


def main(options: argparse.Namespace, data: Path) -> None:
    """Run the rows that are missing and write the tables."""
    everything = groups(data)
    made = dict(text.split("=", 1) for text in options.generator)
    order = [
        (f"{group.name}/{layer}", attack)
        for group in everything
        for layer in group.layers
        for attack in group.attacks(layer)
    ]
    wanted = [pair for pair in order if not options.rows or any(text in "/".join(pair) for text in options.rows)]
    if options.list:
        print("\n".join("/".join(pair) for pair in wanted))
        return
    given = {
        "faces": options.faces,
        "gallery": options.gallery,
        "xrays": options.xrays,
        "photographs": options.photographs,
    }
    places = folders(data, given)
    faces = {group.name for group in everything if group.pictures == "faces"}
    if "gallery" in places and any(row.partition("/")[0] in faces for row, _ in wanted):
        _require_judge()
    for group in everything:
        for layer in group.layers:
            for attack in group.attacks(layer):
                if (f"{group.name}/{layer}", attack) not in wanted:
                    continue
                if attack in GANS:
                    if group.generator not in made:
                        continue
                    os.environ["SEEPAGE_GENERATOR"] = made[group.generator]
                    own = attack.partition(":")[2]
                    named = ",".join(filter(None, (f"gan:generator=module/{HERE}/train_generator.py:trained", own)))
                    record = replace(audited(group, layer, named, places, options.effort, options.limit), attack=attack)
                elif attack == RESTART:
                    record = restarted(group, layer, places, options.effort, options.limit)
                else:
                    record = audited(group, layer, attack, places, options.effort, options.limit)
                note(record, order, options.output)
                print(f"{datetime.now(UTC):%H:%M:%S} {record.row}/{record.attack}: {record.status}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", action="append", default=[], help="run the rows whose name holds this text")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--effort", choices=sorted(PASSES), default="quick")
    parser.add_argument("--limit", type=int, help="pictures a row; each group has its own number")
    parser.add_argument("--generator", action="append", default=[], metavar="faces|cifar10=FILE")
    for kind in ("faces", "gallery", "xrays", "photographs"):
        parser.add_argument(f"--{kind}", type=Path, help="a folder of yours in the place of the research data")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="where the tables go")
    parser.add_argument("--beside", action="store_true", help="say that another run shares the machine")
    given = parser.parse_args()
    BESIDE = given.beside
    root = os.environ.get("SEEPAGE_DATA")
    if root is None:
        parser.error("SEEPAGE_DATA must name the folder with the research data and weights")
    main(given, Path(root))
