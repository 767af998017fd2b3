from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tiny import draws, leak, pictures, psnr, wide
from torch import Tensor, nn

from seepage import registry, seeding
from seepage.attacks.decoder import Decoder
from seepage.attacks.learning import TrainingError
from seepage.attacks.networks import SavedAttackError
from seepage.priors import dead_leaves
from seepage.types import (
    Examples,
    Images,
    Knowledge,
    Leak,
    NotRunError,
    Pair,
    Pictures,
    Recoverer,
    Recovery,
    SeepageError,
)

SHAPE = (3, 16, 16)
QUICK = "decoder:steps=30,pictures=24,width=16"
LONG = "decoder:steps=250,pictures=150,width=48,batch=16,lr=0.003"
MORE = LONG.replace("150", "600")


def asking(prefix: Callable[[Tensor], Tensor], image_shape: tuple[int, int, int] = SHAPE) -> Knowledge:
    return Knowledge(image_shape, query=lambda images: leak(prefix(images).detach()))


def fitted(text: str, knowledge: Knowledge) -> Recoverer:
    recoverer: Recoverer = registry.build("attack", text).fit(knowledge, seeding.generator(0, "fit"))
    return recoverer


def images(recovery: Recovery) -> Tensor:
    assert isinstance(recovery.value, Images)
    return recovery.value.images


def strided() -> nn.Module:
    """Each 4x4 block of the picture is one place of 48 channels: nothing is lost, only moved and mixed."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 48, 1)).requires_grad_(False)


def tokens() -> nn.Module:
    """The same as 16 tokens after a class token."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = strided()

        def forward(self, x: Tensor) -> Tensor:
            grid = self.body(x).flatten(2).mT
            return torch.cat([grid.mean(1, keepdim=True) + 50, grid], 1)

    return Tokens()


def vector() -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten())


@pytest.mark.parametrize(
    ("victim", "attack", "least", "margin"),
    [(strided, LONG, 16.5, 3), (tokens, LONG, 16.5, 3), (vector, MORE, 14.5, 1.5)],
)
def test_it_learns_to_decode_features_of_every_layout(
    victim: Callable[[], nn.Module], attack: str, least: float, margin: float
) -> None:
    prefix, truth = victim(), pictures(4)
    recoverer = fitted(attack, asking(prefix))
    recovery = recoverer.recover(leak(prefix(truth)), draws(4))
    own, other = psnr(images(recovery), truth), psnr(images(recovery), truth.roll(1, 0))
    prior = psnr(images(recoverer.prior(4, draws(4))), truth)
    assert own.mean() > least
    assert (own > other + margin).all()
    assert own.mean() > prior.mean() + 0.5
    assert recovery.passes.tolist() == [0] * 4


@pytest.mark.parametrize("image_shape", [(3, 20, 44), (3, 17, 31)])
def test_pictures_need_not_be_square(image_shape: tuple[int, int, int]) -> None:
    prefix = nn.Conv2d(3, 6, 3, 2, 1).requires_grad_(False)
    recoverer = fitted(QUICK, asking(prefix, image_shape))
    found = images(recoverer.recover(leak(prefix(torch.rand(2, *image_shape))), draws(2)))
    assert found.shape == (2, *image_shape)
    assert ((found >= 0) & (found <= 1)).all()


@dataclass
class Owned:
    """Pictures of the attacker's, and how often they were read."""

    images: Tensor
    read: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[Pair]:
        self.read.append(1)
        for start in range(0, len(self.images), 8):
            part = self.images[start : start + 8]
            yield leak(strided()(part)), Pictures(part, tuple(str(start + row) for row in range(len(part))))


def test_public_pairs_are_all_it_learns_from() -> None:
    drawn = dead_leaves(48, SHAPE, torch.Generator().manual_seed(7))
    examples = Examples(Owned(drawn[:40]), Owned(drawn[40:]))

    def refused(images: Tensor) -> Leak:
        raise AssertionError("an attacker with pairs does not ask")

    text = LONG.replace("decoder:", "decoder:train=public,")
    recoverer = fitted(text, Knowledge(SHAPE, query=refused, public=examples))
    truth = pictures(3)
    recovery = recoverer.recover(leak(strided()(truth)), draws(3))
    assert psnr(images(recovery), truth).mean() > 16
    assert registry.build("attack", text).auxiliary == "public"
    assert len(examples.train.read) > 3
    assert len(examples.select.read) == 1


