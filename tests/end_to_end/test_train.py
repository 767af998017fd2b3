"""`seepage train`: what it writes, how it resumes, what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("accelerate")

from seepage import victims
from seepage.attacks.decoder import Decoder
from seepage.attacks.probe import Probe
from seepage.data import open_source
from seepage.pictures import remembered
from seepage.studies.material import material, sources
from seepage.types import Images, Knowledge, Labels
from seepage.victims.cut import cut

Run = Callable[..., tuple[int, str, str]]
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 50), "blue": (40, 50, 200)}


def pictures(root: Path, count: int, seed: int = 0, *, captions: bool = True, labels: bool = True) -> Path:
    """Noisy squares of three colours, which are their labels and what their captions say."""
    root.mkdir(parents=True)
    random = np.random.default_rng(seed)
    lines = []
    for index in range(count):
        name = list(COLOURS)[index % 3]
        picture = np.array(COLOURS[name]) + random.normal(0, 15, (16, 16, 3)) + random.normal(0, 15, (1, 1, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / f"{index:02d}.png")
        known: dict[str, object] = {"file_name": f"{index:02d}.png"}
        known |= {"captions": [f"a {name} square", f"the picture is {name}"]} if captions else {}
        known |= {"label": name} if labels else {}
        lines.append(json.dumps(known))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """Thirty squares to learn from, labelled and captioned."""
    return pictures(tmp_path / "public", 30)


@pytest.mark.parametrize("attack", ["probe", "decoder"])
def test_what_was_trained_is_audited_where_it_was_trained_and_on_other_pictures(
    seepage: Run, victim: str, public: Path, tmp_path: Path, attack: str
) -> None:
    target = tmp_path / f"{attack}.safetensors"
    steps = ["--steps", "3"] if attack == "decoder" else []
    code, _, error = seepage("train", attack, victim, "--layer", "wide", "--public", public, "-o", target, *steps)
    assert code == 0, error
    named = f"{attack}:adapter={target}"
    code, _, error = seepage("audit", victim, public, "--attack", named, "-o", tmp_path / "seen")
    assert code == 2
    assert "has learned from 30 of the 30 pictures under audit" in error
    test = pictures(tmp_path / "test", 6, seed=1)
    metric = ["--metric", "top1" if attack == "probe" else "psnr"]
    code, _, error = seepage("audit", victim, test, "--attack", named, *metric, "-o", tmp_path / "out")
    assert code == 0, error
    (line,) = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["spec"]["layer"], record["spec"]["auxiliary"]) == ("wide", "public")
    assert len(record["spec"]["adapter_sha256"]) == 64
    code, _, error = seepage("audit", victim, test, "--layer", "mix", "--attack", named, *metric, "-o", tmp_path / "no")
    assert code == 3
    (line,) = (tmp_path / "no" / "results.jsonl").read_text().splitlines()
    assert "was trained on" in json.loads(line)["message"]


def test_probe_is_trained_and_loads(seepage: Run, victim: str, public: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "probe.safetensors"
    code, out, _ = seepage("train", "probe", victim, "--layer", "wide", "--public", public, "-o", target)
    assert code == 0
    assert out.splitlines()[-1] == str(target)
    split = cut(victims.load(victim), "wide")
    recoverer = Probe().load(target, Knowledge(split.image_shape))
    test = open_source(pictures(tmp_path / "test", 12, seed=1))
    leak = split.leak(torch.stack([split.load(entry.path) for entry in test.entries]))
    said = recoverer.recover(leak, [torch.Generator()] * 12).value
    assert isinstance(said, Labels)
    assert said.classes == test.classes
    assert said.scores.argmax(1).tolist() == [entry.label for entry in test.entries]
    record = json.loads((tmp_path / "out" / "probe.training.json").read_text())
    scores = {row[0]: row[1] for row in record["rows"]}
    assert scores["its own features"] == "100.0 %"
    assert float(scores["control: the commonest label"].split()[0]) < 70
    files = [set(record["splits"][part]["files"]) for part in ("train", "select")]
    assert not files[0] & files[1]
    known = [hashlib.sha256(path.read_bytes()).hexdigest() for path in public.glob("*.png")]
    assert files[0] | files[1] == remembered(known)
    page = (tmp_path / "out" / "probe.training.html").read_text()
    assert "its own features" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)


def test_decoder_is_trained_beats_its_controls_and_loads(
    seepage: Run, victim: str, public: Path, tmp_path: Path
) -> None:
    target = tmp_path / "decoder.safetensors"
    held = pictures(tmp_path / "held", 6, seed=2)
    command = ["train", "decoder:width=8,batch=4,lr=0.01", victim, "--layer", "wide", "--public", public]
    command += ["--crops", 1]
    code, _, _ = seepage(*command, "--select", held, "--steps", 60, "-o", target)
    assert code == 0
    record = json.loads((tmp_path / "decoder.training.json").read_text())
    assert ["shown", "as they are, mirrored, as 1 random part of each"] in record["facts"]
    loss = {row[0]: float(row[1]) for row in record["rows"]}
    assert loss["its own features"] < 0.7 * loss["control: the mean features"]
    assert loss["its own features"] < 0.7 * loss["control: another picture's"]
    (stage,) = record["stages"]
    assert stage["curve"]["step"] == list(range(1, 61))
    assert [step for step, _ in stage["held"]["held-out"]] == list(range(0, 61, 6))
    split = cut(victims.load(victim), "wide")
    recoverer = Decoder().load(target, Knowledge(split.image_shape))
    images = torch.stack([split.load(entry.path) for entry in open_source(held).entries])
    found = recoverer.recover(split.leak(images), [torch.Generator()] * 6).value
    assert isinstance(found, Images)
    off = found.images - images
    assert float(off.abs().mean() + off.square().mean()) == pytest.approx(loss["its own features"], rel=0.02)
    # Features are computed once: the cache serves the same command again, and nothing is trained again.
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "home" / "features").rglob("*.safetensors")}
    assert shards
    before = target.read_bytes()
    assert seepage(*command, "--select", held, "--steps", 60, "-o", target)[0] == 0
    assert target.read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in shards} == shards


@pytest.mark.slow
def test_killed_training_goes_on_with_the_same_command_bit_for_bit(victim: str, public: Path, tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[str]:
        words = ["train", "decoder:width=8,batch=4", victim, "--layer", "wide", "--public", str(public)]
        command = [sys.executable, "-m", "seepage", *words, "--steps", "60", "-o", str(tmp_path / name)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "SEEPAGE_HOME": str(tmp_path / "home")}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    whole = start("whole.safetensors")
    _, error = whole.communicate(timeout=120)
    assert whole.returncode == 0, error
    for sign in (signal.SIGKILL, signal.SIGINT):
        stopped = start("stopped.safetensors")
        folder = tmp_path / "stopped.train" / "decoder"
        while stopped.poll() is None:
            done = sorted(folder.glob("step-*.json"))
            if done and int(done[-1].stem.removeprefix("step-")) >= (10 if sign == signal.SIGKILL else 30):
                stopped.send_signal(sign)
                break
        _, error = stopped.communicate(timeout=60)
        assert stopped.returncode == (-signal.SIGKILL if sign == signal.SIGKILL else 130), error
        assert not (tmp_path / "stopped.safetensors").exists()
    assert "the same command goes on from there" in error
    last = start("stopped.safetensors")
    _, error = last.communicate(timeout=120)
    assert last.returncode == 0, error
    assert "going on from step" in error
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "stopped"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["decodr"], "did you mean 'decoder'"),
        (["joint"], "nothing called 'joint' is trained beforehand"),
        (["probe", "--effort", "much"], "no effort is called 'much'"),
        (["probe", "--layer", "mix"], "a probe is trained at one layer, and 2 are named"),
        (["probe", "--language", "smollm2"], "--language is caprecover's alone"),
        (["probe", "--authors"], "--preset and --authors are caprecover's alone"),
        (["probe", "--compile"], "--compile is for caprecover's language model: a probe has none"),
        (["decoder", "--steps", "0"], "decoder:steps is a number at least 1"),
        (["decoder", "--precision", "fp8"], "--precision fp8: expected fp32 or bf16 or fp16"),
        (["decoder", "--precision", "fp16", "--steps", "2"], "fp16 training needs a GPU"),
        (["decoder", "--crops", "-1"], "-1 crops of each picture; expected 0 or more"),
        (["decoder", "--limit", "2"], "expected at least 2"),
    ],
)
def test_bad_input_is_one_line(
    seepage: Run, victim: str, public: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    target = tmp_path / "out.safetensors"
    code, out, error = seepage(
        "train", words[0], victim, "--layer", "wide", "--public", public, *words[1:], "-o", target
    )
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert out == ""
    assert not target.exists()


def test_pictures_and_their_features_are_shown_alike(victim: str, public: Path) -> None:
    have = material(victim, ("wide",), sources(str(public), None, None), flips=True, crops=2)
    kept, rows = have.train.features["wide"], have.train.rows[:4]
    assert list(kept.folders) == [0, 1, 2, 3]
    assert list(have.select.features["wide"].folders) == [0]
    plain = kept.read(rows)
    for way in kept.folders:
        images = have.train.pictures(rows, [way] * len(rows)).images
        leak = have.splits["wide"].leak(images).features
        torch.testing.assert_close(kept.read(rows, [way] * len(rows)), leak, rtol=2e-3, atol=1e-3)
        assert torch.equal(kept.read(rows, [way] * len(rows)), plain) == (way == 0)


def test_picture_in_both_parts_is_refused(seepage: Run, victim: str, public: Path, tmp_path: Path) -> None:
    held = pictures(tmp_path / "held", 3, seed=5)
    (held / "twin.png").write_bytes((public / "07.png").read_bytes())
    code, _, error = seepage(
        "train", "probe", victim, "--layer", "wide", "--public", public, "--select", held, "-o", tmp_path / "a"
    )
    assert code == 2
    assert "'07.png' of public and 'twin.png' of held" in error


def test_pictures_without_labels_teach_no_probe(seepage: Run, victim: str, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "bare", 30, labels=False)
    code, _, error = seepage("train", "probe", victim, "--layer", "wide", "--public", folder, "-o", tmp_path / "a")
    assert code == 2
    assert "too few pictures of bare have a label" in error


def test_checkpoints_of_another_configuration_are_refused_by_name(
    seepage: Run, victim: str, public: Path, tmp_path: Path
) -> None:
    command = ["train", "decoder:width=8", victim, "--layer", "wide", "--public", public, "--steps", 4]
    target = tmp_path / "decoder.safetensors"
    assert seepage(*command, "-o", target)[0] == 0
    before = target.read_bytes()
    code, _, error = seepage(*command, "--seed", 1, "-o", target)
    assert code == 2
    assert "seed is 0 there and 1 here" in error
    assert target.read_bytes() == before


def test_unreadable_picture_is_left_out_and_named(seepage: Run, victim: str, public: Path, tmp_path: Path) -> None:
    (public / "03.png").write_bytes(b"no picture")
    code, _, error = seepage(
        "train", "decoder:width=8", victim, "--layer", "wide", "--public", public, "--steps", 2, "-o", tmp_path / "a"
    )
    assert code == 0
    assert "are left out; the first, 03.png:" in error


def test_a_folder_as_output_is_refused_before_anything_is_made(
    seepage: Run, victim: str, public: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    for given in (target, Path(".")):
        code, _, error = seepage("train", "probe", victim, "--layer", "wide", "--public", public, "-o", given)
        assert code == 2
        assert "is a folder; expected a file" in error
    assert not (tmp_path / "out.train").exists()
