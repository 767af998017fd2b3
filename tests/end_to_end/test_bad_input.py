from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seepage.cli import run

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("torchvison/resnet18",), "torchvision"),
        (("torchvision/resnet81@random",), "resnet"),
        (("zoo/mobilenet",), "'mobilenet_v2'"),
        (("VICTIM", "FOLDER", "--layer", "wyde"), "'wide'"),
        (("VICTIM", "FOLDER", "--attack", "rmel"), "'rmle'"),
        (("VICTIM", "FOLDER", "--attack", "rmle:stps=3"), "'steps'"),
        (("VICTIM", "FOLDER", "--attack", "rmle:steps=many"), "whole number"),
        (("VICTIM", "FOLDER", "--attack", "rmle:steps=-1"), "rmle:steps is a number at least 0, got -1"),
        (("VICTIM", "FOLDER", "--attack", "rmle:lr=nan"), "rmle:lr is a number at least 0, got nan"),
        (("VICTIM", "FOLDER", "--attack", "joint:tv=inf"), "joint:tv is a number at least 0, got inf"),
        (("VICTIM", "FOLDER", "--attack", "joint:pictures=-5"), "at least 0, got -5"),
        (("VICTIM", "FOLDER", "--attack", "decoder:batch=0"), "decoder:batch is a number at least 1, got 0"),
        (("VICTIM", "FOLDER", "--attack", "divide:pictures=0"), "at least 2"),
        (("VICTIM", "FOLDER", "--attack", "deep-image-prior:average=2"), "from 0 to 1, got 2.0"),
        (("VICTIM", "FOLDER", "--metric", "psrn"), "'psnr'"),
        (("VICTIM", "FOLDER", "--effort", "quik"), "quick, standard, full"),
        (("VICTIM", "FOLDER", "--wire", "fp64"), "fp32"),
        (("VICTIM", "FOLDER", "--device", "tpu"), "cpu always works"),
        (("VICTIM", "FOLDER", "--limit", "0"), "at least 1"),
        (("VICTIM", "FOLDER", "--defense", "gausian"), "'gaussian'"),
        (("VICTIM", "FOLDER", "--attacker", "naive"), "--defense"),
        (("VICTIM", "NOWHERE"), "nowhere"),
        (("VICTIM", "EMPTY"), "no picture"),
        (("VICTIM", "FOLDER", "--spec", "MISSING"), "--spec"),
        (("VICTIM", "FOLDER", "--leak", "FILE"), "--layer"),
        (("VICTIM", "FOLDER", "--nonsense"), "--nonsense"),
    ],
)
def test_one_clear_line(
    arguments: tuple[str, ...], expected: str, victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture here")
    names = {
        "VICTIM": victim,
        "FOLDER": str(folder),
        "NOWHERE": str(tmp_path / "nowhere"),
        "EMPTY": str(tmp_path / "empty"),
        "MISSING": str(tmp_path / "missing.yaml"),
        "FILE": str(tmp_path / "leak.npy"),
    }
    asked = [names.get(argument, argument) for argument in arguments]
    code, out, err = seepage("audit", *asked, "-o", tmp_path / "o")
    assert code == 2, (out, err)
    assert len(err.splitlines()) == 1, err
    assert expected in err
    assert "Traceback" not in err
    assert not (tmp_path / "o").exists()


def test_a_bypassed_cut_is_refused_with_the_nearest_legal_ones(folder: Path, tmp_path: Path, seepage: Run) -> None:
    (tmp_path / "skip.py").write_text(
        "from torch import nn\n"
        "class Skip(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))\n"
        "    def forward(self, x):\n"
        "        y = self.a(x)\n"
        "        return self.c(y + self.b(y)).mean((2, 3))\n"
        "def skip():\n"
        "    return Skip()\n"
        "skip.image_shape = (3, 16, 16)\n"
    )
    victim = f"module/{tmp_path / 'skip.py'}:skip"
    code, _, err = seepage("audit", victim, folder, "--layer", "b", "-o", tmp_path / "o")
    assert code == 2
    assert "bypass" in err
    assert "'a'" in err or " a" in err
    assert len(err.splitlines()) == 1


def test_every_kind_of_picture_is_read(victim: str, tmp_path: Path, seepage: Run) -> None:
    root = tmp_path / "odd"
    root.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    colour = Image.fromarray(noise)
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(root / "sixteen.png")
    colour.convert("P").save(root / "palette.png")
    colour.convert("CMYK").save(root / "cmyk.jpg")
    colour.convert("RGBA").save(root / "alpha.png")
    colour.convert("L").save(root / "grey.jpg")
    colour.convert("1").save(root / "bits.png")
    colour.resize((1, 1)).save(root / "point.png")
    colour.save(root / "moving.gif", save_all=True, append_images=[colour.rotate(90)])
    arguments = ("--attack", "rmle:steps=2", "--layer", "mix", "--metric", "mse", "-o", tmp_path / "o")
    code, _, err = seepage("audit", victim, root, *arguments)
    assert code == 0, err
    lines = (tmp_path / "o" / "results.jsonl").read_text()
    assert '"status":"failed"' not in lines
    assert "sixteen.png" in lines


def test_a_sliver_among_pictures_costs_itself_alone_and_is_named(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    Image.new("RGB", (1, 5000)).save(folder / "0-sliver.png")
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff and nothing more")
    arguments = ("--attack", "rmle:steps=2", "--layer", "mix", "--metric", "mse", "-o", tmp_path / "o")
    for _ in range(2):  # the second time from the record
        code, _, err = seepage("audit", victim, folder, *arguments)
        assert code == 0, err
        assert "seepage: failed: 0-sliver.png: a picture of 1x5000" in err
        assert err.count("torn.jpg") == 1
    (line,) = (tmp_path / "o" / "results.jsonl").read_text().splitlines()
    assert line.count('"status":"failed"') == 2


def test_a_bomb_is_refused_before_decoding(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    arguments = ("--attack", "rmle:steps=2", "--layer", "mix", "--metric", "mse", "-o", tmp_path / "o")
    code, _, err = seepage("audit", victim, folder, *arguments)
    assert code == 0, err
    assert "bomb.png" in (tmp_path / "o" / "results.jsonl").read_text()
    code, _, err = seepage("audit", victim, folder / "bomb.png", *arguments[:-1], tmp_path / "p")
    assert code in (2, 3)
    assert "Traceback" not in err


def test_only_unreadable_pictures(victim: str, tmp_path: Path, seepage: Run) -> None:
    root = tmp_path / "bad"
    root.mkdir()
    (root / "text.jpg").write_text("I am text")
    code, _, err = seepage("audit", victim, root, "--attack", "rmle:steps=2", "--layer", "mix", "-o", tmp_path / "o")
    assert code == 2
    assert "text.jpg" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "seepage", "audit", "zoo/none", "--debug", "-o", str(tmp_path / "o")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" in ran.stderr
    assert ran.returncode != 0


def test_no_argument_at_all_is_answered_with_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    said = capfd.readouterr()
    assert len(said.out.splitlines()) > 10
    assert said.err == ""


def test_a_report_of_nothing_is_refused(tmp_path: Path, seepage: Run) -> None:
    (tmp_path / "results.jsonl").touch()
    code, _, err = seepage("report", tmp_path)
    assert code == 2
    assert "no finished cell" in err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_stdout_that_cannot_say_it_ends_nothing(encoding: str, victim: str, folder: Path, tmp_path: Path) -> None:
    out = os.fsencode(tmp_path) + b"/caf\xe9"
    command = [sys.executable, "-m", "seepage", "audit", victim, str(folder), "--layer", "mix", "--metric", "mse"]
    command += ["--attack", "rmle:steps=2", "-o", os.fsdecode(out)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert os.path.exists(out + b"/report.html")
    if encoding == "utf-8":
        assert ran.stdout.splitlines()[-1] == out + b"/report.html"


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_stream_ends_nothing(closed: str, victim: str, folder: Path, tmp_path: Path) -> None:
    command = f'exec "$0" -m seepage audit "$@" {closed}'
    arguments = [victim, str(folder), "--layer", "mix", "--metric", "mse", "--attack", "rmle:steps=2"]
    asked = ["sh", "-c", command, sys.executable, *arguments, "-o", str(tmp_path / "o")]
    ran = subprocess.run(asked, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "o" / "report.html").exists()


def test_a_spec_file_serves_and_options_win(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    spec = tmp_path / "audit.yaml"
    spec.write_text(
        f"victim: {victim}\nimages: {folder}\nlayers: mix\nattacks: ['rmle:steps=3']\nmetrics: [mse, psnr]\nseed: 5\n"
    )
    code, _, err = seepage("audit", "--spec", spec, "--seed", "7", "-o", tmp_path / "o")
    assert code == 0, err
    lines = (tmp_path / "o" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 1
    assert '"seed":7' in lines[0]
    assert '"layer":"mix"' in lines[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("layer: mix", "'layers'"),
        ("- mix", "mapping"),
        ("limit: many", "limit"),
        ("a: [", "--spec"),
        ("effort: x", "quick"),
    ],
)
def test_a_bad_spec_file(content: str, expected: str, tmp_path: Path, seepage: Run) -> None:
    (tmp_path / "audit.yaml").write_text(content)
    code, _, err = seepage("audit", "--spec", tmp_path / "audit.yaml", "-o", tmp_path / "o")
    assert code == 2
    assert expected in err
    assert len(err.splitlines()) == 1
