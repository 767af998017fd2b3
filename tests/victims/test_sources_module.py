"""A user's own network: found by package or file, run under the seed, every mistake one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from seepage import victims
from seepage.types import SeepageError

GOOD = """
import random
import numpy as np
import torch
from torch import nn
from neighbour import WIDTH

def network():
    model = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.Dropout(0.5), nn.ReLU())
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([random.random(), np.random.rand()]))
    model.train()
    return model

network.image_shape = (3, 24, 40)

class Carrying(nn.Module):
    image_shape = [3, 32, 32]
    classes = ("cat", "dog")
    def forward(self, x):
        return x.mean((2, 3))

def carrying():
    return Carrying()

def plain():
    return nn.Flatten()

def number():
    return 3

def fails():
    raise KeyError("no such\\nthing")

def leaves():
    raise SystemExit(3)

def poisoned():
    model = nn.Linear(2, 2)
    model.weight.data[0, 0] = float("nan")
    return model

def small():
    model = nn.Flatten()
    model.image_shape = (1, 28, 28)
    return model

not_a_function = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 2\n")
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    sys.modules.pop("neighbour", None)
    return path


def test_a_files_function_is_a_victim(file: Path) -> None:
    path = list(sys.path)
    victim = victims.load(f"module/{file}:network")
    assert victim.name == f"module/{file}:network"
    assert f"module/{file}".startswith("module//")
    assert victim.image_shape == (3, 24, 40)
    assert not victim.model.training
    assert isinstance(victim.normalise, nn.Identity)
    assert (victim.boundaries, victim.defaults, victim.classes) == (None, None, None)
    assert sys.path == path


def test_the_module_may_carry_its_shape_and_classes(file: Path) -> None:
    victim = victims.load(f"module/{file}:carrying")
    assert victim.image_shape == (3, 32, 32)
    assert victim.classes == ("cat", "dog")
    assert victims.load(f"module/{file}:plain").image_shape == (3, 224, 224)
    assert victims.load(f"module/{file}:plain", size=48).image_shape == (3, 48, 48)


def test_a_picture_is_cropped_to_the_shape_and_never_stretched(file: Path) -> None:
    victim = victims.load(f"module/{file}:network")
    wide = Image.new("RGB", (400, 24))
    wide.paste((255, 0, 0), (180, 0, 220, 24))
    assert torch.equal(victim.picture(wide), torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 24, 40))
    assert victim.picture(Image.new("RGB", (1, 1), (0, 51, 255))).flatten(1).mean(1).tolist() == pytest.approx(
        [0, 0.2, 1]
    )


def test_the_function_runs_under_the_seed(file: Path) -> None:
    first, again = (victims.load(f"module/{file}:network@random") for _ in range(2))
    other = victims.load(f"module/{file}:network@random:1")
    assert first.name == f"module/{file}:network@random:0"
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256


def test_a_file_of_weights_goes_into_it(file: Path, tmp_path: Path) -> None:
    other = victims.load(f"module/{file}:network@random:1")
    save_file(other.model.state_dict(), tmp_path / "w@1.safetensors")
    victim = victims.load(f"module/{file}:network@{tmp_path}/w@1.safetensors")
    assert victim.weights_sha256 == other.weights_sha256
    assert victim.name == f"module/{file}:network@{tmp_path}/w@1.safetensors"


def test_a_packages_function_is_a_victim(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = file.parent / "package_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "networks.py").write_text("from torch import nn\ndef flat():\n    return nn.Flatten()\n")
    monkeypatch.chdir(file.parent)
    victim = victims.load("module/package_of_mine.networks:flat")
    assert isinstance(victim.model, nn.Flatten)
    with pytest.raises(victims.UnknownVictimError, match=r"no module is called 'package_of_mine\.network'"):
        victims.load("module/package_of_mine.network:flat")
    (package / "broken.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(SeepageError, match="raised ModuleNotFoundError: No module named 'a_package_that_is_not_there'"):
        victims.load("module/package_of_mine.broken:flat")


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        ("netwrk", "has no function 'netwrk'; did you mean 'network'"),
        ("not_a_function", "has a int, no function, 'not_a_function'"),
        ("number", "returned a int; expected a torch.nn.Module"),
        ("fails", "raised KeyError: 'no such"),
        ("leaves", "raised SystemExit: 3"),
        ("small", r"image_shape is (3, height, width), got (1, 28, 28)"),
        ("network@v2", "has no weights 'v2'"),
        ("network@missing.pt", "no weights file missing.pt"),
    ],
)
def test_each_mistake_is_one_line(file: Path, function: str, hint: str) -> None:
    with pytest.raises(SeepageError) as caught:
        victims.load(f"module/{file}:{function}")
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_users_code_raised_stays_chained(file: Path) -> None:
    with pytest.raises(SeepageError) as caught:
        victims.load(f"module/{file}:fails")
    assert isinstance(caught.value.__cause__, KeyError)


ANNOTATED = """
from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, get_type_hints

from torch import nn

@dataclass
class Plan:
    kind: ClassVar[str] = "flat"
    _: KW_ONLY
    start: int = 1

def network():
    return nn.Flatten(get_type_hints(Plan)["start"](Plan(start=1).start))
"""


def test_a_file_may_hold_a_dataclass_under_postponed_annotations(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(ANNOTATED)
    assert isinstance(victims.load(f"module/{tmp_path}/mine.py:network").model, nn.Flatten)


def test_files_of_one_name_do_not_meet_and_hide_no_module(tmp_path: Path) -> None:
    for kind in ("ReLU", "Flatten"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "json.py").write_text(f"from torch import nn\nclass Own(nn.{kind}): pass\n")
    import json

    found = [type(victims.load(f"module/{tmp_path}/{kind}/json.py:Own").model) for kind in ("ReLU", "Flatten")]
    assert [one.__base__ for one in found] == [nn.ReLU, nn.Flatten]
    assert all(sys.modules[one.__module__].Own is one for one in found)
    assert sys.modules["json"] is json


def test_a_file_that_fails_leaves_the_modules_as_they_were(tmp_path: Path) -> None:
    def run(text: str) -> dict[str, object]:
        (tmp_path / "mine.py").write_text(text)
        if text == ANNOTATED:
            victims.load(f"module/{tmp_path}/mine.py:network")
        else:
            with pytest.raises(SeepageError, match="raised KeyError"):
                victims.load(f"module/{tmp_path}/mine.py:network")
        return {name: module for name, module in sys.modules.items() if getattr(module, "__file__", 0) == module_file}

    module_file = str(tmp_path / "mine.py")
    assert run("raise KeyError(3)\n") == {}
    good = run(ANNOTATED)
    assert len(good) == 1
    assert run("raise KeyError(3)\n") == good


def test_files_that_cannot_be_run_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(victims.UnknownVictimError, match=r"no file nowhere\.py; expected module/"):
        victims.load("module/nowhere.py:network")
    (tmp_path / "torn.py").write_text("def network(:\n")
    with pytest.raises(SeepageError, match=r"torn\.py raised SyntaxError"):
        victims.load(f"module/{tmp_path}/torn.py:network")
