"""Identities judged through the command line, on flat pictures whose embeddings are their colours times ten."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image

from seepage import registry
from seepage.audit.judges import split_layer
from seepage.audit.request import Request
from seepage.audit.workbench import Workbench
from seepage.schema import Cell
from seepage.store import Store
from seepage.types import Images, Knowledge, Leak, Recoverer, Recovery, Status

Run = Callable[..., tuple[int, str, str]]
Colour = tuple[int, int, int]

NETWORKS = '''
import torch
from torch import nn


class Faces(nn.Module):
    """Ten times the mean colour, then scores that nobody should compare people by."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.embed = nn.Linear(3, 3, bias=False)
        self.scores = nn.Linear(3, 4)
        with torch.no_grad():
            self.embed.weight.copy_(10 * torch.eye(3))

    def forward(self, x):
        x = self.embed(self.pool(x).flatten(1))
        return self.scores(x) if hasattr(self, "num_classes") else x


def faces():
    return Faces()


def classifier():
    torch.manual_seed(0)
    model = Faces()
    model.num_classes = 4
    return model


def unpooled():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


def nested():
    torch.manual_seed(4)
    head = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    model.num_classes = 4
    return model


for function in (faces, classifier, unpooled, nested):
    function.image_shape = (3, 8, 8)
