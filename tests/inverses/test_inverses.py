"""Each rule on blocks whose input is known, and on what is known of a segment beforehand."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from known_blocks import noise, relative, seeded, segment
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock
from torchvision.models.efficientnet import MBConv, MBConvConfig
from torchvision.models.mobilenetv2 import InvertedResidual

from seepage import registry
from seepage.inverses import Generic, IdentityResidual, Split, Target, rule, steps
from seepage.solvers.anderson import Anderson
from seepage.types import Prefix, Segment
from seepage.victims.cifar import PreActivationBlock
from seepage.victims.faces import FaceResidual


class Added(nn.Module):
    """y = x + W2 relu(W1 x), its ReLU in place, as the paper writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 9, bias=False), nn.Linear(9, 6, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.relu(self.first(x)))


def test_a_kind_has_its_own_rule_or_falls_back_by_name():
    for kind in ("pre-activation", "linear-bottleneck", "convnext", "face-residual"):
        assert rule(kind) == (kind, IdentityResidual())
    assert rule("dense") == ("generic", Generic())
    assert rule(None) == ("generic", Generic())
    assert registry.spec("inverse", IdentityResidual()) == "pre-activation:history=8,tolerance=1e-06"


def test_the_rule_that_the_page_shows_is_one(monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "peel.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setattr(registry, "_components", {kind: dict(names) for kind, names in registry._components.items()})
    module = ModuleType("peel_page")
    monkeypatch.setitem(sys.modules, "peel_page", module)
    exec(compile(code, "peel.md", "exec"), module.__dict__)
    name, inverse = rule("downsample")
    assert name == "downsample"
    layer = seeded(nn.Linear(4, 4), 8)
    x = noise(2, 4)
    y = layer(x)
    found = inverse.invert(segment(layer, (4,), "downsample"), Target(y, y), 300)
    assert relative(found, x).max() < 1e-2


@pytest.mark.parametrize("kind", ["pre-activation", "convnext", "transformer", "face-residual", "linear-bottleneck"])
def test_every_identity_residual_of_small_slope_comes_back_to_float_precision(kind):
    blocks: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "pre-activation": (PreActivationBlock(8, 8, 1), (8, 12, 12)),
        "convnext": (CNBlock(8, 0.5, 0.0), (8, 12, 12)),
        "transformer": (Block(12, 3), (10, 12)),
        "face-residual": (FaceResidual(8, 8, 1), (8, 12, 12)),
        # EfficientNet's: SiLU, and squeeze and excitation.
        "linear-bottleneck": (MBConv(MBConvConfig(4, 3, 1, 8, 8, 1), 0.0, nn.BatchNorm2d), (8, 12, 12)),
    }
    module, shape = blocks[kind]
    block = segment(seeded(module, 3, 0.4 if kind in ("pre-activation", "face-residual") else 0.5).eval(), shape, kind)
    x = noise(3, *shape)
    y = block.module(x)
    solution = rule(kind)[1].invert(block, Target(y, y), 150)
    assert relative(y, x).min() > 0.05, "the start must be away, or a rule that does nothing would pass"
    assert relative(solution, x).max() <= 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_an_invertible_linear_bottleneck_comes_back_to_float_precision(seed):
    block = segment(seeded(InvertedResidual(8, 8, 1, 6), seed, 0.7), (8, 12, 12), "linear-bottleneck")
    x = noise(3, 8, 12, 12)
    y = block.module(x)
    solution = rule(block.kind)[1].invert(block, Target(y, y), 120)
    assert relative(y, x).min() > 0.2, "the start must be far away, or a rule that does nothing would pass"
    assert relative(solution, x).max() <= 1e-5
    assert {status.kind for status in solution.status} == {"converged"}
    assert solution.passes.max() <= 40


def test_where_the_fixed_point_is_lost_the_second_solver_takes_over():
    linear = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False))
    # y = A x with eigenvalues of both signs around zero: x <- x - (A x - y) cannot contract.
    linear[0].weight.data = torch.diag(torch.tensor([3.0, -2.0, 1.0, 0.5])).view(4, 4, 1, 1)
    block = segment(linear, (4, 5, 5), "linear-bottleneck")
    x = noise(2, 4, 5, 5)
    y = block.module(x)
    poor = IdentityResidual(history=1).invert(block, Target(y, y), 200)
    assert relative(poor, x).max() < 1e-5
    assert poor.passes.min() > 18, "the first solver must have been tried"


