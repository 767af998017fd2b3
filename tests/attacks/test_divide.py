from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import TinyPrefix, draws, leak, pictures, psnr
from torch import Tensor, nn

from seepage import registry, seeding
from seepage.attacks.backward import Backward
from seepage.attacks.divide import Divide
from seepage.attacks.networks import SavedAttackError
from seepage.priors import dead_leaves
from seepage.types import Examples, Images, Knowledge, NotRunError, Pair, Pictures, Recoverer, Recovery, SeepageError

SHAPE = (3, 16, 16)
QUICK = "divide:steps=20,pictures=20,width=8,refine=5"
LONG = "divide:steps=300,pictures=200,width=16,batch=16,refine=0"


def chain() -> TinyPrefix:
    """Three segments that lose nothing: a mixing of colours, blocks of pixels as channels, a mixing of those."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        mix, blocks = nn.Conv2d(3, 6, 1), nn.Conv2d(96, 96, 1)
    return TinyPrefix(SHAPE, [mix, nn.PixelUnshuffle(4), blocks], ["stem", None, None])


def pooled() -> TinyPrefix:
    """A prefix whose last cut is a vector."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        conv = nn.Conv2d(3, 8, 3, 2, 1)
    return TinyPrefix(SHAPE, [conv, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())], ["stem", "pooled"])


def fitted(text: str, prefix: TinyPrefix | None, **more: Examples) -> Recoverer:
    knowledge = Knowledge(SHAPE if prefix is None else prefix.segments[0].in_shape, prefix, **more)
    recoverer: Recoverer = registry.build("attack", text).fit(knowledge, seeding.generator(0, "fit"))
    return recoverer


def images(recovery: Recovery) -> Tensor:
    assert isinstance(recovery.value, Images)
    return recovery.value.images


def test_inverse_networks_learn_to_undo_what_loses_nothing() -> None:
    prefix, truth = chain(), pictures(4)
    recoverer = fitted(LONG, prefix)
    recovery = recoverer.recover(leak(prefix(truth)), draws(4))
    own = psnr(images(recovery), truth)
    assert own.min() > 17
    assert (own > psnr(images(recovery), truth.roll(1, 0)) + 4).all()
    assert (own > psnr(images(recoverer.prior(4, draws(4))), truth) + 4).all()
    assert recovery.passes.tolist() == [1] * 4


def test_refinement_ends_nearer_the_leak_and_the_picture() -> None:
    prefix, truth = chain(), pictures(3)
    text = "divide:steps=40,pictures=30,width=16,batch=16,refine={}"
    bare, refined = (fitted(text.format(n), prefix).recover(leak(prefix(truth)), draws(3)) for n in (0, 120))
    assert (psnr(images(refined), truth) > psnr(images(bare), truth) + 3).all()
    assert refined.passes.tolist() == [121] * 3
    assert "residual" in refined.status[0].message


def test_each_step_undoes_its_own_segment() -> None:
    """The networks of a prefix that is one matrix twice, set by hand to its inverse."""
    matrix = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 4.0], [0.5, 0.0, 0.0]])
    inverse = Backward([SHAPE] * 3, SHAPE, 4)
    for weight in inverse.parameters():
        weight.data.zero_()
    for step in inverse.steps:
        step.straight.weight.data[:, :, 1, 1] = torch.linalg.inv(matrix)
    truth = pictures(2)
    once = torch.einsum("dc,bchw->bdhw", matrix, truth)
    twice = torch.einsum("dc,bchw->bdhw", matrix, once)
    assert (inverse(twice) - truth).abs().max() < 1e-5
    assert inverse.apart([truth, once, twice]) < 1e-10
    assert inverse.apart([truth, once, 2 * twice]).item() == pytest.approx(once.square().mean().item(), rel=1e-4)


