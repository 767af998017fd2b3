"""`seepage train defense`: what it hides and keeps, how it goes on, and audits of the victim that it makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("accelerate")

from seepage import victims
from seepage.data import open_source
from seepage.studies.distance_correlation import distance_correlation
from seepage.studies.train import TrainRequest, train
from seepage.victims.cut import cut

Run = Callable[..., tuple[int, str, str]]
SETTINGS = "defense:batch=16,width=2,hidden=12,lr=0.01"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))


def pictures(root: Path, count: int, seed: int) -> Path:
    """Smooth pictures whose colours and slopes are drawn."""
    root.mkdir()
    rows, columns = np.mgrid[0:16, 0:16] / 15.0
    random = np.random.default_rng(seed)
    for index in range(count):
        a, b, c = random.uniform(0, 1, (3, 3))
        picture = (a + np.multiply.outer(rows, b - a) + np.multiply.outer(columns, c - a)).clip(0, 1)
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(root / f"{index:02d}.png")
    return root


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """Sixty pictures to learn from."""
    return pictures(tmp_path / "public", 60, 0)


def command(victim: str, public: Path, target: Path, *more: object) -> list[object]:
    return ["train", SETTINGS, victim, "--layer", "wide", "--public", public, "-o", target, *more]


def told(target: Path) -> dict[str, tuple[float, float]]:
    """What is kept and what is seen, by what is sent, as the training tells it."""
    record = json.loads(target.with_name(f"{target.stem}.training.json").read_text())
    return {row[0]: (float(row[1].removesuffix(" %")), float(row[2])) for row in record["rows"]}


def test_it_hides_pictures_and_keeps_answers_and_is_audited_as_a_victim(
    seepage: Run, victim: str, public: Path, tmp_path: Path
) -> None:
    target, held = tmp_path / "hidden.safetensors", pictures(tmp_path / "held", 24, 1)
    code, out, error = seepage(*command(victim, public, target, "--select", held, "--steps", 120))
    assert code == 0, error
    assert out.splitlines()[-1] == str(target)
    rows = told(target)
    before, after = rows["the layer's features"], rows["the bottleneck's"]
    assert before[0] == 100.0
    assert after[0] >= 85.0
    assert after[1] < before[1] - 0.2

    # The file holds just that: the victim that it names is what was measured.
    defended = victims.load(f"defended/{target}")
    split = cut(defended, "wide.encoder")
    images = torch.stack([split.load(entry.path) for entry in open_source(held).entries])
    leak = split.leak(images)
    assert tuple(leak.features.shape[1:]) == (2, 16, 16)
    assert float(distance_correlation(images, leak.features)) == pytest.approx(after[1], abs=0.02)
    bare = victims.load(victim).model
    agree = (split.finish(leak).argmax(1) == bare(images).argmax(1)).double().mean()
    assert 100 * float(agree) == pytest.approx(after[0], abs=5)

    code, _, error = seepage("audit", f"defended/{target}", public, "-o", tmp_path / "seen")
    assert code == 2
    assert "was trained on 60 of the 60 pictures under audit, the first 00.png" in error
    attack = ["--attack", "rmle:steps=10,lr=0.1", "--effort", "quick", "--limit", 2]
    code, _, error = seepage("audit", f"defended/{target}", held, *attack, "-o", tmp_path / "out")
    assert code == 0, error
    (line,) = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["spec"]["layer"] == "wide.encoder"
    assert record["bytes_per_image"] == 4 * 2 * 16 * 16
    assert record["summary"]["mse"]["n"] == 2
    # Against the victim without the defense: a defended one always agrees with itself.
    assert record["utility"]["cosine"] < 0.9999
    noise = ["--defense", "gaussian:sigma=0.1,relative=true", "--attacker", "aware:estimate", "--json"]
    code, out, error = seepage("frontier", f"defended/{target}", held, *attack, *noise, "-o", tmp_path / "frontier")
    assert code == 0, error
    assert out.count("wide.encoder") >= 2


def test_interrupted_training_goes_on_to_the_same_bits(victim: str, public: Path, tmp_path: Path) -> None:
    def request(name: str) -> TrainRequest:
        return TrainRequest(SETTINGS, victim, ("wide",), str(public), tmp_path / name, steps=12)

    whole = train(request("whole.safetensors")).path.read_bytes()

    def stop(stage: str, done: float, what: str) -> None:
        if stage == "bottleneck" and done > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(request("stopped.safetensors"), stop)
    assert not (tmp_path / "stopped.safetensors").exists()
    again = train(request("stopped.safetensors"))
    assert any("going on from step" in note for note in again.notes)
    assert again.path.read_bytes() == whole


@pytest.mark.slow
def test_adversary_is_trained_against_and_outputs_without_scores_are_kept(
    seepage: Run, victim: str, public: Path, tmp_path: Path
) -> None:
    embedder = victim.replace(":tiny", ":embedder")
    losses = {}
    for strength in (0, 30):
        target = tmp_path / f"at{strength}.safetensors"
        words = command(embedder, public, target, "--steps", 40)
        words[1] = f"{SETTINGS},kind=adversarial,strength={strength}"
        assert seepage(*words)[0] == 0
        losses[strength] = told(target)["the bottleneck's"]
    assert losses[0][0] > 0.9
    assert losses[30][1] < losses[0][1]


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("defense:strength=-1", (), "defense:strength is a number at least 0, got -1"),
        ("defense:strength=nan", (), "defense:strength is a number at least 0, got nan"),
        ("defense:kind=magic", (), "defense:kind is one of nopeek, adversarial, got 'magic'"),
        ("defense:widht=3", (), "has no parameter 'widht'; did you mean 'width'?"),
        ("defense:width=0", (), "defense:width is a number at least 1, got 0"),
        ("defense:batch=3", (), "defense:batch is a number at least 4, got 3"),
        ("defense", ("--layer", "mix"), "a defense is trained at one layer, and 2 are named"),
    ],
)
def test_bad_input_is_one_line(
    seepage: Run, victim: str, public: Path, tmp_path: Path, text: str, words: tuple[str, ...], message: str
) -> None:
    target = tmp_path / "no.safetensors"
    code, out, error = seepage("train", text, *command(victim, public, target)[2:], *words)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert out == ""
    assert not target.exists()


def test_too_few_pictures_are_refused(seepage: Run, victim: str, public: Path, tmp_path: Path) -> None:
    few = pictures(tmp_path / "few", 3, 2)
    code, _, error = seepage(*command(victim, public, tmp_path / "no.safetensors", "--select", few))
    assert code == 2
    assert "3 pictures of" in error
    assert "a defense takes at least 4 to learn from and as many to measure on" in error


def test_a_defended_victim_is_not_defended_again_nor_judged_by_itself(
    seepage: Run, victim: str, public: Path, tmp_path: Path
) -> None:
    target = tmp_path / "once.safetensors"
    assert seepage(*command(victim, public, target, "--steps", 1))[0] == 0
    code, _, error = seepage(*command(f"defended/{target}", public, tmp_path / "twice.safetensors"))
    assert code == 2
    assert "has a trained defense: train one of the victim that it defends" in error
    others = pictures(tmp_path / "others", 2, 3)
    judged = ["--judge", victim, "--metric", "agreement", "--attack", "joint", "--effort", "quick"]
    code, _, error = seepage("audit", f"defended/{target}", others, *judged, "-o", tmp_path / "judged")
    assert code == 2
    assert "has the victim's own weights" in error