def test_a_bottleneck_that_reshapes_is_fitted_by_least_squares():
    # Biases between the two kinks of ReLU6: the block is nearly linear, and four times as wide as its input.
    block = segment(seeded(InvertedResidual(4, 16, 1, 6), 1, 0.5, bias=3.0), (4, 8, 8), "linear-bottleneck")
    x = noise(2, 4, 8, 8)
    y = block.module(x)
    solution = rule(block.kind)[1].invert(block, Target(y, torch.zeros_like(x)), 500)
    assert solution.residual.max() < 1e-3
    assert relative(solution, x).max() < 1e-2
    residual = relative(block.module(solution.x), y)
    assert torch.allclose(residual, solution.residual, atol=1e-6), "the residual is the segment's, relative"


def test_the_generic_rule_equals_linear_least_squares():
    layer = seeded(nn.Linear(5, 9), 2)
    block = segment(layer, (5,))
    y = noise(3, 9)
    solution = Generic().invert(block, Target(y, torch.zeros(3, 5)), 400)
    direct = torch.linalg.lstsq(layer.weight.expand(3, 9, 5), (y - layer.bias)[..., None]).solution[..., 0]
    assert relative(solution, direct).max() < 1e-3


def test_the_generic_rule_keeps_to_the_bounds():
    layer = seeded(nn.Linear(5, 9), 2)
    solution = Generic().invert(segment(layer, (5,)), Target(noise(3, 9), torch.zeros(3, 5), 0.0, 0.2), 200)
    assert isinstance(solution.x, Tensor)
    assert solution.x.min() == 0
    assert solution.x.max() == pytest.approx(0.2)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_start_that_is_nearly_right_is_not_lost(size):
    for share in (1e-8, 1e-3):
        layer = seeded(nn.Linear(6, 6, bias=False), 9, share)
        layer.weight.data += torch.eye(6)
        block = segment(layer, (6,))
        x = size * noise(3, 6)
        y = block.module(x)
        solution = Generic().invert(block, Target(y, y), 60)
        assert relative(solution, x).max() <= max(0.1 * float(relative(y, x).max()), 2e-6)
        assert {status.kind for status in solution.status} <= {"converged", "stopped"}


def test_what_the_features_leave_open_the_prior_decides():
    block = segment(nn.AvgPool2d(2), (1, 4, 4))
    x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
    y = block.module(x)

    def energy(given: Tensor) -> Tensor:
        return 1e-2 * given.flatten(1).square().sum(1)

    start = noise(1, 1, 4, 4)
    free = Generic().invert(block, Target(y, start, identified=False), 600)
    least = Generic().invert(block, Target(y, start, prior=energy, identified=False), 600)
    # Of all pictures with these means the one that is constant over each window is shortest.
    shortest = nn.functional.interpolate(y, scale_factor=2)
    assert relative(least, shortest).max() < 0.05
    assert relative(free, shortest).max() > 0.2


def test_rows_that_cannot_be_solved_fail_alone():
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.1 * (x + 4).sqrt()

    block = segment(Root(), (6,), "linear-bottleneck")
    x = noise(2, 6).clamp(-1, 1)
    y = block.module(x)
    y[1] -= 50
    for inverse in (IdentityResidual(), Generic()):
        solution = inverse.invert(block, Target(y, y), 80)
        assert [status.kind for status in solution.status] == ["converged", "failed"]
        assert "finite" in solution.status[1].message
        assert relative(solution, x)[0] < 1e-5


def test_no_rule_runs_a_segment_more_often_than_it_may():
    runs = 0

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal runs
        runs += 1

    block = segment(seeded(InvertedResidual(4, 4, 1, 6), 5, 3.0), (4, 6, 6), "linear-bottleneck")
    block.module.register_forward_pre_hook(count)
    y = block.module(noise(2, 4, 6, 6))
    for inverse in (IdentityResidual(), Generic(), Split()):
        for passes in (40, 100):
            runs = 0
            solution = inverse.invert(block, Target(y, y), passes)
            assert 0 < solution.passes.max() <= passes, inverse
            assert runs <= passes, inverse


def test_the_split_problem_has_its_zero_at_the_truth_and_finds_it():
    block = segment(seeded(Added(), 4, 0.5), (6,))
    x = noise(4, 6)
    y = block.module(x)
    solution = Split().invert(block, Target(y, y), 1500)
    assert relative(y, x).min() > 0.1
    assert relative(solution, x).max() < 1e-2
    at_truth = Split().invert(block, Target(y, x), 4)
    assert relative(at_truth, x).max() < 1e-6, "the truth is a stationary point"