'''

PEOPLE: Mapping[str, tuple[str, Colour]] = {
    "1.png": ("anna", (255, 0, 0)),
    "2.png": ("anna", (204, 51, 0)),
    "3.png": ("ben", (0, 255, 0)),
    "4.png": ("cleo", (0, 51, 255)),
}
GALLERY: Mapping[str, tuple[str, Colour]] = {
    "a.png": ("anna", (204, 0, 0)),
    "b.png": ("ben", (0, 204, 51)),
    "c.png": ("cleo", (51, 0, 204)),
    "d.png": ("dora", (51, 51, 255)),
}


@dataclass(frozen=True)
class Unmix:
    """Invert the tiny victim's mixing of colours exactly."""

    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {}
    access: ClassVar[str] = "white-box"
    auxiliary: ClassVar[str] = "none"
    recovers: ClassVar[str] = "images"
    budget: ClassVar[int] = 1

    def fit(self, knowledge: Knowledge, generator: torch.Generator, *, workdir=None, progress=None) -> Recoverer:
        return _Unmixer()

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        return _Unmixer()


class _Unmixer(Recoverer):
    def recover(self, leak: Leak, generators) -> Recovery:
        mix = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]]).inverse()
        images = torch.einsum("oc,bchw->bohw", mix, leak.features).clamp(0, 1)
        return Recovery(Images(images), (Status("converged"),) * len(leak), torch.ones(len(leak), dtype=torch.long))

    def prior(self, n: int, generators) -> Recovery:
        return Recovery(
            Images(torch.full((n, 3, 16, 16), 0.5)), (Status("stopped"),) * n, torch.zeros(n, dtype=torch.long)
        )

    def save(self, path: Path) -> None:
        path.touch()


@pytest.fixture(autouse=True)
def unmix() -> Iterator[None]:
    registry.names("attack")
    registry.register("attack", "unmix")(Unmix)
    yield
    del registry._components["attack"]["unmix"]


@pytest.fixture
def networks(tmp_path: Path) -> str:
    (tmp_path / "networks.py").write_text(NETWORKS)
    return f"module/{tmp_path / 'networks.py'}"


def write(folder: Path, pictures: Mapping[str, tuple[str, Colour]]) -> Path:
    folder.mkdir()
    lines = []
    for name, (person, colour) in pictures.items():
        Image.new("RGB", (16, 16), colour).save(folder / name)
        lines.append(json.dumps({"file_name": name} | ({"identity": person} if person else {})))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write(tmp_path / "people", PEOPLE)


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    return write(tmp_path / "gallery", GALLERY)


def embedded(colour: Colour) -> tuple[float, ...]:
    return tuple(10 * channel / 255 for channel in colour)


def distance(name: str, person: str) -> float:
    """From an audited picture to the nearest of a person's gallery, without any of the code under test."""
    own = embedded(PEOPLE[name][1])
    return min(math.dist(own, embedded(colour)) for who, colour in GALLERY.values() if who == person)


def audit(seepage: Run, victim: str, images: Path, output: Path, *more: object) -> Cell:
    code, _, err = seepage("audit", victim, images, "--attack", "unmix", "--layer", "mix", "-o", output, *more)
    assert code == 0, err
    (cell,) = Store(output).cells().values()
    return cell


def test_identities_are_judged_beside_their_controls(
    victim: str, networks: str, people: Path, gallery: Path, tmp_path: Path, seepage: Run
) -> None:
    judge = f"{networks}:faces"
    cell = audit(seepage, victim, people, tmp_path / "o", "--gallery", gallery, "--judge", f"face={judge}")
    assert set(cell.summary) == {"mse", "psnr", "ssim", "knn_distance", "rank1"}
    for sample in cell.samples:
        own = distance(sample.id, PEOPLE[sample.id][0])
        assert sample.metrics["knn_distance"] == pytest.approx(own, rel=1e-4)
    # (0, 2, 10) lies nearer to dora's (2, 2, 10) than to cleo's (2, 0, 8), by angle too.
    assert [sample.metrics["rank1"] for sample in cell.samples] == [1.0, 1.0, 1.0, 0.0]
    assert cell.ceilings["original"]["rank1"].mean == 0.75
    assert cell.ceilings["original"]["knn_distance"].mean == pytest.approx(cell.summary["knn_distance"].mean, rel=1e-4)
    following = {"anna": "ben", "ben": "cleo", "cleo": "anna"}
    shuffled = [distance(name, following[person]) for name, (person, _) in PEOPLE.items()]
    assert cell.controls["shuffled"]["knn_distance"].mean == pytest.approx(sum(shuffled) / 4, rel=1e-4)
    assert cell.controls["shuffled"]["rank1"].mean == 0.0
    assert cell.controls["shuffled"]["mse"].mean > 0.01
    assert {"prior", "mean_picture"} <= set(cell.controls)
    grey = [
        min(math.dist((5, 5, 5), embedded(colour)) for who, colour in GALLERY.values() if who == person)
        for person, _ in PEOPLE.values()
    ]
    assert cell.controls["prior"]["knn_distance"].mean == pytest.approx(sum(grey) / 4, rel=1e-4)
    assert (cell.spec.gallery, len(cell.spec.gallery_sha256)) == (str(gallery), 64)
    assert cell.spec.judges["face"].name == f"{judge}:embed"
    assert not cell.scales["knn_distance"].higher_means_more_leakage
    (check,) = (check for check in cell.checks if check.name == "gallery")
    assert (check.level, "4 pictures of 4 people" in check.message) == ("info", True)
    report = (tmp_path / "o" / "report.html").read_text()
    assert "KNN distance" in report
    assert "Identified" in report


def test_the_derangement_of_people_follows_the_seed_and_leaves_nobody_in_place(people: Path, gallery: Path) -> None:
    for seed in range(5):
        bench = Workbench(Request(images=str(people), gallery=str(gallery), seed=seed))
        others = bench.gallery.others
        assert sorted(others) == sorted(others.values()) == ["anna", "ben", "cleo"]
        assert all(person != other for person, other in others.items())
        assert others["anna"] == ("ben" if seed % 2 == 0 else "cleo")


def test_a_classifier_judges_by_what_lies_before_its_scores(
    victim: str, networks: str, people: Path, gallery: Path, tmp_path: Path, seepage: Run
) -> None:
    base = ("--gallery", gallery, "--metric", "rank1", "--metric", "knn_distance", "--judge")
    cell = audit(seepage, victim, people, tmp_path / "a", *base, f"face={networks}:classifier")
    assert cell.spec.judges["face"].name.endswith(":classifier:embed")
    assert cell.samples[0].metrics["knn_distance"] == pytest.approx(distance("1.png", "anna"), rel=1e-4)
    nested = audit(seepage, victim, people, tmp_path / "c", *base, f"face={networks}:nested")
    assert nested.spec.judges["face"].name.endswith(":nested:2.1")
    named = audit(seepage, victim, people, tmp_path / "b", *base, f"face={networks}:classifier:pool")
    assert named.spec.judges["face"].name.endswith(":pool")
    assert named.samples[0].metrics["knn_distance"] == pytest.approx(distance("1.png", "anna") / 10, rel=1e-4)
    assert named.key != cell.key


def test_pictures_under_audit_are_no_gallery_of_their_own(
    victim: str, networks: str, people: Path, gallery: Path, tmp_path: Path, seepage: Run
) -> None:
    base = ("--gallery", gallery, "--judge", f"face={networks}:faces", "--metric", "knn_distance")
    before = audit(seepage, victim, people, tmp_path / "a", *base)
    shutil.copy(people / "1.png", gallery / "z.png")
    with (gallery / "metadata.jsonl").open("a") as lines:
        lines.write("\n" + json.dumps({"file_name": "z.png", "identity": "anna"}))
    after = audit(seepage, victim, people, tmp_path / "b", *base)
    assert after.samples[0].metrics["knn_distance"] == pytest.approx(2.0, rel=1e-4)
    assert [s.metrics for s in after.samples] == [s.metrics for s in before.samples]
    assert after.spec.gallery_sha256 == before.spec.gallery_sha256
    assert "1 more are under audit and were left out" in next(c.message for c in after.checks if c.name == "gallery")
    code, _, err = seepage(
        "audit",
        victim,
        people,
        "--attack",
        "unmix",
        "--layer",
        "mix",
        "-o",
        tmp_path / "c",
        *base[2:],
        "--gallery",
        people,
    )
    assert (code, len(err.splitlines())) == (2, 1)
    assert "every picture of it is under audit too" in err


def test_people_whom_the_gallery_lacks_are_counted_not_scored(
    victim: str, networks: str, people: Path, tmp_path: Path, seepage: Run
) -> None:
    some = write(tmp_path / "some", {name: item for name, item in GALLERY.items() if item[0] != "cleo"})
    (some / "a2.png").write_text("no picture")
    cell = audit(seepage, victim, people, tmp_path / "o", "--gallery", some, "--judge", f"face={networks}:faces")
    assert cell.summary["rank1"].n == 3
    assert cell.summary["mse"].n == 4
    assert "rank1" not in cell.samples[3].metrics
    assert not math.isnan(cell.summary["knn_distance"].mean)
    (check,) = (check for check in cell.checks if check.name == "gallery")
    assert check.level == "warning"
    assert "1 of 4 pictures show nobody it knows" in check.message
    assert "1 more cannot be read" in check.message
    assert cell.controls["shuffled"]["rank1"].n == 3


def test_redacted_identities_leave_no_name(
    victim: str, networks: str, people: Path, gallery: Path, tmp_path: Path, seepage: Run
) -> None:
    base = ("--gallery", gallery, "--judge", f"face={networks}:faces", "--redact")
    assert audit(seepage, victim, people, tmp_path / "o", *base).summary["rank1"].mean == 0.75
    for path in (path for path in (tmp_path / "o").iterdir() if path.is_file()):
        assert not any(name in path.read_text(encoding="utf-8") for name in ("anna", "cleo", "a.png"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("no judge", "--judge face=VICTIM[:LAYER]"),
        ("no gallery", "--gallery DATASET/SPLIT or FOLDER"),
        ("nobody audited", "nothing says who is on the pictures under audit"),
        ("nobody in the gallery", "nothing says who is on the gallery's pictures"),
        ("strangers", "none of the 3 people under audit is in the gallery"),
    ],
)
def test_what_cannot_be_judged_is_said_in_a_line(
    change: str, reason: str, victim: str, networks: str, people: Path, gallery: Path, tmp_path: Path, seepage: Run
) -> None:
    if change == "nobody audited":
        (people / "metadata.jsonl").unlink()
    if change == "nobody in the gallery":
        (gallery / "metadata.jsonl").unlink()
    if change == "strangers":
        gallery = write(tmp_path / "strangers", {"e.png": ("eve", (1, 2, 3)), "f.png": ("finn", (4, 5, 6))})
    more = [] if change == "no judge" else ["--judge", f"face={networks}:faces"]
    more += [] if change == "no gallery" else ["--gallery", gallery]
    asked = ("--metric", "mse", "--metric", "rank1", "--metric", "knn_distance")
    cell = audit(seepage, victim, people, tmp_path / "o", *asked, *more)
    assert set(cell.summary) == {"mse"}
    assert set(cell.unavailable) == {"rank1", "knn_distance"}
    assert all(reason in said and "\n" not in said for said in cell.unavailable.values())
    assert "face" not in cell.spec.judges


def test_one_person_in_the_gallery_has_a_distance_and_no_rank(
    victim: str, networks: str, people: Path, tmp_path: Path, seepage: Run
) -> None:
    alone = write(tmp_path / "alone", {"a.png": GALLERY["a.png"]})
    cell = audit(seepage, victim, people, tmp_path / "o", "--gallery", alone, "--judge", f"face={networks}:faces")
    assert cell.summary["knn_distance"].n == 2
    assert "all of one person" in cell.unavailable["rank1"]
    assert "knn_distance" not in cell.controls["shuffled"]
    assert "one of the people" in cell.unavailable["shuffled"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gallery", "{gallery}", "--judge", "face={victim}"], "victim's own weights"),
        (["--gallery", "{gallery}", "--judge", "face={networks}:unpooled"], "name the layer"),
        (["--gallery", "{gallery}", "--judge", "face={networks}:faces:embd"], "did you mean 'embed'?"),
        (["--gallery", "{gallery}", "--judge", "fase={networks}:faces"], "did you mean 'face'?"),
        (["--gallery", "{gallery}", "--judge", "text={networks}:faces"], "label= and face= are read"),
        (
            ["--gallery", "{gallery}", "--judge", "face={networks}:faces", "--judge", "face={networks}:classifier"],
            "one face judge at a time",
        ),
        (["--judge", "face={networks}:faces"], "add --gallery"),
        (["--gallery", "{gallery}x", "--judge", "face={networks}:faces"], "did you mean"),
        (["--gallery", "{spoiled}", "--judge", "face={networks}:faces"], "no picture of it can be read"),
    ],
)
def test_what_is_wrong_is_refused_in_a_line(
    arguments: list[str],
    expected: str,
    victim: str,
    networks: str,
    people: Path,
    gallery: Path,
    tmp_path: Path,
    seepage: Run,
) -> None:
    spoiled = tmp_path / "spoiled"
    spoiled.mkdir()
    (spoiled / "a.png").write_text("no picture")
    places = {"victim": victim, "networks": networks, "gallery": gallery, "spoiled": spoiled}
    words = [argument.format(**places) for argument in arguments]
    base = ("audit", victim, people, "--attack", "unmix", "--layer", "mix", "-o", tmp_path / "o")
    code, _, err = seepage(*base, *words)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert expected in err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("zoo/mobilenet_v2", ("zoo/mobilenet_v2", None)),
        ("zoo/mobilenet_v2:features.18", ("zoo/mobilenet_v2", "features.18")),
        ("timm/resnet18@random:3", ("timm/resnet18@random:3", None)),
        ("timm/resnet18@random:3:layer4", ("timm/resnet18@random:3", "layer4")),
        ("timm/resnet18@a/b.safetensors:fc", ("timm/resnet18@a/b.safetensors", "fc")),
        ("module/a/b.py:face", ("module/a/b.py:face", None)),
        ("module/a/b.py:face:blocks#2", ("module/a/b.py:face", "blocks#2")),
        ("module/a/b.py:face@w.safetensors", ("module/a/b.py:face@w.safetensors", None)),
        ("hf/dinov2:hidden_size=8,depth=2", ("hf/dinov2:hidden_size=8,depth=2", None)),
        ("hf/dinov2:hidden_size=8:encoder", ("hf/dinov2:hidden_size=8", "encoder")),
    ],
)
def test_a_layer_follows_the_last_colon(text: str, parts: tuple[str, str | None]) -> None:
    assert split_layer(text) == parts
