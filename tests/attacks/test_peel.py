"""The walk on small networks whose pictures can be had back, and on leaks that are broken."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from seepage import registry, seeding
from seepage.attacks.peel import Peel
from seepage.inverses import Generic, IdentityResidual
from seepage.inverses.affine import Affine
from seepage.types import Images, Knowledge, Leak, LeakHeader, NotRunError, Prefix, Recovery, SeepageError, Segment

SHAPE = (3, 12, 12)
HEADER = LeakHeader("module/tiny", "0" * 64, "block.3", "none")


class Walked(Prefix):
    """Segments that are called in turn; the prefix itself must never be."""

    def __init__(self, *parts: tuple[str | None, nn.Module], image_shape: tuple[int, int, int] = SHAPE) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.parts = nn.ModuleList(module for _, module in parts).eval().requires_grad_(False)
        x, found = torch.zeros(1, *image_shape), []
        for index, (kind, module) in enumerate(parts):
            y = module(x)
            found.append(Segment(f"block.{index}", kind, module, tuple(x.shape[1:]), tuple(y.shape[1:])))
            x = y
        self._segments = tuple(found)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self._segments

    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError("the walk must not run the prefix")

    def leak(self, images: Tensor, header: LeakHeader = HEADER) -> Leak:
        for module in self.parts:
            images = module(images)
        return Leak(images, header)


class Bottleneck(nn.Module):
    """y = x + F(x), F an inverted residual of moderate gain with random weights."""

    def __init__(self, channels: int, seed: int, gain: float = 0.5) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Sequential(
                nn.Conv2d(channels, 4 * channels, 1),
                nn.ReLU6(inplace=True),
                nn.Conv2d(4 * channels, 4 * channels, 3, padding=1, groups=4 * channels),
                nn.ReLU6(inplace=True),
                nn.Conv2d(4 * channels, channels, 1),
            )
        for part in self.conv:
            if isinstance(part, nn.Conv2d):
                part.weight.data /= torch.linalg.matrix_norm(part.weight.data.flatten(1), 2)
        self.conv[0].weight.data *= 2
        self.conv[4].weight.data *= 8 * gain

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def stem(after: nn.Module | None = None, channels: int = 16) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        conv = nn.Conv2d(3, channels, 3, stride=2, padding=1)
    conv.weight.data *= 3
    return nn.Sequential(conv, after or nn.Identity())


def network(depth: int = 3) -> Walked:
    return Walked(("stem", stem()), *(("linear-bottleneck", Bottleneck(16, seed)) for seed in range(depth)))


def pictures(n: int, image_shape: tuple[int, int, int] = SHAPE) -> Tensor:
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=image_shape[1:], mode="bilinear")


def walk(prefix: Walked, leak: Leak, attack: Peel | None = None) -> Recovery:
    recoverer = (attack or Peel()).fit(Knowledge(prefix.image_shape, prefix), torch.Generator().manual_seed(0))
    return recoverer.recover(leak, generators(leak))


def generators(leak: Leak) -> tuple[torch.Generator, ...]:
    return seeding.generators(0, "attack", seeding.row_hashes(leak.features))


def images(recovery: Recovery) -> Tensor:
    assert isinstance(recovery.value, Images)
    return recovery.value.images


def psnr(found: Recovery | Tensor, truth: Tensor) -> Tensor:
    x = found if isinstance(found, Tensor) else images(found)
    return -10 * (x - truth).square().flatten(1).mean(1).log10()


def test_identity_skip_blocks_are_walked_back_from_depth_three():
    prefix, truth = network(), pictures(3)
    leak = prefix.leak(truth)
    recovery = walk(prefix, leak)
    assert psnr(recovery, truth).min() > 60
    assert {status.kind for status in recovery.status} == {"converged"}
    assert recovery.passes.max() <= Peel().budget
    # What was recovered on the way is what the network computed, the features nearest the leak first.
    assert len(recovery.trace) == 3
    for depth, features in zip((3, 2, 1), recovery.trace, strict=True):
        expected = truth
        for module in prefix.parts[:depth]:
            expected = module(expected)
        assert (features - expected).norm() / expected.norm() < 1e-4
    # The blocks must matter: their output taken for their input is a poor picture.
    untouched = walk(Walked(("stem", prefix.parts[0])), leak)
    assert psnr(untouched, truth).max() < 40


def test_a_rule_that_does_nothing_is_found_out(monkeypatch):
    from seepage.solvers import Adam

    def nothing(self, segment, target, passes):
        return Adam(steps=0).solve(lambda x, y: x - x, target.start, target.features)

    prefix, truth = network(), pictures(2)
    monkeypatch.setattr(IdentityResidual, "invert", nothing)
    assert psnr(walk(prefix, prefix.leak(truth)), truth).max() < 40
    monkeypatch.setattr(Generic, "invert", nothing)
    monkeypatch.setattr(Affine, "invert", nothing)
    assert torch.equal(images(walk(prefix, prefix.leak(truth))), torch.full_like(truth, 0.5))


def test_a_relu_after_the_stem_bounds_what_the_walk_looks_for():
    prefix = Walked(("stem", stem(nn.ReLU6(), 32)), ("linear-bottleneck", Bottleneck(32, 5, 0.3)))
    truth = pictures(2)
    recovery = walk(prefix, prefix.leak(truth))
    assert recovery.trace[0].min() >= 0
    assert recovery.trace[0].max() <= 6
    assert psnr(recovery, truth).min() > 30
    assert images(recovery).min() >= 0
    assert images(recovery).max() <= 1


def test_only_the_leak_matters():
    """Two pictures with one leak get one recovery: no activation of either has been used."""
    dark = nn.Conv2d(3, 3, 1, bias=False)
    dark.weight.data = torch.diag(torch.tensor([1.0, 1.0, 0.0])).view(3, 3, 1, 1)
    prefix = Walked(("stem", dark), ("linear-bottleneck", Bottleneck(3, 2)))
    first, second = pictures(1), pictures(1)
    second[:, 2] = 1 - second[:, 2]
    assert torch.equal(prefix.leak(first).features, prefix.leak(second).features)
    attack = Peel(passes=80)
    found = walk(prefix, prefix.leak(first), attack)
    assert torch.equal(images(found), images(walk(prefix, prefix.leak(second), attack)))
    assert psnr(images(found)[:, :2], first[:, :2]).min() > 20


class Folded(nn.Module):
    """Six waves of each pixel's colours: a landscape of many valleys."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, 1, 1, generator=torch.Generator().manual_seed(5)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(4 * nn.functional.conv2d(x, self.weight))