def test_the_split_problem_with_a_ceiling_and_a_relu_that_fires_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU6(inplace=True)
            self.layer = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return x + 0.2 * self.relu(self.layer(self.relu(self.layer(4 * x))))

    block = segment(seeded(Twice(), 6), (5,))
    x = noise(3, 5)
    y = block.module(x)
    before = {name: value.clone() for name, value in block.module.state_dict().items()}
    solution = Split().invert(block, Target(y, y), 1500)
    assert (relative(solution, x) < relative(y, x) / 2).all()
    assert not block.module.relu._forward_hooks
    assert not block.module.relu._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in block.module.state_dict().items())


class Chain(Prefix):
    """Segments called in turn."""

    def __init__(self, *modules: nn.Module, image_shape: tuple[int, ...] = (3, 8, 8)) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules).eval().requires_grad_(False)
        found, shape = [], image_shape
        for index, module in enumerate(self.parts):
            found.append(Segment(f"part.{index}", None, module, shape, segment(module, shape).out_shape))
            shape = found[-1].out_shape
        self._segments = tuple(found)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self._segments

    def forward(self, images: Tensor) -> Tensor:
        for part in self.parts:
            images = part(images)
        return images


class Activated(nn.Module):
    """A convolution and what comes after it."""

    def __init__(self, given: int, channels: int, after: nn.Module, *, shift: float = 0.0) -> None:
        super().__init__()
        # Registered first, as residual blocks do: the order of modules is not the order of calls.
        self.after = after
        self.conv = nn.Conv2d(given, channels, 3, padding=1)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.conv(x)) - self.shift


def test_bounds_are_those_of_the_activation_that_a_segment_really_ends_in():
    modules = (
        Activated(3, 4, nn.ReLU6(inplace=True)),
        Activated(4, 4, nn.ReLU(inplace=True)),
        Activated(4, 4, nn.ReLU(), shift=1.0),
        Activated(4, 2, nn.BatchNorm2d(2)),
        nn.Flatten(),
    )
    prefix = Chain(*modules)
    found = steps(prefix, torch.full((1, 3, 8, 8), 0.5))
    assert [(step.lower, step.upper) for step in found] == [(0, 1), (0, 6), (0, None), (None, None), (None, None)]
    assert [step.first for step in found] == [True, False, False, False, False]
    assert [step.loses for step in found] == [False, False, False, True, False]
    assert [step.reshapes for step in found] == [True, False, False, True, True]
    expected = torch.full((1, 3, 8, 8), 0.5)
    for step, module in zip(found, modules):
        assert torch.equal(step.grey, expected)
        expected = module(expected)


def trained_skip_blocks(images: Tensor) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Name, block and what the trained MobileNetV2 gives it, for each block that adds its input."""
    from torchvision.models import mobilenet_v2

    from seepage import assets

    network = mobilenet_v2().eval().requires_grad_(False)
    network.load_state_dict(torch.load(assets.fetch("mobilenet_v2"), weights_only=True))
    x = images
    for name, module in network.features.named_children():
        if isinstance(module, InvertedResidual) and module.use_res_connect:
            yield name, module, x
        x = module(x)


@pytest.mark.assets
@pytest.mark.slow
def test_trained_blocks_are_fitted_in_isolation_and_come_nearer():
    solved, fitted, shown = 0, 0, []
    for name, module, x in trained_skip_blocks(noise(1, 3, 96, 96)):
        y = module(x)
        block = segment(module, tuple(x.shape[1:]), "linear-bottleneck")
        solution = IdentityResidual().invert(block, Target(y, y), 240)
        error, residual = float(relative(solution, x)), float(solution.residual)
        shown.append(f"{name}: error {error:.1e}, residual {residual:.1e}, {int(solution.passes)} passes")
        solved += error <= 1e-5
        fitted += residual < 0.1
        assert residual < float(relative(module(y), y)), shown[-1]
    print(f"{solved} of {len(shown)} blocks to 1e-5; {fitted} fit to a tenth\n" + "\n".join(shown))
    assert len(shown) == 10
    assert fitted >= 9


@pytest.mark.assets
def test_trained_blocks_are_not_one_to_one():
    """Why no solver can do it in isolation: other inputs, far away, give the same to ten digits."""
    twins = []
    for name, module, x in trained_skip_blocks(noise(1, 3, 96, 96)):
        if name in ("5", "8", "10"):
            block, given = copy.deepcopy(module).double(), x.double()
            y = block(given)
            solver = Anderson(steps=300, patience=80, tolerance=1e-10)
            solution = solver.solve(lambda a, b, block=block: block(a) - b, y, y)
            if relative(block(solution.x), y) < 1e-8 and relative(solution, given) > 0.1:
                twins.append(name)
    assert twins
