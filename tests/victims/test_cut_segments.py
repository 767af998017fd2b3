"""Segments: called in turn they are the prefix, and each is a block where it can be."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seepage.types import Segment
from seepage.victims import Victim
from seepage.victims.cut import CutError, cut
from seepage.victims.layers import layers
from seepage.victims.preprocess import Normalise

SHAPE = (3, 8, 8)


def victim_of(model: Callable[[], nn.Module], boundaries: tuple[str, ...] | None = None, plain: bool = False) -> Victim:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = model().eval().requires_grad_(False)
    return Victim(
        name="module/tiny",
        model=built,
        normalise=nn.Identity() if plain else Normalise((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)),
        image_shape=SHAPE,
        picture=lambda image: torch.zeros(SHAPE),
        preprocessing="none",
        weights_sha256="0" * 64,
        boundaries=boundaries,
    )


def pictures(rows: int = 3) -> Tensor:
    return torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(5))


def run(segments: tuple[Segment, ...], features: Tensor) -> Tensor:
    for segment in segments:
        assert tuple(features.shape[1:]) == segment.in_shape
        features = segment.module(features)
        assert tuple(features.shape[1:]) == segment.out_shape
    return features


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


class Add(nn.Module):
    """x + F(x), with `last` applied after."""

    def __init__(self, width: int, last: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.last = nn.Identity() if last is None else last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.branch(x))


class Net(nn.Module):
    """Plain stem, blocks in a container, functional pooling, a head; some of them called with more than features."""

    class Scaled(nn.Module):
        def forward(self, x: Tensor, by: float, *, shift: Tensor) -> tuple[Tensor, None]:
            return x * by + shift, None

    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu_(x)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.ModuleList([Add(6), Add(6, nn.ReLU(inplace=True)), Add(6)])
        self.scaled = Net.Scaled()
        self.inplace = Net.InPlace()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        x, _ = self.scaled(x, 2.0, shift=torch.ones(1))
        x = self.inplace(x)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def victim() -> Victim:
    return victim_of(Net)


def test_segments_in_turn_are_the_prefix_at_every_legal_cut(victim: Victim) -> None:
    images = pictures()
    for layer in layers(victim, every=True):
        prefix = cut(victim, layer.name).prefix
        assert relative(run(prefix.segments, images), prefix(images)) <= 1e-5
        assert prefix.segments[0].in_shape == SHAPE
        assert prefix.segments[-1].out_shape == layer.shape
        assert prefix.segments[-1].name == layer.name


def test_every_segment_leads_from_one_cut_to_the_next(victim: Victim) -> None:
    images = pictures()
    segments = cut(victim, "head").prefix.segments
    for before, segment in itertools.pairwise(segments):
        given = cut(victim, before.name).prefix(images)
        kept = given.clone()
        assert relative(segment.module(given), cut(victim, segment.name).prefix(images)) <= 1e-5
        assert torch.equal(given, kept), f"{segment.name} changed its input"


def test_a_segment_is_its_block_where_that_is_all_there_is(victim: Victim) -> None:
    segments = {segment.name: segment for segment in cut(victim, "head").prefix.segments}
    for name, kind in {
        "blocks.0": "pre-activation",
        "blocks.1": "post-activation",
        "blocks.2": "pre-activation",
    }.items():
        assert segments[name].module is victim.model.get_submodule(name)
        assert segments[name].kind == kind
    assert next(iter(segments)) == "pool"
    assert segments["pool"].kind == "stem"
    assert victim.model.get_submodule("conv") in segments["pool"].module.modules()


def test_only_functional_code_runs_through_the_network(victim: Victim) -> None:
    segments = {segment.name: segment for segment in cut(victim, "head").prefix.segments}
    runs: list[str] = []
    victim.model.get_submodule("conv").register_forward_hook(lambda *_: runs.append("conv"))
    segments["blocks.1"].module(torch.rand(2, *segments["blocks.1"].in_shape))
    assert runs == []
    segments["head"].module(torch.rand(2, *segments["head"].in_shape))
    assert runs == ["conv"]
    assert segments["head"].kind is None


def test_what_else_a_module_is_called_with_is_kept() -> None:
    victim = victim_of(Net, boundaries=("pool", "scaled", "inplace"))
    segments = {segment.name: segment for segment in cut(victim, "inplace").prefix.segments}
    given = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(segments["scaled"].module(given), 2 * given + 1)
    kept = given.clone()
    torch.testing.assert_close(segments["inplace"].module(given), kept.relu())
    assert torch.equal(given, kept)


def test_gradients_pass_through_every_segment(victim: Victim) -> None:
    images = pictures().requires_grad_()
    prefix = cut(victim, "head").prefix
    (through,) = torch.autograd.grad(run(prefix.segments, images).square().sum(), images)
    (direct,) = torch.autograd.grad(prefix(images).square().sum(), images)
    torch.testing.assert_close(through, direct)


def test_stages_are_taken_apart_into_their_blocks() -> None:
    class Staged(nn.Module):
        class Stage(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = Add(3), Add(3)

            def forward(self, x: Tensor) -> Tensor:
                return self.second(self.first(x))

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Staged.Stage(), Staged.Stage()

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    segments = cut(victim_of(Staged, boundaries=("one", "two"), plain=True), "two").prefix.segments
    assert [segment.name for segment in segments] == ["one.first", "one", "two.first", "two"]
    assert {segment.kind for segment in segments} == {"pre-activation"}
    assert all(type(segment.module).__name__ == "Add" for segment in segments)


def test_a_normalisation_before_a_block_makes_it_none() -> None:
    blocks = lambda: nn.Sequential(Add(3), Add(3))  # noqa: E731
    assert [segment.kind for segment in cut(victim_of(blocks), "1").prefix.segments] == [None, "pre-activation"]
    alone = cut(victim_of(blocks, plain=True), "1").prefix.segments
    assert [segment.kind for segment in alone] == ["pre-activation", "pre-activation"]


def test_a_cut_before_anything_happened_is_the_normalisation() -> None:
    victim = victim_of(lambda: nn.Sequential(nn.Identity(), nn.Conv2d(3, 2, 1)))
    (segment,) = cut(victim, "0").prefix.segments
    torch.testing.assert_close(segment.module(pictures()), victim.normalise(pictures()))
    (plain,) = cut(victim_of(lambda: nn.Sequential(nn.Identity(), nn.Conv2d(3, 2, 1)), plain=True), "0").prefix.segments
    torch.testing.assert_close(plain.module(pictures()), pictures())


def test_a_cut_within_a_block_ends_in_a_part_of_it() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)).relu()

    victim = victim_of(lambda: nn.Sequential(Chain(), nn.Conv2d(4, 4, 1), nn.ReLU()))
    segments = cut(victim, "0.norm").prefix.segments
    assert [segment.name for segment in segments] == ["0.norm"]
    assert relative(run(segments, pictures()), cut(victim, "0.norm").prefix(pictures())) <= 1e-5


def test_segments_need_gradients_to_be_found() -> None:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    split = cut(victim_of(Closed), "conv")
    with pytest.raises(CutError, match="module/tiny carry no gradient to its pictures"):
        _ = split.prefix.segments