def test_what_a_block_leaves_open_the_one_before_it_tells():
    """Six of sixteen channels are kept: no sixteen can be told from them, but three colours can."""
    torch.manual_seed(0)
    prefix = Walked(("stem", nn.Conv2d(3, 16, 3, padding=1)), (None, nn.Conv2d(16, 6, 3, padding=1)))
    truth = pictures(2)
    leak = prefix.leak(truth)
    assert psnr(walk(prefix, leak), truth).max() < 20
    found = walk(prefix, leak, Peel(window=2))
    assert psnr(found, truth).min() > 100
    assert found.trace == ()
    assert torch.equal(images(walk(prefix, leak, Peel(window=5))), images(found))


def test_a_window_of_blocks_is_walked_back_as_its_last_one_is():
    prefix, truth = network(4), pictures(2)
    recovery = walk(prefix, prefix.leak(truth), Peel(window=2))
    assert psnr(recovery, truth).min() > 60
    # From the end: two blocks, two blocks, the stem.
    assert len(recovery.trace) == 2
    assert "generic" not in recovery.status[0].message


def test_from_more_starts_more_is_found():
    prefix = Walked((None, Folded()), image_shape=(3, 2, 2))
    leak = prefix.leak(torch.rand(12, 3, 2, 2, generator=torch.Generator().manual_seed(3)))
    residuals = []
    for starts in (1, 2, 6):
        recovery = walk(prefix, leak, Peel(starts=starts, passes=60))
        residuals.append(torch.tensor([float(status.message.split()[1]) for status in recovery.status]))
        assert recovery.passes.max() <= Peel(starts=starts, passes=60).budget
    assert (residuals[1] <= residuals[0]).all()
    assert (residuals[2] <= residuals[1]).all()
    assert (residuals[2] < 0.95 * residuals[0]).sum() >= 3


