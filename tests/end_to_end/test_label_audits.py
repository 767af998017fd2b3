"""Recovered labels scored through the command line: a probe of colours, beside a picture rebuilt first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seepage.attacks.checkpoints import Shelf, seconds_spent
from seepage.audit.request import Request
from seepage.audit.run import Event, run_audit
from seepage.files import OutputError
from seepage.schema import Cell
from seepage.store import Store

Run = Callable[..., tuple[int, str, str]]
COLOURS = ("blue", "green", "red")
CHANNEL = {"red": 0, "green": 1, "blue": 2}


def write(root: Path, count: int, seed: int, unlabelled: int = 0, *, by_colour: bool = False) -> Path:
    """Pictures of one colour on grey, and what colour that is; the last ones say nothing. In turns, or `by_colour`."""
    root.mkdir()
    random = np.random.default_rng(seed)
    lines = []
    for index in range(count):
        colour = COLOURS[3 * index // count if by_colour else index % 3]
        pixels = np.full((16, 16, 3), 90) + random.integers(0, 20, (16, 16, 3))
        pixels[..., CHANNEL[colour]] += 80
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{index:02d}.png")
        known = {"label": colour} if index < count - unlabelled else {}
        lines.append(json.dumps({"file_name": f"{index:02d}.png"} | known))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write(tmp_path / "labelled", 7, 0, unlabelled=1)


@pytest.fixture
def public(tmp_path: Path) -> Path:
    return write(tmp_path / "owned", 45, 1)


def cells(folder: Path) -> dict[str, Cell]:
    return {cell.spec.attack.partition(":")[0]: cell for cell in Store(folder).cells().values()}


def test_a_probe_reads_labels_beside_its_controls(
    victim: str, pictures: Path, public: Path, tmp_path: Path, seepage: Run
) -> None:
    arguments = ("audit", victim, pictures, "--layer", "relu", "--attack", "probe", "--public", public)
    code, _, err = seepage(*arguments, "-o", tmp_path / "o", "--metric", "top1", "--metric", "mse")
    assert code == 0, err
    cell = cells(tmp_path / "o")["probe"]
    assert cell.spec.metrics == ("top1",)
    assert cell.spec.judges == {}
    assert [sample.metrics.get("top1") for sample in cell.samples] == [1.0] * 6 + [None]
    assert cell.summary["top1"].n == 6
    # Of three colours as often as each other the constant one is right of two pictures in six.
    assert cell.controls["constant"]["top1"].mean == pytest.approx(1 / 3)
    # Each label for that of the next of 6, 3, 0, 2, 5, 4, 1 which has one: of three the colour is the same.
    assert cell.controls["shuffled"]["top1"].mean == 0.5
    assert cell.controls["prior"]["top1"].n == 6
    assert cell.summary["top1"].recovery == 1.0
    shown = [(s.recovered.label, s.truth.label, s.truth.image) for s in cell.samples if s.recovered and s.truth]
    assert [first for first, _, _ in shown] == [COLOURS[index % 3] for index in range(7)]
    assert [true for _, true, _ in shown] == [*(COLOURS[index % 3] for index in range(6)), None]
    assert all(image is not None and (tmp_path / "o" / image).is_file() for _, _, image in shown)


def test_pictures_that_lie_class_by_class_are_shuffled_among_classes(
    victim: str, public: Path, tmp_path: Path, seepage: Run
) -> None:
    lying = write(tmp_path / "lying", 30, 0, by_colour=True)
    arguments = ("audit", victim, lying, "--layer", "relu", "--attack", "probe", "--public", public)
    code, _, err = seepage(*arguments, "-o", tmp_path / "o", "--metric", "top1")
    assert code == 0, err
    cell = cells(tmp_path / "o")["probe"]
    assert cell.summary["top1"].mean == 1.0
    # Whoever is given the label of another picture by chance is right once in three; of a neighbour's, nearly always.
    assert cell.controls["shuffled"]["top1"].mean < 0.6
    assert cell.summary["top1"].recovery == 1.0


def test_classes_are_matched_by_name(victim: str, public: Path, tmp_path: Path, seepage: Run) -> None:
    """The public pictures know one class more, so that every number means another colour."""
    Image.new("RGB", (16, 16), (5, 5, 5)).save(public / "x.png")
    with (public / "metadata.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"file_name": "x.png", "label": "black"}))
    pictures = write(tmp_path / "labelled", 6, 0)
    arguments = ("audit", victim, pictures, "--layer", "mix", "--attack", "probe", "--public", public)
    assert seepage(*arguments, "-o", tmp_path / "o", "--metric", "top1")[0] == 0
    assert cells(tmp_path / "o")["probe"].summary["top1"].mean == 1.0


def test_classes_that_share_no_name_are_not_compared(
    victim: str, folder: Path, public: Path, tmp_path: Path, seepage: Run
) -> None:
    lines = [json.dumps({"file_name": path.name, "label": "smooth"}) for path in sorted(folder.glob("*.png"))]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    arguments = ("audit", victim, folder, "--layer", "mix", "--attack", "probe", "--public", public)
    assert seepage(*arguments, "-o", tmp_path / "o", "--metric", "top1")[0] == 0
    cell = cells(tmp_path / "o")["probe"]
    assert cell.summary == {}
    assert "none of the pictures' classes" in cell.unavailable["top1"]


def test_without_public_pictures_the_probe_is_not_run(
    victim: str, pictures: Path, tmp_path: Path, seepage: Run
) -> None:
    code, _, err = seepage("audit", victim, pictures, "--layer", "mix", "--attack", "probe", "-o", tmp_path / "o")
    assert code == 0, err
    cell = cells(tmp_path / "o")["probe"]
    assert (cell.status, "--public" in cell.message) == ("not_run", True)


def test_the_judge_names_what_was_rebuilt(
    victim: str, pictures: Path, public: Path, tmp_path: Path, seepage: Run
) -> None:
    """Five classes of the judge without names against three: refused; three that are named: compared."""
    judge = victim.replace(":tiny", ":judge")
    asked = ("--metric", "top1", "--metric", "mse", "--judge", judge)
    arguments = ("audit", victim, pictures, "--layer", "mix", "--attack", "rmle:steps=30", *asked)
    assert seepage(*arguments, "-o", tmp_path / "o")[0] == 0
    cell = cells(tmp_path / "o")["rmle"]
    assert set(cell.summary) == {"mse"}
    assert cell.unavailable["top1"] == "the pictures are of 3 classes, and the scores of 5 that have no names"
    path = Path(victim.removeprefix("module/").rpartition(":")[0])
    path.write_text(path.read_text() + SEER)
    seer = ("--judge", victim.replace(":tiny", ":seer"), "--metric", "agreement")
    assert seepage(*arguments[:-2], *seer, "-o", tmp_path / "s")[0] == 0
    cell = cells(tmp_path / "s")["rmle"]
    assert cell.spec.judges["label"].name.endswith(":seer")
    values = [sample.metrics.get("top1") for sample in cell.samples]
    assert values[-1] is None
    # The judge tells red from the rest alone, of the originals too.
    assert cell.ceilings["original"]["top1"].mean == pytest.approx(4 / 6)
    assert cell.summary["top1"].n == 6
    assert cell.summary["agreement"].n == 7


def test_reading_and_rebuilding_stand_in_one_report(
    victim: str, pictures: Path, public: Path, tmp_path: Path, seepage: Run
) -> None:
    path = Path(victim.removeprefix("module/").rpartition(":")[0])
    path.write_text(path.read_text() + SEER)
    judged = ("--judge", victim.replace(":tiny", ":seer"), "--metric", "top1", "--metric", "ssim")
    attacks = ("--attack", "rmle:steps=60", *(f"--attack=probe:kind={kind},steps=40" for kind in ("linear", "conv")))
    arguments = ("audit", victim, pictures, "--layer", "relu", *attacks, *judged, "--public", public)
    code, out, err = seepage(*arguments, "--dry-run")
    assert code == 0, err
    assert out.count("probe") >= 2
    assert seepage(*arguments, "-o", tmp_path / "o")[0] == 0
    page = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    space = "\N{NARROW NO-BREAK SPACE}"
    assert f"The label of 100{space}% of the pictures is read from the features at relu" in page
    assert "rebuilds there the judge gives the label of" in page
    assert f"of the originals 67{space}%" in page
    assert "Which label is taken for which" in page
    assert page.count("true label: <bdi>") == 6


SEER = '''


class Seer(nn.Module):
    """Says whether a picture is red; if not, that it is green."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.score = nn.Linear(3, 3, bias=False)
        self.num_classes = 3
        self.classes = ("Red", "green", "blue")
        with torch.no_grad():
            self.score.weight.copy_(torch.tensor([[1.0, -1.0, -1.0], [0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]]))

    def forward(self, x):
        x = self.pool(x).flatten(1)
        return self.score(x) + torch.tensor([0.3, 0.0, 0.0])


