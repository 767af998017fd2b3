from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import TinyPrefix, draws, leak, narrow, pictures, psnr, wide
from torch import nn

from seepage import registry, seeding
from seepage.attacks.deep_image_prior import DeepImagePrior
from seepage.types import Images, Knowledge, NotRunError, Recoverer, Recovery, SeepageError

QUICK = "deep-image-prior:steps=25,channels=4"


def fitted(text: str, prefix: TinyPrefix | None, shape: tuple[int, int, int] = (3, 16, 16)) -> Recoverer:
    recoverer: Recoverer = registry.build("attack", text).fit(Knowledge(shape, prefix), seeding.generator(0, "fit"))
    return recoverer


def images(recovery: Recovery) -> torch.Tensor:
    assert isinstance(recovery.value, Images)
    return recovery.value.images


def test_a_leak_that_determines_the_picture_gives_it_back() -> None:
    prefix, truth = wide(), pictures(2)
    recoverer = fitted("deep-image-prior:steps=300,channels=8", prefix)
    recovery = recoverer.recover(leak(prefix(truth)), draws(2))
    assert psnr(images(recovery), truth).min() > 24
    assert psnr(images(recovery), truth.flip(0)).max() < 15


def test_the_network_is_a_prior_where_the_leak_leaves_the_picture_open() -> None:
    prefix, truth = narrow(), pictures(2)
    features = leak(prefix(truth))
    own = fitted("deep-image-prior:steps=300,channels=8", prefix).recover(features, draws(2))
    bare = fitted("rmle:steps=300,open_tv=0,norm=0", prefix).recover(features, draws(2))
    assert (psnr(images(own), truth) > psnr(images(bare), truth) + 1).all()


def test_without_a_step_it_is_its_prior() -> None:
    prefix, truth = wide(), pictures(2)
    recoverer = fitted("deep-image-prior:steps=0,channels=4", prefix)
    found = recoverer.recover(leak(prefix(truth)), draws(2))
    prior = recoverer.prior(2, draws(2))
    assert torch.equal(images(found), images(prior))
    assert [status.message for status in prior.status] == ["no leak"] * 2
    assert not torch.equal(images(prior)[0], images(prior)[1])
    assert psnr(images(prior), truth).max() < 20


def test_the_answer_is_the_average_of_the_outputs() -> None:
    prefix, truth = wide(), pictures(1)
    features = leak(prefix(truth))
    drawings: list[torch.Tensor] = []

    class Watched(TinyPrefix):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            drawings.append(images.detach().clone())
            return super().forward(images)

    watched = Watched((3, 16, 16), list(prefix.body), ["conv", "conv"])
    found = images(fitted("deep-image-prior:steps=6,channels=4,average=0.5", watched).recover(features, draws(1)))
    *outputs, last = drawings
    weights = torch.tensor([0.5 ** (5 - step) for step in range(6)])
    expected = (torch.cat(outputs) * weights.view(-1, 1, 1, 1)).sum(0) / weights.sum()
    assert (found[0] - expected).abs().max() < 1e-5
    assert torch.equal(last, found)


def test_rows_do_not_depend_on_their_batch() -> None:
    prefix, truth = wide(), pictures(3)
    recoverer, features = fitted(QUICK, prefix), wide()(truth)
    together = images(recoverer.recover(leak(features), draws(3)))
    torch.randn(7)
    alone = images(recoverer.recover(leak(features[2:]), draws(1, first=2)))
    assert torch.equal(together[2:], alone)


def test_a_bad_row_fails_alone() -> None:
    prefix, truth = wide(), pictures(3)
    features = prefix(truth)
    features[1, 0, 0, 0] = torch.nan
    recovery = fitted(QUICK, prefix).recover(leak(features), draws(3))
    assert [status.kind for status in recovery.status] == ["stopped", "failed", "stopped"]
    assert torch.equal(images(recovery)[1], torch.full((3, 16, 16), 0.5))
    assert recovery.passes.tolist() == [26, 0, 26]


def test_a_prefix_that_gives_nan_fails_its_row() -> None:
    prefix, truth = wide(), pictures(1)
    features = leak(prefix(truth))
    prefix.body[1].weight.data[0] = torch.nan
    recovery = fitted(QUICK, prefix).recover(features, draws(1))
    assert recovery.status[0].kind == "failed"
    assert recovery.status[0].message == "the loss is not finite at step 0"
    assert torch.equal(images(recovery), torch.full((1, 3, 16, 16), 0.5))


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 15, 29), (3, 8, 40), (3, 50, 33)])
def test_any_size_is_drawn(shape: tuple[int, int, int]) -> None:
    prefix = TinyPrefix(shape, [nn.Conv2d(3, 4, 3, 2, 1)], ["conv"])
    truth = torch.full((1, *shape), 0.3)
    recovery = fitted("deep-image-prior:steps=150,channels=4", prefix, shape).recover(leak(prefix(truth)), draws(1))
    assert images(recovery).shape == (1, *shape)
    assert psnr(images(recovery), truth).item() > 15


def test_another_shape_is_refused() -> None:
    with pytest.raises(SeepageError, match="shape"):
        fitted(QUICK, wide()).recover(leak(torch.zeros(1, 12, 8, 8)), draws(1))


def test_without_the_network_it_is_not_run() -> None:
    with pytest.raises(NotRunError, match="deep-image-prior is a white-box attack"):
        fitted(QUICK, None)


def test_what_is_saved_recovers_the_same(tmp_path: Path) -> None:
    prefix, truth = wide(), pictures(1)
    recoverer = fitted(QUICK, prefix)
    recoverer.save(tmp_path / "saved")
    loaded = DeepImagePrior().load(tmp_path / "saved", Knowledge((3, 16, 16), prefix))
    features = leak(prefix(truth))
    assert torch.equal(*[images(one.recover(features, draws(1))) for one in (recoverer, loaded)])


@pytest.mark.parametrize("effort", ["quick", "standard", "full"])
def test_it_is_built_by_name_at_each_effort(effort: str) -> None:
    attack = registry.build("attack", "deep-image-prior", DeepImagePrior.efforts[effort])
    assert (attack.access, attack.auxiliary) == ("white-box", "none")
    assert registry.build("attack", registry.spec("attack", attack)) == attack
    assert attack.budget == attack.steps + 1
