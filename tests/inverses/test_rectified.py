"""Blocks that end in a ReLU: equations and inequalities, alone and behind a max-pooling."""

from __future__ import annotations

import pytest
import torch
from known_blocks import noise, relative, seeded, segment
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck

from seepage.inverses import Generic, Target, rule, serving, steps
from seepage.inverses.ending import ending, pooled, roofs
from seepage.inverses.rectified import Rectified
from seepage.types import Prefix, Segment
from seepage.victims import load
from seepage.victims.cifar import PostActivationBlock
from seepage.victims.cut import cut


@pytest.mark.parametrize("block", [PostActivationBlock(4, 4, 1), BasicBlock(4, 4), Bottleneck(4, 1)])
def test_the_last_call_of_a_relu_is_found_and_what_it_is_given(block):
    block = seeded(block).eval()
    x = noise(2, 4, 6, 6)
    kept = x.clone()
    end = ending(block, x)
    assert end is not None
    z = end.before(x)
    assert z.min() < -0.1
    assert torch.equal(z.relu(), block(x))
    assert torch.equal(x, kept), "a block in place must not change its input"
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in block.modules())


def test_what_is_missed_is_zero_where_the_output_is_explained_and_only_there():
    end = ending(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU6()).eval(), noise(1, 1, 2, 2))
    assert end is not None
    y = torch.tensor([[[[0.0, 0.0, 2.0, 2.0, 6.0, 6.0]]]])
    z = torch.tensor([[[[-3.0, 1.0, 2.5, -1.0, 9.0, 5.0]]]])
    assert end.missed(z, y, None).tolist() == [[0.0, 1.0, 0.5, -3.0, 0.0, -1.0]]


def test_roofs_are_the_largest_input_of_a_max_pooling():
    for pool in (
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 1, dilation=2),
        nn.MaxPool2d(2, ceil_mode=True),
    ):
        z = noise(2, 3, 9, 9)
        y = pool(z)
        found = roofs(pool, z, y)
        assert (found >= z).all()
        assert torch.equal(pooled(pool, found), y)
        # Any place that a window covers, raised above its roof, changes some maximum.
        for place in ((0, 0), (4, 5), (7, 7)):
            if torch.isfinite(found[0, 0][place]):
                higher = found.clone()
                higher[0, 0][place] += 0.1
                assert not torch.equal(pool(higher), y)


def test_a_stem_comes_back_to_float_precision_between_its_bounds():
    stem = seeded(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True)), 1)
    part = segment(stem, (3, 10, 10), "stem")
    x = noise(2, 3, 10, 10).mul(0.2).add(0.5).clamp(0, 1)
    y = part.module(x)
    assert (y == 0).float().mean() > 0.2
    solution = Rectified().invert(part, Target(y, torch.full_like(x, 0.5), 0.0, 1.0), 300)
    assert relative(solution, x).max() < 1e-5
    assert {status.kind for status in solution.status} == {"converged"}
    assert solution.passes.max() <= 300


def test_dead_outputs_pull_an_input_that_killed_all_of_them():
    """At the start every output is dead: |relu(z) - y|^2 is flat, and its solver stays."""
    layer = nn.Linear(4, 8)
    seeded(layer, 2)
    layer.weight.data.abs_()
    part = segment(nn.Sequential(layer, nn.ReLU()), (4,), "conv")
    x = noise(1, 4).abs()
    y = part.module(x)
    start = torch.full_like(x, -20.0)
    assert part.module(start).max() == 0
    assert Generic().invert(part, Target(y, start), 200).residual.min() == 1
    assert relative(Rectified().invert(part, Target(y, start), 200), x).max() < 1e-3


@pytest.mark.parametrize("made", [PostActivationBlock(4, 4, 1), BasicBlock(4, 4), Bottleneck(4, 1)])
def test_a_post_activation_block_of_small_slope_is_explained_and_comes_nearer(made):
    block = segment(seeded(made, 5, 0.5), (4, 5, 5), "post-activation")
    x = noise(2, 4, 5, 5, seed=8).relu()
    y = block.module(x)
    name, inverse = serving(block)
    assert name == "post-activation"
    solution = inverse.invert(block, Target(y, y, 0.0), 150)
    assert solution.residual.max() < 1e-3
    assert (relative(solution, x) < 0.7 * relative(y, x)).all()
    assert torch.allclose(relative(block.module(solution.x), y), solution.residual, atol=1e-6)