def seer():
    return Seer()


seer.image_shape = (3, 16, 16)
'''


def test_an_audit_that_is_stopped_while_its_attack_learns_goes_on_there(
    victim: str, pictures: Path, public: Path, tmp_path: Path
) -> None:
    request = Request(
        victim,
        str(pictures),
        layers=("relu",),
        attacks=("caprecover:read=label,steps=130,width=24,layers=1,heads=2,queries=2",),
        metrics=("top1",),
        public=str(public),
    )

    def learning(told: list[str], last: str) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            if event.kind == "learn":
                told.append(event.words.partition(",")[0])
                if told[-1] == last:
                    raise KeyboardInterrupt

        return listen

    first, second, whole = list[str](), list[str](), list[str]()
    with pytest.raises(KeyboardInterrupt):
        run_audit(request, tmp_path / "o", listener=learning(first, "step 120 of 130"))
    spent = seconds_spent(tmp_path / "o" / "partial")
    (cell,) = run_audit(request, tmp_path / "o", listener=learning(second, ""))
    assert cell.cost is not None
    assert cell.cost.fit_seconds > spent > 0
    assert second == [f"step {step} of 130" for step in range(101, 131)]  # a checkpoint is written every 100
    (other,) = run_audit(request, tmp_path / "other", listener=learning(whole, ""))
    assert len(whole) == 130
    assert [one.recovered for one in cell.samples] == [one.recovered for one in other.samples]
    assert cell.summary == other.summary
    assert not (tmp_path / "o" / "partial").exists()


def test_an_attack_that_cannot_write_checkpoints_learns_without(
    victim: str, pictures: Path, public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Shelf, step: int, *rest: object) -> None:
        (self.folder / "begun").touch()
        raise OutputError("no space left on the device")

    monkeypatch.setattr(Shelf, "write", full)
    attack = "caprecover:read=label,steps=3,width=24,layers=1,heads=2,queries=2"
    request = Request(victim, str(pictures), layers=("relu",), attacks=(attack,), metrics=("top1",), public=str(public))
    (cell,) = run_audit(request, tmp_path / "o", listener=lambda event: None)
    assert cell.status == "done"
    assert not (tmp_path / "o" / "partial").exists()


def test_what_a_kill_left_of_cells_on_record_is_swept_up(
    victim: str, pictures: Path, public: Path, tmp_path: Path
) -> None:
    request = Request(
        victim, str(pictures), layers=("relu",), attacks=("probe",), metrics=("top1",), public=str(public)
    )
    (cell,) = run_audit(request, tmp_path / "o", listener=lambda event: None)
    for name in (cell.key, "0" * 64):
        (tmp_path / "o" / "partial" / name / "speak").mkdir(parents=True)
    run_audit(request, tmp_path / "o", listener=lambda event: None)
    assert [path.name for path in (tmp_path / "o" / "partial").iterdir()] == ["0" * 64]  # another request's
