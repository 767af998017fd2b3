"""Adapt an ImageNet network to faces, as the judge of the face rows of `peel_tables.py`, and measure it.

    SEEPAGE_DATA=... python benchmarks/train_face_judge.py [--copies 14] [--seed 0]

The victim of those rows is MobileFaceNet; the judge must be another network that knows faces. This one is
EfficientNet-lite0 up to its fifth stage on 112 pixels, stages 4 and 5 averaged over 4x4 cells, and one linear map of
the cells, of one stage or both, to a vector of unit length. The map is learned on people 1 to 20 of AT&T/ORL and on
changed copies of their pictures: turned, moved, mirrored, scaled, brighter, blurred, noisy. Ways to learn it are
compared on five of these people at a time, learned on the other fifteen: whitening by how a person's own pictures
differ (relevant component analysis: Shental et al. 2002) on either stage, on both, on their means alone, with several
shrinkages, and a cosine-margin head (CosFace: Wang et al. 2018). The best is learned on all twenty. People 21 to 40,
the gallery and the targets of `peel_tables.py`, are looked at once, after that, beside EfficientNet-lite0 as it comes
and MobileFaceNet.

Weights go to seepage's cache folder, figures to results/face_judge.json and .md. A few minutes on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import seepage
from face_copies import changed, degraded
from face_judge import HERE, JUDGED, KNOWN, LEARNED, PICTURES, TARGETS, FaceNetwork, name, network, weights
from face_scores import judged, told_apart
from face_ways import WAYS, Map, Way, views
from seepage import victims
from seepage.audit.judges import Judges

RESULTS = HERE / "results"
FACES = Path("orl_faces.tgz")
VICTIM = Path("weights", "mobilefacenet_apache2.pt")
HELD = 5


def read(data: Path, people: range) -> Float[Tensor, "p 10 3 112 112"]:
    """Return the pictures of people as MobileFaceNet sees them, which is how the audit hands them to its judge."""
    victim = seepage.load(f"zoo/mobilefacenet@{data / VICTIM}")
    source = seepage.open_source(f"orl/all@{data / FACES}")
    found = {entry.id: entry.path for entry in source.entries}
    load = seepage.cut(victim, "features.1").load
    files = [found[f"s{person}/{number}.pgm"] for person in people for number in range(1, PICTURES + 1)]
    return torch.stack([load(path) for path in files]).unflatten(0, (len(people), PICTURES))


@torch.no_grad()
def chosen(model: FaceNetwork, data: Path, copies: int, seed: int) -> tuple[Map, list[dict[str, Any]]]:
    """Return the map of the best way, learned on everybody, and what every way scored on people held out."""
    images = read(data, LEARNED).flatten(0, 1)
    generator = torch.Generator().manual_seed(seed)
    parts = [images, degraded(images, generator), *(changed(images, generator) for _ in range(copies))]
    seen = torch.stack([torch.cat([model.cells(batch) for batch in part.split(50)]) for part in parts])
    who = torch.arange(len(LEARNED)).repeat_interleave(PICTURES)
    raw = _pooled(images), _pooled(parts[1])
    matrices, scores = views(), []
    folds = [(who // HELD) == fold for fold in range(len(LEARNED) // HELD)]
    unadapted = [told_apart(raw[0][held], raw[1][held], who[held]) for held in folds]
    print("EfficientNet-lite0 as it comes:", torch.tensor(unadapted).mean(0), flush=True)
    for way in WAYS:
        found = []
        for held in folds:
            matrix, shift = _learned(way, matrices, seen, who, ~held)
            clean, bad = (seen[i][held].double() @ matrix + shift for i in (0, 1))
            found.append(told_apart(clean, bad, who[held]))
        scores.append(torch.tensor(found).mean(0))
        print(f"{way.name}: {scores[-1]}", flush=True)
    # Deterministic and of both kinds of picture: no kind is to be bought with the other.
    best = max(range(len(WAYS)), key=lambda index: float(scores[index].mean()))
    named = zip(["as it comes", *(way.name for way in WAYS)], [torch.tensor(unadapted).mean(0), *scores], strict=True)
    rows = [{"way": text, "clean": float(s[0]), "degraded": float(s[1])} for text, s in named]
    everybody = torch.ones_like(who, dtype=torch.bool)
    return _learned(WAYS[best], matrices, seen, who, everybody), [
        row | {"chosen": row["way"] == WAYS[best].name} for row in rows
    ]


def _learned(way: Way, matrices: dict[str, Tensor], seen: Tensor, who: Tensor, rows: Tensor) -> Map:
    """Learn on every kind of picture of some people but the degraded, and see through the view ever after."""
    view = matrices[way.view]
    features = torch.cat([seen[:1], seen[2:]])[:, rows].flatten(0, 1) @ view
    people = who[rows].unique(return_inverse=True)[1].repeat(len(seen) - 1)
    with torch.enable_grad():
        matrix, shift = way.learn(features, people)
    return view.double() @ matrix, shift


@torch.no_grad()
def _pooled(images: Tensor) -> Tensor:
    """EfficientNet-lite0's last vector before its scores, as the audit takes it from these pictures."""
    lite = victims.load("zoo/efficientnet_lite0")
    large = F.interpolate(images, lite.image_shape[1:], mode="bilinear", antialias=True)
    return torch.cat([lite.model.forward_head(lite.model.forward_features(lite.normalise(batch)), pre_logits=True)
                      for batch in large.split(25)])  # fmt: skip


