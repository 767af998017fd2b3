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
import functools
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F

import seepage
from seepage import assets, victims
from seepage.audit.judges import FaceJudge, Judges
from seepage.victims.weights import seeded

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FACES = Path("orl_faces.tgz")
VICTIM = Path("weights", "mobilefacenet_apache2.pt")
LEARNED, JUDGED, TARGETS = range(1, 21), range(21, 41), range(36, 41)
PICTURES, KNOWN = 10, 5  # of every person, and those of them in the gallery
HELD = 5
SIDE, CELLS, WIDTH = 112, 4, 512
STAGES = (80, 112)  # the channels of stages 4 and 5
RESAMPLES = 2000

Map = tuple[Float[Tensor, "k d"], Float[Tensor, "d"]]


class Unit(nn.Module):
    """Scale "b d" to unit length."""

    def forward(self, vectors: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return F.normalize(vectors, dim=1)


class FaceNetwork(nn.Module):
    """Faces "b 3 112 112", RGB in [0, 1], to embeddings "b 512" of unit length."""

    image_shape = (3, SIDE, SIDE)

    def __init__(self) -> None:
        super().__init__()
        lite = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.lower = nn.Sequential(lite.conv_stem, lite.bn1, *lite.blocks[:4])
        self.upper = lite.blocks[4]
        self.head = nn.Sequential(nn.Linear(sum(STAGES) * CELLS**2, WIDTH), Unit())

    def cells(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3072"]:
        """Return what the head is given."""
        fourth = self.lower((images - 127 / 255) / (128 / 255))
        both = fourth, self.upper(fourth)
        return torch.cat([F.adaptive_avg_pool2d(stage, CELLS).flatten(1) for stage in both], 1)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 512"]:
        embeddings: Tensor = self.head(self.cells(images))
        return embeddings


class Way(NamedTuple):
    """A way to learn the map: from which columns, seen through `view` ("3072 k"), and how."""

    name: str
    view: str
    learn: Callable[[Float[Tensor, "n k"], Int[Tensor, "n"]], Map]


def network() -> FaceNetwork:
    """Return the network, as `module/benchmarks/train_face_judge.py:network@FILE` has it."""
    return FaceNetwork()


def weights() -> Path:
    """Return where the trained weights are kept."""
    return assets.home() / "training" / "face_judge.safetensors"


def name() -> str:
    """Return the judge as `--judge face=` takes it."""
    return f"module/{HERE}/train_face_judge.py:network@{weights()}"


def read(data: Path, people: range) -> Float[Tensor, "p 10 3 112 112"]:
    """Return the pictures of people as MobileFaceNet sees them, which is how the audit hands them to its judge."""
    victim = seepage.load(f"zoo/mobilefacenet@{data / VICTIM}")
    source = seepage.open_source(f"orl/all@{data / FACES}")
    found = {entry.id: entry.path for entry in source.entries}
    load = seepage.cut(victim, "features.1").load
    files = [found[f"s{person}/{number}.pgm"] for person in people for number in range(1, PICTURES + 1)]
    return torch.stack([load(path) for path in files]).unflatten(0, (len(people), PICTURES))


def changed(images: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Return the pictures turned, moved, mirrored, scaled and lit differently, some of them blurred or noisy."""
    count = len(images)

    def within(most: float, *shape: int) -> Tensor:
        return (2 * torch.rand(count, *shape, generator=generator) - 1) * most

    angle, scale = within(math.radians(12)), within(0.13).exp()
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    across = torch.stack([mirror * angle.cos() * scale, -angle.sin() * scale, within(0.12)], 1)
    down = torch.stack([mirror * angle.sin() * scale, angle.cos() * scale, within(0.12)], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    lit = (moved - 0.5) * (1 + within(0.3, 1, 1, 1)) + 0.5 + within(0.12, 1, 1, 1)
    deviations = 0.3 + 2.2 * torch.rand(count, generator=generator)
    softened = torch.rand(count, generator=generator) < 0.35
    lit = torch.stack([blurred(one[None], d)[0] if s else one for one, d, s in zip(lit, deviations.tolist(), softened)])
    noisy = torch.rand(count, 1, 1, 1, generator=generator) < 0.4
    noise = 0.12 * torch.rand(count, 1, 1, 1, generator=generator) * torch.randn(lit.shape, generator=generator)
    return (lit + noisy * noise).clamp(0, 1)


def degraded(images: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Return the pictures blurred by 1.5 pixels under noise of 0.1, as a judge of recoveries sees them."""
    return (blurred(images, 1.5) + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def blurred(images: Float[Tensor, "b 3 h w"], deviation: float) -> Float[Tensor, "b 3 h w"]:
    """Blur with a Gaussian of so many pixels, up to 2.5."""
    line = (-(torch.arange(-6, 7) / deviation).square() / 2).exp()
    across = (line / line.sum()).view(1, 1, 1, -1).repeat(3, 1, 1, 1)
    wide = F.conv2d(F.pad(images, (6,) * 4, mode="replicate"), across, groups=3)
    return F.conv2d(wide, across.transpose(2, 3), groups=3)


def whitening(shrinkage: float, features: Float[Tensor, "n k"], who: Int[Tensor, "n"]) -> Map:
    """Return the map to their principal directions, whitened by how a person's own pictures differ there."""
    mean, spread = features.mean(0).double(), features.std(0).double() + 1e-6
    standard = (features.double() - mean) / spread
    axes = torch.linalg.eigh(standard.T @ standard)[1][:, -WIDTH:]
    along = standard @ axes
    own = along - torch.stack([along[who == person].mean(0) for person in range(int(who.max()) + 1)])[who]
    scatter = own.T @ own / len(own)
    values, vectors = torch.linalg.eigh(scatter + shrinkage * scatter.diag().mean() * torch.eye(len(scatter)))
    matrix = (axes @ vectors * values.rsqrt()) / spread[:, None]
    return matrix, -mean @ matrix


def margin(features: Float[Tensor, "n k"], who: Int[Tensor, "n"], steps: int = 250) -> Map:
    """Return the map that tells the people from each other by a cosine margin of 0.3."""
    mean, spread = features.mean(0), features.std(0) + 1e-6
    standard, generator = (features - mean) / spread, torch.Generator().manual_seed(0)
    people = int(who.max()) + 1
    with seeded(0):
        linear, centres = nn.Linear(features.shape[1], 128, bias=False), nn.Linear(128, people, bias=False)
    learned = [*linear.parameters(), *centres.parameters()]
    optimiser = torch.optim.AdamW(learned, 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(features), (128,), generator=generator)
        kept = 2.0 * (torch.rand(128, features.shape[1], generator=generator) < 0.5)
        cosine = F.normalize(linear(kept * standard[rows]), dim=1) @ F.normalize(centres.weight, dim=1).T
        loss = F.cross_entropy(16 * (cosine - 0.3 * F.one_hot(who[rows], people)), who[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    matrix = (linear.weight.detach() / spread).T.double()
    return matrix, -mean.double() @ matrix


def views() -> dict[str, Float[Tensor, "3072 k"]]:
    """Return what the ways see of the cells: those of a stage or of both, or the mean over each stage."""
    fourth, area = STAGES[0] * CELLS**2, CELLS**2
    everything = torch.eye(sum(STAGES) * area)
    means = torch.eye(sum(STAGES)).repeat_interleave(area, 0) / area
    return {"means": means, "stage 4": everything[:, :fourth], "stage 5": everything[:, fourth:], "both": everything}


WAYS = (
    *(Way(f"{view}, whitened, shrinkage 0.3", view, functools.partial(whitening, 0.3)) for view in views()),
    *(Way(f"both, whitened, shrinkage {s:g}", "both", functools.partial(whitening, s)) for s in (0.1, 1.0)),
    Way("both, cosine margin", "both", margin),
)


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
    unadapted = [_told_apart(raw[0][held], raw[1][held], who[held]) for held in folds]
    print("EfficientNet-lite0 as it comes:", torch.tensor(unadapted).mean(0), flush=True)
    for way in WAYS:
        found = []
        for held in folds:
            matrix, shift = _learned(way, matrices, seen, who, ~held)
            clean, bad = (seen[i][held].double() @ matrix + shift for i in (0, 1))
            found.append(_told_apart(clean, bad, who[held]))
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


def _told_apart(clean: Tensor, probes: Tensor, who: Tensor) -> tuple[float, float]:
    """How often a pair of one person is nearer than a pair of two, for clean and for degraded probes."""
    same, itself = who[:, None] == who, torch.eye(len(who), dtype=torch.bool)
    found = []
    for asked in (clean, probes):
        cosine = F.normalize(asked.double(), dim=1) @ F.normalize(clean.double(), dim=1).T
        found.append(_in_order(-cosine[same & ~itself], -cosine[~same]))
    return found[0], found[1]


def _in_order(own: Tensor, others: Tensor) -> float:
    ordered = others.sort().values
    return 1 - float(torch.searchsorted(ordered, own).double().mean()) / len(ordered)


def judged(judge: FaceJudge, known: Tensor, probes: Tensor) -> dict[str, Any]:
    """Return how a judge knows the people "p 10 ..." of `probes` among their own pictures `known`."""
    people = len(known)
    gallery, asked = (judge(part.flatten(0, 1)).double() for part in (known, probes))
    cosine = (F.normalize(asked, dim=1) @ F.normalize(gallery, dim=1).T).view(people, PICTURES, people, PICTURES)
    away = torch.cdist(asked, gallery).view(people, PICTURES, people, PICTURES)
    owner, numbers = torch.arange(people), torch.arange(PICTURES)
    itself = (owner[:, None, None, None] == owner[:, None]) & (numbers[:, None, None] == numbers)

    def right(nearest: Tensor) -> Tensor:
        """Whether the person whose gallery holds the nearest picture is the true one."""
        return nearest.argmax(-1) == owner[:, None]

    left_out = right(cosine.masked_fill(itself, -2).amax(-1))
    of_gallery = right(cosine[:, KNOWN:, :, :KNOWN].amax(-1))
    single = torch.stack([right(cosine[..., number])[:, numbers != number] for number in range(PICTURES)], -1)
    nearest = away[:, KNOWN:, :, :KNOWN].amin(-1)
    mine = nearest[owner, :, owner]
    others = nearest.transpose(1, 2)[~torch.eye(people, dtype=torch.bool)].view(people, people - 1, -1)
    targets = torch.tensor([person in TARGETS for person in JUDGED])
    return {
        "leave_one_out": _share(left_out),
        "gallery": _share(of_gallery),
        "targets": _share(of_gallery[targets]),
        "one_picture": _over_people(single.double(), lambda rows: float(rows.mean())),
        "own_distance": _over_people(mine, lambda rows: float(rows.mean())),
        "other_distance": _over_people(others, lambda rows: float(rows.mean())),
        "in_order": _over_people(
            torch.cat([mine[:, None], others], 1), lambda rows: _in_order(rows[:, 0].flatten(), rows[:, 1:].flatten())
        ),
    }


def _share(hits: Tensor) -> dict[str, float]:
    test = binomtest(int(hits.sum()), hits.numel())
    interval = test.proportion_ci(method="wilson")
    return {"value": test.statistic, "low": interval.low, "high": interval.high, "n": test.n}


def _over_people(rows: Float[Tensor, "p ..."], value: Callable[[Tensor], float]) -> dict[str, float]:
    """The value with its interval over people drawn anew: pictures of one person are no independent ones."""
    draws = torch.randint(len(rows), (RESAMPLES, len(rows)), generator=torch.Generator().manual_seed(0))
    found = torch.tensor([value(rows[draw]) for draw in draws])
    low, high = found.quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"value": value(rows), "low": low, "high": high, "n": len(rows)}


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
