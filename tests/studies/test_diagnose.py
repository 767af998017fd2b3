from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from seepage import seeding, victims
from seepage.cli import run
from seepage.priors.dead_leaves import dead_leaves
from seepage.studies.diagnose import EXACT_UP_TO, diagnose, spectrum

VICTIM = '''
import torch
from torch import nn


class Copy(nn.Module):
    """y = x + 0.25 * (the picture upside down)."""

    def forward(self, x):
        return x + 0.25 * x.flip(2)


def blocks():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(192, 192, generator=generator))[0] for _ in range(2))
    linear = nn.Linear(192, 192)
    with torch.no_grad():
        linear.weight.copy_(left @ torch.diag(torch.linspace(0.5, 3.0, 192)) @ right)
    return nn.Sequential(Copy(), nn.Flatten(), linear, nn.ReLU(), nn.Linear(192, 24))


blocks.image_shape = (3, 8, 8)
'''


class Scale(nn.Module):
    """A diagonal map of known singular values."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        return x * self.values


def orthogonal(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]


@pytest.fixture
def victim(tmp_path: Path) -> str:
    path = tmp_path / "blocks.py"
    path.write_text(VICTIM)
    return f"module/{path}:blocks"


def test_a_linear_block_has_the_singular_values_it_was_made_of() -> None:
    values = torch.linspace(0.02, 5.0, 60)
    block = nn.Linear(60, 80)
    with torch.no_grad():
        block.weight.copy_(orthogonal(80, 0)[:, :60] @ torch.diag(values) @ orthogonal(60, 1))
    found = spectrum(block, torch.randn(1, 60, generator=torch.Generator().manual_seed(2)))
    assert found.exact
    assert found.largest == pytest.approx(5.0, rel=1e-3)
    assert found.smallest == pytest.approx(0.02, rel=1e-3)
    assert found.condition == pytest.approx(250.0, rel=1e-3)


def test_a_curved_block_is_judged_where_it_stands() -> None:
    """The slopes of x^2 are 2 x."""
    x = torch.tensor([[0.5, 1.0, 3.0]])
    found = spectrum(_Square(), x)
    assert (found.smallest, found.largest) == pytest.approx((1.0, 6.0), rel=1e-5)


def test_a_large_block_gets_bounds_that_hold() -> None:
    values = torch.linspace(0.1, 2.0, EXACT_UP_TO + 500)
    block = Scale(values)
    x = torch.ones(1, len(values))
    found = spectrum(block, x)
    assert not found.exact
    assert found.largest <= 2.0 * (1 + 1e-5)
    assert found.largest == pytest.approx(2.0, rel=1e-2)
    assert found.smallest >= 0.1 * (1 - 1e-5)
    more, less = spectrum(block, x, steps=150), spectrum(block, x, steps=10)
    assert more.smallest < found.smallest < less.smallest
    assert less.condition < found.condition < more.condition <= 20 * (1 + 1e-4)


def test_few_distinct_values_are_found_by_as_many_steps() -> None:
    values = torch.tensor([0.25, 1.0, 4.0]).repeat(400)
    found = spectrum(Scale(values), torch.ones(1, 1200), steps=12)
    assert not found.exact
    assert (found.smallest, found.largest) == pytest.approx((0.25, 4.0), rel=1e-3)


@pytest.mark.parametrize("count", [20, EXACT_UP_TO + 76])
def test_a_block_that_loses_dimensions_has_a_zero_whatever_its_weights(count: int) -> None:
    block = nn.AvgPool1d(2)
    found = spectrum(block, torch.rand(1, 1, count, generator=torch.Generator().manual_seed(0)))
    assert found.largest == pytest.approx(0.5**0.5, rel=1e-3)
    assert (found.smallest, found.exact) == (0.0, count == 20)
    assert math.isinf(found.condition)


def test_the_blocks_of_a_victim(victim: str) -> None:
    loaded = victims.load(victim)
    copy, flatten, linear, relu, head = diagnose(loaded)
    assert [block.name for block in (copy, flatten, linear, relu, head)] == ["0", "1", "2", "3", "4"]
    picture = dead_leaves(1, (3, 8, 8), seeding.generator(0, "control", "diagnose"))
    noise = float((0.25 * picture.flip(2)).norm() / picture.norm())
    assert copy.copy_noise == pytest.approx(noise, rel=1e-5)
    # The identity and a flip share eigenvectors, with eigenvalues 1 and -1 of the flip.
    assert (copy.spectrum.smallest, copy.spectrum.largest) == pytest.approx((0.75, 1.25), rel=1e-4)
    assert (copy.invertible, copy.loses, copy.rule) == (True, False, "pre-activation")
    assert flatten.copy_noise is None
    assert flatten.spectrum.condition == pytest.approx(1.0)
    assert linear.spectrum.condition == pytest.approx(6.0, rel=1e-3)
    assert relu.spectrum.smallest == 0.0
    assert (relu.invertible, relu.loses) == (False, False)
    assert (head.inputs, head.outputs, head.loses, head.invertible) == (192, 24, True, False)


@pytest.mark.parametrize(
    ("name", "shortcut"), [("torchvision/resnet18@random:0", "downsample"), ("zoo/cifar_resnet20", "shortcut")]
)
def test_a_shortcut_that_reshapes_is_taken_before_the_noise(name: str, shortcut: str) -> None:
    loaded = victims.load(name, size=32) if "resnet18" in name else victims.load(name)
    found = {block.name: block.copy_noise for block in diagnose(loaded, steps=2)}
    picture = dead_leaves(1, loaded.image_shape, seeding.generator(0, "control", "diagnose"))
    block = loaded.model.get_submodule("layer2.0")
    seen: list[torch.Tensor] = []
    hook = block.register_forward_hook(lambda _, given, made: seen.extend((given[0].clone(), made.clone())))
    with torch.no_grad():
        loaded.model(loaded.normalise(picture))
    hook.remove()
    x, y = seen
    with torch.no_grad():
        by_hand = (y - block.get_submodule(shortcut)(x)).norm() / x.norm()
    assert found["layer2.0"] == pytest.approx(float(by_hand), rel=1e-4)
    assert found["layer2.1"] is not None
    assert found["maxpool" if "resnet18" in name else "linear"] is None


def test_another_seed_is_another_picture() -> None:
    loaded = victims.load("zoo/cifar_resnet20")
    first, again, other = (
        [block.copy_noise for block in diagnose(loaded, steps=2, seed=seed) if block.copy_noise is not None]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert any(abs(one - another) > 0.01 * one for one, another in zip(first, other, strict=True))


def test_the_command_prints_it(victim: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["layers", victim]) == 0
    plain = capsys.readouterr().out
    assert run(["layers", victim, "--diagnose"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(plain.rstrip())
    rows = {line.split()[0]: line.split() for line in said[len(plain) :].splitlines() if line.strip()}
    assert rows["2"][1:5] == ["head", "192", "192", rows["2"][4]]
    assert rows["2"][5:] == ["3", "0.5", "6", "yes"]
    assert rows["4"][-1] == "loses"
    assert rows["3"][-1] == "no"
    assert "estimate" in said
    assert "|y - S(x)| / |x|" in " ".join(said.split())


def test_json_carries_it_beside_the_cut(victim: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["layers", victim, "--diagnose", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out, parse_constant=_refuse)
    assert [row["name"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert rows[2]["shape"] == [192]
    assert rows[2]["diagnosis"]["condition"] == pytest.approx(6.0, rel=1e-3)
    assert rows[2]["diagnosis"]["estimate"] is False
    assert (rows[4]["diagnosis"]["loses"], rows[4]["diagnosis"]["condition"]) == (True, "Infinity")
    assert run(["layers", victim, "--json"]) == 0
    assert "diagnosis" not in capsys.readouterr().out


def test_a_registered_rule_is_named_and_large_blocks_are_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["layers", "torchvision/mobilenet_v2@random", "--size", "32", "--diagnose", "--json"]) == 0
    rows = {row["name"]: row["diagnosis"] for row in json.loads(capsys.readouterr().out)}
    assert rows["features.3"]["rule"] == "linear-bottleneck"
    assert rows["features.0"]["rule"] == "stem"
    assert rows["features.3"]["estimate"]
    assert rows["features.3"]["invertible"] is None
    assert rows["features.17"]["estimate"] is False


class _Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")