@torch.no_grad()
def measured(data: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Return how the three networks know the people whom none of them has learned from, each asked as an audit asks."""
    images = read(data, JUDGED)
    bad = degraded(images.flatten(0, 1), torch.Generator().manual_seed(seed)).view_as(images)
    other = seepage.load("zoo/mobilenet_v2@random")
    networks = {
        "the judge: EfficientNet-lite0, adapted": name(),
        "EfficientNet-lite0 as it comes": "zoo/efficientnet_lite0",
        "the victim: MobileFaceNet": f"zoo/mobilefacenet@{data / VICTIM}",
    }
    found = {}
    for label, text in networks.items():
        judge = Judges((f"face={text}",), lambda: other, torch.device("cpu")).face
        assert judge is not None
        found[label] = {"clean": judged(judge, images, images), "degraded": judged(judge, images, bad)}
        print(label, json.dumps(found[label]), flush=True)
    return found


def table(record: dict[str, Any]) -> str:
    """Return the figures in Markdown."""
    columns = ("rank-1, leave-one-out", "rank-1, gallery", "rank-1, five targets", "rank-1, one picture a person",
               "KNN distance, own", "KNN distance, others", "own nearer")  # fmt: skip
    lines = [
        f"`{record['command']}`, {record['machine']}, {record['date']}: people {JUDGED[0]} to {JUDGED[-1]} of AT&T/ORL "
        f"(ten pictures each). The judge's head was chosen and learned on people {LEARNED[0]} to {LEARNED[-1]} alone, "
        f"in {record['cpu_seconds']:.0f} s of one thread. 95 % intervals: Wilson's over pictures for the first three "
        "columns, people drawn anew for the others.",
        "",
        f"| network | probes | {' | '.join(columns)} |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for label, kinds in record["networks"].items():
        for kind, figures in kinds.items():
            cells = [
                f"{100 * one['value']:.1f} % [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"
                if "distance" not in key
                else f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
                for key, one in figures.items()
            ]
            lines.append(f"| {label} | {kind} | {' | '.join(cells)} |")
    lines += [
        "",
        f"The gallery is that of `peel_tables.py`: pictures 1 to {KNOWN} of each of the twenty people; probes are the "
        f"rest, and the five targets people {TARGETS[0]} to {TARGETS[-1]}. With one picture a person every picture is "
        "in turn the gallery's. KNN distance: to the nearest of the gallery's pictures of the true person (own), and "
        "of each other person (others), on the scale of each network; own nearer: how often the first is below the "
        "second, over all pairs of such distances. Degraded probes are blurred by 1.5 pixels under noise of deviation "
        "0.1, the gallery is not; the judge has learned from blurred and from noisy copies.",
        "",
        f"How the head was chosen: pairs of one person nearer than pairs of two, mean over {len(LEARNED) // HELD} "
        f"choices of {HELD} of the people {LEARNED[0]} to {LEARNED[-1]} held out, for clean and degraded probes.",
        "",
        "| cells of EfficientNet-lite0, learned by | clean | degraded | |",
        "|---|---|---|---|",
    ]
    for way in record["ways"]:
        mark = "chosen" if way["chosen"] else ""
        lines.append(f"| {way['way']} | {100 * way['clean']:.1f} % | {100 * way['degraded']:.1f} % | {mark} |")
    return "\n".join(lines) + "\n"


def main(copies: int, seed: int, data: Path) -> None:
    """Choose, learn, keep, measure, record."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    began = time.process_time()
    model = network().eval().requires_grad_(False)
    lite: Any = victims.load("zoo/efficientnet_lite0").model
    model.lower.load_state_dict(nn.Sequential(lite.conv_stem, lite.bn1, *lite.blocks[:4]).state_dict())
    model.upper.load_state_dict(lite.blocks[4].state_dict())
    (matrix, shift), ways = chosen(model, data, copies, seed)
    # Ways of fewer dimensions leave the rest at zero.
    linear: Any = model.head[0]
    for weight, value in ((linear.weight, matrix.T), (linear.bias, shift)):
        weight.zero_()[: len(value)].copy_(value)
    target = weights()
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, target)
    spent = time.process_time() - began
    options = "" if (copies, seed) == (14, 0) else f" --copies {copies} --seed {seed}"
    record = {
        "command": f"python benchmarks/train_face_judge.py{options}",
        "data": FACES.name,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "ways": ways,
        "networks": measured(data, seed),
        "cpu_seconds": round(spent, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%d"),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "face_judge.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "face_judge.md").write_text(table(record))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=14, help="changed copies of every picture to learn from")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = os.environ.get("SEEPAGE_DATA")
    if not folder:
        parser.error(f"SEEPAGE_DATA must name the folder that holds {FACES} and {VICTIM}")
    main(given.copies, given.seed, Path(folder))