def test_what_is_kept_is_what_does_best_on_held_out_pairs() -> None:
    """Held-out pairs whose pictures are black: the longer one learns from bright ones, the worse it gets there."""
    bright = Owned(torch.full((16, *SHAPE), 0.9))
    dark = Owned(torch.zeros(8, *SHAPE))
    knowledge = Knowledge(SHAPE, public=Examples(bright, dark))
    late = Knowledge(SHAPE, public=Examples(bright, bright))
    text = "decoder:train=public,steps=300,width=16,lr=0.001"
    early_mean, late_mean = (images(fitted(text, one).prior(1, draws(1))).mean() for one in (knowledge, late))
    assert late_mean > 0.85
    assert early_mean < late_mean - 0.1


def test_without_a_way_to_ask_it_is_not_run() -> None:
    with pytest.raises(NotRunError, match="needs a way to query"):
        fitted(QUICK, Knowledge(SHAPE))
    with pytest.raises(NotRunError, match="pictures that the attacker owns"):
        fitted("decoder:train=public", asking(strided()))


def test_the_prefix_serves_where_it_is_all_there_is() -> None:
    prefix, truth = wide(), pictures(1)
    own, asked = (fitted(QUICK, one) for one in (Knowledge(SHAPE, prefix), asking(prefix)))
    features = leak(prefix(truth))
    assert torch.equal(*[images(one.recover(features, draws(1))) for one in (own, asked)])


def test_rows_do_not_depend_on_their_batch_and_nothing_is_drawn() -> None:
    prefix, truth = wide(), pictures(3)
    recoverer, features = fitted(QUICK, asking(prefix)), wide()(truth)
    together = images(recoverer.recover(leak(features), draws(3)))
    alone = images(recoverer.recover(leak(features[2:]), draws(1, first=9)))
    assert torch.equal(together[2:], alone)
    again = images(fitted(QUICK, asking(prefix)).recover(leak(features), draws(3)))
    assert torch.equal(together, again)


def test_a_bad_row_fails_alone() -> None:
    prefix, truth = wide(), pictures(3)
    features = prefix(truth)
    features[1, 0, 0, 0] = torch.inf
    recovery = fitted(QUICK, asking(prefix)).recover(leak(features), draws(3))
    assert [status.kind for status in recovery.status] == ["stopped", "failed", "stopped"]
    assert torch.isfinite(images(recovery)).all()


def test_a_victim_that_answers_nan_teaches_nothing() -> None:
    with pytest.raises(TrainingError, match="nothing to learn from"):
        fitted(QUICK, asking(lambda images: images * torch.nan))


def test_a_leak_of_another_shape_is_refused() -> None:
    with pytest.raises(SeepageError, match="shape"):
        fitted(QUICK, asking(wide())).recover(leak(torch.zeros(1, 12, 8, 8)), draws(1))


def test_what_is_saved_recovers_the_same_without_the_victim(tmp_path: Path) -> None:
    prefix, truth = wide(), pictures(2)
    recoverer = fitted(QUICK, asking(prefix))
    recoverer.save(tmp_path / "saved")
    loaded = Decoder().load(tmp_path / "saved", Knowledge(SHAPE))
    features = leak(prefix(truth))
    assert torch.equal(*[images(one.recover(features, draws(2))) for one in (recoverer, loaded)])
    assert torch.equal(*[images(one.prior(2, draws(2))) for one in (recoverer, loaded)])
    with pytest.raises(SavedAttackError, match=r"decodes to \(3, 16, 16\)"):
        Decoder().load(tmp_path / "saved", Knowledge((3, 32, 32)))


@pytest.mark.parametrize("effort", ["quick", "standard", "full"])
def test_it_is_built_by_name_at_each_effort(effort: str) -> None:
    attack = registry.build("attack", "decoder", Decoder.efforts[effort])
    assert (attack.access, attack.auxiliary, attack.budget) == ("black-box", "synthetic", 0)
    assert registry.build("attack", registry.spec("attack", attack)) == attack