def test_an_exact_target_is_followed_though_the_block_shrinks():
    block = segment(seeded(PostActivationBlock(4, 8, 2), 5, 0.5), (4, 6, 6), "post-activation")
    x = noise(1, 4, 6, 6).relu()
    y = block.module(x)

    def energy(given: torch.Tensor) -> torch.Tensor:
        return given.flatten(1).square().sum(1) / 10

    followed, held = (
        Rectified().invert(block, Target(y, torch.zeros_like(x), 0.0, None, energy, False, exact), 150)
        for exact in (True, False)
    )
    assert followed.residual.max() < 1e-2
    assert held.residual.min() > 5 * followed.residual.max()


def test_a_block_without_a_relu_at_its_end_is_left_to_another_rule():
    bottleneck = segment(seeded(InvertedResidual(4, 4, 1, 6), 1), (4, 6, 6), "conv")
    assert not Rectified().fits(bottleneck)
    assert serving(bottleneck)[0] == "generic"
    assert rule("conv") == ("conv", Rectified())


class Parts(Prefix):
    """A stem, its activation and pooling in segments of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = seeded(nn.Conv2d(3, 16, 3, padding=1), 3)
        found, shape = [], (3, 8, 8)
        for kind, module in (("stem", self.conv), (None, nn.ReLU()), ("pool", nn.MaxPool2d(2))):
            found.append(segment(module, shape, kind))
            shape = found[-1].out_shape
        self._segments = tuple(found)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self._segments

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for part in self._segments:
            images = part.module(images)
        return images


def test_a_stem_is_walked_together_with_its_activation_and_pooling():
    prefix = Parts()
    (step,) = steps(prefix, torch.full((1, 3, 8, 8), 0.5))
    assert step.segment.kind == "stem"
    assert (step.segment.in_shape, step.segment.out_shape) == ((3, 8, 8), (16, 4, 4))
    assert not step.loses
    x = noise(1, 3, 8, 8).mul(0.2).add(0.5).clamp(0, 1)
    y = prefix(x)
    assert torch.equal(step.segment.module(x), y)
    assert serving(step.segment) == ("stem", Rectified())
    end = ending(step.segment.module, step.grey)
    assert end is not None
    z = end.before(x)
    above = end.roofs(z, y)
    assert above is not None
    assert end.missed(z, y, above).abs().max() == 0
    assert end.missed(z + 0.1, y, above).abs().max() > 0.09


class Written(nn.Module):
    """A stem as VGG and AlexNet write it: every step a module of its own, the activation in place."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(
            seeded(nn.Conv2d(3, 48, 3, padding=1), 3),
            *([seeded(nn.BatchNorm2d(48), 4)] if norm else []),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.features(images)
        return out


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])
def test_a_stem_that_writes_in_place_is_one_with_what_follows(norm, tmp_path):
    code = f"def build():\n    from test_rectified import Written\n    return Written({norm})\n"
    (tmp_path / "written.py").write_text(code)
    victim = load(f"module/{tmp_path / 'written.py'}:build", size=8)
    split = cut(victim, f"features.{2 + norm}")
    (step,) = steps(split.prefix, torch.full((1, 3, 8, 8), 0.5))
    assert step.segment.in_shape == (3, 8, 8)
    assert serving(step.segment) == ("stem", Rectified())
    x = noise(2, 3, 8, 8).mul(0.2).add(0.5).clamp(0, 1)
    kept = x.clone()
    y = split.prefix(x)
    assert torch.equal(step.segment.module(x), y)
    assert torch.equal(x, kept)
    nothing = torch.zeros(2)
    target = Target(y, torch.full_like(x, 0.5), 0.0, 1.0, lambda given: nothing, False, True)
    found = Rectified().invert(step.segment, target, 300)
    assert (relative(found, x) < 1e-4).all()  # alone, the pooling leaves three of four numbers open


@pytest.mark.parametrize(("activation", "plain"), [(nn.ReLU6(), True), (nn.ReLU(), False)])
def test_a_guess_between_two_kinks_is_fitted_as_it_is(activation, plain):
    """What a walk guessed lies on a kink of a ReLU6 too often to be read as an inequality; below a ReLU it helps."""
    stem = segment(nn.Sequential(seeded(nn.Conv2d(3, 8, 3, padding=1)), activation), (3, 6, 6), "stem")
    guessed = Target(activation(3 * noise(2, 8, 6, 6)), torch.full((2, 3, 6, 6), 0.5), 0.0, 1.0, None, False, False)
    ruled = Rectified().invert(stem, guessed, 40).x
    # Rectified spends one run on finding the ending.
    bare = Generic().invert(stem, guessed, 39).x
    assert torch.equal(ruled, bare) == plain