def test_a_segment_that_is_not_solved_is_run_no_more_often_than_asked():
    prefix = Walked((None, Folded()), image_shape=(3, 2, 2))
    leak = prefix.leak(torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(3)))
    recovery = walk(prefix, leak, Peel(passes=60))
    assert recovery.passes.max() <= 60
    assert recovery.status[0].kind == "stopped"


class Drawn(Walked):
    """A prefix that the attacker's own synthetic pictures may be run through."""

    def forward(self, images: Tensor) -> Tensor:
        return self.leak(images).features


def drawn() -> Drawn:
    return Drawn(("stem", stem(nn.ReLU(), 4)), ("linear-bottleneck", Bottleneck(4, 1)), image_shape=(3, 32, 32))


@pytest.mark.parametrize("start", ["output", "noise", "zeros", "ridge"])
def test_rows_do_not_depend_on_their_batch_and_runs_repeat(start):
    prefix = drawn()
    leak, attack = prefix.leak(pictures(3, prefix.image_shape)), Peel(passes=40, start=start, pictures=8)
    together = walk(prefix, leak, attack)
    assert torch.equal(images(together), images(walk(prefix, leak, attack)))
    for row in range(3):
        alone = walk(prefix, leak.rows(row, row + 1), attack)
        # Convolutions round differently in other batches, and Adam lets such differences grow a little.
        assert psnr(alone, images(together)[row : row + 1]).item() > 60
        assert alone.passes.item() == together.passes[row]
    assert attack.auxiliary == ("synthetic" if start == "ridge" else "none")
    assert attack.access == "white-box"


def test_a_learned_start_is_nearer_than_grey():
    prefix = drawn()
    truth = pictures(3, prefix.image_shape)
    learned = walk(prefix, prefix.leak(truth), Peel(start="ridge", passes=40))
    grey = walk(prefix, prefix.leak(truth), Peel(passes=40))
    assert psnr(learned, truth).mean() > psnr(grey, truth).mean() + 1


def test_the_paper_form_walks_back_too():
    prefix, truth = network(2), pictures(2)
    recovery = walk(prefix, prefix.leak(truth), Peel(form="penalty", passes=700))
    assert psnr(recovery, truth).min() > 20
    assert "generic" not in recovery.status[0].message


def test_what_has_no_rule_is_solved_by_the_generic_one_and_says_so():
    post = nn.Sequential(nn.Conv2d(16, 16, 1), nn.LeakyReLU(0.5))
    post[0].weight.data = torch.eye(16).flip(0).view(16, 16, 1, 1)
    prefix, truth = Walked(("stem", stem()), ("post-activation", post), (None, Bottleneck(16, 3))), pictures(2)
    recovery = walk(prefix, prefix.leak(truth), Peel(passes=900))
    for status in recovery.status:
        assert status.message.endswith("; generic solver for 2 of 3 segments (no kind, post-activation)")
    assert psnr(recovery, truth).min() > 25


def test_a_leak_that_travelled_in_int8_is_fitted_with_the_prior():
    prefix, truth = network(1), pictures(2)
    rough = LeakHeader("module/tiny", "0" * 64, "block.3", "none", wire="int8")
    exact = walk(prefix, prefix.leak(truth))
    told = walk(prefix, prefix.leak(truth, rough))
    assert psnr(told, truth).min() > 20
    assert psnr(exact, truth).min() > psnr(told, truth).max(), "an exact leak is followed to the end"


