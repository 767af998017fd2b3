from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TinyPrefix, draws, leak, narrow, pictures, psnr, wide
from torch import Tensor, nn

from seepage import registry, seeding
from seepage.priors import total_variation
from seepage.types import Images, Knowledge, NotRunError, Recoverer, Recovery, SeepageError

BOTH = pytest.mark.parametrize("name", ["rmle:steps=120", "joint:steps=60,newton=3,inner=30,pictures=8"])


def fitted(name: str, prefix: Any, seed: int = 0) -> Recoverer:
    attack = registry.build("attack", name)
    recoverer: Recoverer = attack.fit(Knowledge((3, 16, 16), prefix), seeding.generator(seed, "fit"))
    return recoverer


def images(recovery: Recovery) -> torch.Tensor:
    assert isinstance(recovery.value, Images)
    return recovery.value.images


def test_joint_inverts_what_is_invertible() -> None:
    prefix, truth = wide(), pictures(3)
    recovery = fitted("joint:steps=100,newton=10,inner=80,pictures=8", prefix).recover(leak(prefix(truth)), draws(3))
    assert psnr(images(recovery), truth).min() > 60
    assert [status.kind for status in recovery.status] == ["converged"] * 3


def test_rmle_comes_near() -> None:
    prefix, truth = wide(), pictures(3)
    recovery = fitted("rmle:steps=600", prefix).recover(leak(prefix(truth)), draws(3))
    assert psnr(images(recovery), truth).min() > 25


def test_without_auxiliary_pictures_joint_still_inverts() -> None:
    prefix, truth = wide(), pictures(2)
    name = "joint:start=grey,steps=150,newton=10,inner=80"
    assert registry.build("attack", name).auxiliary == "none"
    assert registry.build("attack", "joint").auxiliary == "synthetic"
    recovery = fitted(name, prefix).recover(leak(prefix(truth)), draws(2))
    assert psnr(images(recovery), truth).min() > 60


def waves(gain: float) -> TinyPrefix:
    """A leak of many valleys that determines its picture."""

    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.conv = nn.Conv2d(3, 12, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(gain * self.conv(x))

    return TinyPrefix((3, 16, 16), [Waves()], ["conv"])


def test_what_ended_in_a_valley_is_searched_for_from_elsewhere() -> None:
    prefix, truth = waves(12.0), pictures(4)
    features, name = leak(prefix(truth)), "joint:start=grey,newton=8,inner=40"
    once = fitted(name, prefix).recover(features, draws(4))
    assert psnr(images(once), truth).max() < 50
    attack = registry.build("attack", f"{name},again=2")
    twice = fitted(f"{name},again=2", prefix).recover(features, draws(4))
    assert psnr(images(twice), truth).sort().values[1:].min() > 70
    assert twice.passes.max() <= attack.budget
    # Rows are searched for apart, and what has converged is left as it is.
    alone = fitted(f"{name},again=2", prefix).recover(leak(features.features[2:3]), draws(1, first=2))
    assert (images(alone) - images(twice)[2:3]).abs().max() < 1e-3
    good, name = wide(), "joint:start=grey,newton=10,inner=80"
    same = [fitted(one, good).recover(leak(good(truth)), draws(4)) for one in (name, f"{name},again=2")]
    assert {status.kind for status in same[0].status} == {"converged"}
    assert torch.equal(images(same[0]), images(same[1]))
    assert torch.equal(same[0].passes, same[1].passes)


def test_a_prior_serves_where_the_leak_does_not_determine_the_picture() -> None:
    prefix, truth = narrow(), pictures(3)
    features = leak(prefix(truth))

    def found(tv: float) -> torch.Tensor:
        recoverer = fitted(f"joint:corrections=0,open_steps=150,pictures=8,open_tv={tv}", prefix)
        return psnr(images(recoverer.recover(features, draws(3))), truth)

    chosen = found(0)
    assert (chosen > found(1e-4) + 0.7).all()
    assert (chosen > found(30) + 1).all()
    assert (chosen > psnr(torch.full_like(truth, 0.5), truth) + 2.5).all()


@BOTH
def test_rows_do_not_depend_on_their_batch(name: str) -> None:
    prefix, truth = wide(), pictures(4)
    recoverer = fitted(name, prefix)
    features = prefix(truth)
    together = images(recoverer.recover(leak(features), draws(4)))
    alone = images(recoverer.recover(leak(features[2:3]), draws(1, first=2)))
    assert (together[2:3] - alone).abs().max() < 1e-3
    again = images(recoverer.recover(leak(features), draws(4)))
    assert torch.equal(together, again)


@BOTH
def test_a_bad_row_fails_alone(name: str) -> None:
    prefix, truth = wide(), pictures(3)
    features = prefix(truth)
    features[1, 0, 0, 0] = torch.inf
    recovery = fitted(name, prefix).recover(leak(features), draws(3))
    assert [status.kind == "failed" for status in recovery.status] == [False, True, False]
    assert "infinity" in recovery.status[1].message
    assert torch.isfinite(images(recovery)).all()
    assert recovery.passes[1] == 0
    assert psnr(images(recovery)[[0, 2]], truth[[0, 2]]).min() > 15


@BOTH
def test_another_shape_is_refused(name: str) -> None:
    prefix = wide()
    with pytest.raises(SeepageError, match="shape"):
        fitted(name, prefix).recover(leak(torch.zeros(1, 12, 8, 8)), draws(1))


@BOTH
def test_no_prefix_no_attack(name: str) -> None:
    with pytest.raises(NotRunError, match="white-box"):
        fitted(name, None)


@BOTH
def test_the_prior_knows_nothing_of_the_leak(name: str) -> None:
    prefix, truth = wide(), pictures(2)
    recoverer = fitted(name, prefix)
    before = images(recoverer.prior(2, draws(2)))
    recoverer.recover(leak(prefix(truth)), draws(2))
    after = images(recoverer.prior(2, draws(2)))
    assert torch.equal(before, after)
    assert before.shape == (2, 3, 16, 16)
    assert ((before >= 0) & (before <= 1)).all()
    assert psnr(before, truth).max() < 20


@BOTH
def test_what_is_saved_recovers_the_same(name: str, tmp_path: Path) -> None:
    prefix, truth = wide(), pictures(2)
    attack = registry.build("attack", name)
    recoverer = fitted(name, prefix, seed=3)
    recoverer.save(tmp_path / "saved")
    loaded = attack.load(tmp_path / "saved", Knowledge((3, 16, 16), prefix))
    features = leak(prefix(truth))
    found = [images(one.recover(features, draws(2))) for one in (recoverer, loaded)]
    assert torch.equal(*found)


@BOTH
def test_the_budget_is_kept(name: str) -> None:
    prefix, truth = wide(), pictures(2)
    recovery = fitted(name, prefix).recover(leak(prefix(truth)), draws(2))
    budget = registry.build("attack", name).budget
    assert (recovery.passes > 0).all()
    assert (recovery.passes <= budget).all()


@BOTH
def test_its_text_builds_it_again(name: str) -> None:
    attack = registry.build("attack", name)
    assert registry.build("attack", registry.spec("attack", attack)) == attack


def test_the_prior_of_rmle_is_what_its_priors_make_of_the_start() -> None:
    recoverer = fitted("rmle:steps=120", narrow())
    found = images(recoverer.prior(2, draws(2)))
    start = recoverer._start(draws(2))
    assert (total_variation(found) < total_variation(start) / 10).all()
    assert (found - 0.5).abs().max() < 0.05