def test_places_are_measured_channel_by_channel() -> None:
    prefix, drawn = pooled(), dead_leaves(10, SHAPE, torch.Generator().manual_seed(0))
    inverse = Backward([SHAPE, (8, 8, 8), (8,)], SHAPE, 4)
    passed = [drawn, prefix.body[0](drawn), prefix(drawn)]
    inverse.measure([[part[:4] for part in passed], [part[4:] for part in passed]])
    assert torch.allclose(inverse.place(0).mean.flatten(), drawn.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(inverse.place(1).spread.flatten(), passed[1].std((0, 2, 3), correction=0), atol=1e-4)
    assert torch.allclose(inverse.place(-1).mean.flatten(), passed[2].mean(0), atol=1e-5)


def test_a_vector_is_walked_back_to_a_picture() -> None:
    prefix, truth = pooled(), pictures(4)
    recoverer = fitted("divide:steps=100,pictures=60,width=12,refine=0", prefix)
    flat = torch.full_like(truth, 0.15)
    found = images(recoverer.recover(leak(prefix(flat)), draws(4)))
    prior = images(recoverer.prior(4, draws(4)))
    assert found.shape == truth.shape
    assert (psnr(found, flat) > psnr(prior, flat) + 2).all()


class Owned:
    """Pictures of the attacker's own."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __iter__(self) -> Iterator[Pair]:
        yield leak(chain()(self.images)), Pictures(self.images, tuple(map(str, range(len(self.images)))))


def test_public_pictures_take_the_place_of_synthetic_ones() -> None:
    drawn = 0.2 * dead_leaves(40, SHAPE, torch.Generator().manual_seed(5))
    text = "divide:train=public,steps=60,width=8,refine=0"
    dark = fitted(text, chain(), public=Examples(Owned(drawn[:32]), Owned(drawn[32:])))
    usual = fitted("divide:steps=60,width=8,pictures=40,refine=0", chain())
    assert images(dark.prior(1, draws(1))).mean() < 0.2 < images(usual.prior(1, draws(1))).mean()
    assert registry.build("attack", text).auxiliary == "public"


def test_without_what_it_needs_it_is_not_run() -> None:
    with pytest.raises(NotRunError, match="divide is a white-box attack"):
        fitted(QUICK, None)
    with pytest.raises(NotRunError, match="divide with train=public learns from pictures"):
        fitted(QUICK.replace("divide:", "divide:train=public,"), chain())


def test_rows_do_not_depend_on_their_batch() -> None:
    prefix, truth = chain(), pictures(3)
    recoverer, features = fitted(QUICK, prefix), chain()(truth)
    together = images(recoverer.recover(leak(features), draws(3)))
    alone = images(recoverer.recover(leak(features[2:]), draws(1, first=5)))
    assert (together[2:] - alone).abs().max() < 1e-4
    again = images(fitted(QUICK, prefix).recover(leak(features), draws(3)))
    assert torch.equal(together, again)


def test_a_bad_row_fails_alone() -> None:
    prefix, truth = chain(), pictures(3)
    features = prefix(truth)
    features[1, 0, 0, 0] = torch.inf
    recovery = fitted(QUICK, prefix).recover(leak(features), draws(3))
    assert [status.kind == "failed" for status in recovery.status] == [False, True, False]
    assert torch.equal(images(recovery)[1], torch.full(SHAPE, 0.5))
    assert recovery.passes[1] == 0


def test_a_leak_of_another_shape_is_refused() -> None:
    with pytest.raises(SeepageError, match="shape"):
        fitted(QUICK, chain()).recover(leak(torch.zeros(1, 12, 8, 8)), draws(1))


def test_what_is_saved_recovers_the_same(tmp_path: Path) -> None:
    prefix, truth = chain(), pictures(2)
    recoverer = fitted(QUICK, prefix)
    recoverer.save(tmp_path / "saved")
    loaded = Divide().load(tmp_path / "saved", Knowledge(SHAPE, prefix))
    features = leak(prefix(truth))
    assert torch.equal(*[images(one.recover(features, draws(2))) for one in (recoverer, loaded)])
    assert torch.equal(*[images(one.prior(2, draws(2))) for one in (recoverer, loaded)])
    with pytest.raises(SavedAttackError, match="holds no inverse of this prefix"):
        Divide().load(tmp_path / "saved", Knowledge(SHAPE, pooled()))


@pytest.mark.parametrize("effort", ["quick", "standard", "full"])
def test_it_is_built_by_name_at_each_effort(effort: str) -> None:
    attack = registry.build("attack", "divide", Divide.efforts[effort])
    assert (attack.access, attack.auxiliary) == ("white-box", "synthetic")
    assert registry.build("attack", registry.spec("attack", attack)) == attack
    assert attack.budget == attack.refine + 1