class Fragile(nn.Module):
    """Breaks on rows that are large."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * (40 - x).sqrt()


def test_a_segment_that_breaks_fails_its_row_by_name():
    prefix, truth = Walked(("stem", stem()), ("linear-bottleneck", Fragile()), (None, nn.Identity())), pictures(3)
    leak = prefix.leak(truth)
    broken = leak.features.clone()
    broken[1] += 100
    recovery = walk(prefix, leak.with_features(broken), Peel(passes=200))
    assert [status.kind for status in recovery.status] == ["converged", "failed", "converged"]
    assert recovery.status[1].message.startswith("segment block.1: ")
    assert psnr(recovery, truth)[[0, 2]].min() > 40
    assert torch.equal(images(recovery)[1], torch.full(SHAPE, 0.5))
    assert [bool(part[1].isnan().all()) for part in recovery.trace] == [False, True]


def test_a_network_of_nan_fails_every_row():
    prefix = network(2)
    leak = prefix.leak(pictures(2))
    prefix.parts[1].conv[0].weight.data[0] = float("nan")
    recovery = walk(prefix, leak, Peel(passes=30))
    assert [status.kind for status in recovery.status] == ["failed"] * 2
    assert all("segment block.1: " in status.message for status in recovery.status)
    assert torch.isfinite(images(recovery)).all()


def test_rows_that_are_not_finite_fail_and_the_others_go_on():
    prefix, truth = network(1), pictures(3)
    leak = prefix.leak(truth)
    broken = leak.features.clone()
    broken[0, 0, 0, 0] = float("inf")
    recovery = walk(prefix, leak.with_features(broken))
    assert [status.kind for status in recovery.status] == ["failed", "converged", "converged"]
    assert recovery.status[0].message == "the leak holds NaN or infinity"
    assert psnr(recovery, truth)[1:].min() > 60
    assert recovery.passes[0] == 0


def test_a_leak_of_another_shape_is_refused():
    prefix = network(1)
    with pytest.raises(SeepageError, match=r"has shape \(16, 5, 5\), this attack was fitted to \(16, 6, 6\)"):
        walk(prefix, Leak(torch.zeros(1, 16, 5, 5), HEADER))


def test_without_the_network_it_is_not_run():
    with pytest.raises(NotRunError, match="peel is a white-box attack"):
        Peel().fit(Knowledge(SHAPE), torch.Generator())


def test_passes_are_runs_of_the_segments_over_their_number():
    prefix = network(3)
    runs = [0] * 4

    def counted(index: int):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            runs[index] += 1

        return hook

    leak = prefix.leak(pictures(1))
    recoverer = Peel(passes=50).fit(Knowledge(SHAPE, prefix), torch.Generator())
    for index, module in enumerate(prefix.parts):
        module.register_forward_pre_hook(counted(index))
    recovery = recoverer.recover(leak, generators(leak))
    assert max(runs) <= 50
    # A product with J^T J is one pass and may take two runs of the module, never fewer than one.
    assert 0 < recovery.passes.item() <= math.ceil(sum(runs) / 4)


@pytest.mark.parametrize("start", ["output", "ridge"])
def test_what_is_saved_recovers_the_same(tmp_path, start):
    prefix = drawn()
    leak, knowledge = prefix.leak(pictures(1, prefix.image_shape)), Knowledge(prefix.image_shape, prefix)
    attack = Peel(passes=20, start=start, pictures=8)
    recoverer = attack.fit(knowledge, torch.Generator().manual_seed(11))
    recoverer.save(tmp_path / "peel")
    loaded = attack.load(tmp_path / "peel", knowledge)
    assert torch.equal(
        images(loaded.recover(leak, generators(leak))), images(recoverer.recover(leak, generators(leak)))
    )


def test_the_prior_is_the_start_that_no_leak_has_moved():
    prefix = network(1)
    recoverer = Peel().fit(Knowledge(SHAPE, prefix), torch.Generator())
    found = recoverer.prior(2, ())
    assert torch.equal(images(found), torch.full((2, *SHAPE), 0.5))
    assert [status.message for status in found.status] == ["no leak"] * 2
    learned = Peel(start="ridge", pictures=8).fit(Knowledge((3, 32, 32), drawn()), torch.Generator())
    mean = images(learned.prior(2, ()))
    assert torch.equal(mean[0], mean[1])
    assert 0 < mean.std() < 0.4


@pytest.mark.parametrize("effort", ["quick", "standard", "full"])
def test_it_is_built_by_name_at_each_effort(effort):
    attack = registry.build("attack", "peel", Peel.efforts[effort])
    assert isinstance(attack, Peel)
    assert registry.build("attack", registry.spec("attack", attack)) == attack
    assert attack.budget == {"quick": 60, "standard": 480, "full": 2400}[effort]
