"""The best guess at a leak is better than what was sent, than nothing and than the mean leak; more sends tell more."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from seepage import seeding
from seepage.defenses import pipeline
from seepage.defenses.moments import Channels
from seepage.types import Leak, LeakHeader

SHAPE = (16, 8, 8)


def leak(features: torch.Tensor) -> Leak:
    return Leak(features, LeakHeader("module/toy", "ab", "layer", "as it is"))


def rectified(rows: int, seed: int, shape: tuple[int, ...] = SHAPE) -> Leak:
    """Return leaks as a ReLU leaves them: half zeros, channels that go together and vary unequally."""
    mix = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 6, *shape[1:], generator=generator)
    own = 0.3 * torch.randn(rows, *shape, generator=generator)
    return leak((torch.einsum("ck,nk...->nc...", mix, hidden) / 2 + own).relu())


def sends(texts: list[str], count: int) -> tuple[Leak, list[Leak], Leak]:
    """Return the best guess at a leak from so many sends of it, these, and the leak."""
    defense, clean = pipeline(texts).fit(iter([rectified(32, 1)])), rectified(4, 2)
    sent = [
        defense.protect(clean, seeding.generators(0, "defense", [str(row) for row in range(4)], turn))[0]
        for turn in range(count)
    ]
    return defense.law().estimate(sent), sent, clean


def off(guess: torch.Tensor, clean: Leak) -> float:
    return float((guess - clean.features).norm() / clean.features.norm())


MEAN = off(rectified(32, 1).features.mean(0).expand(4, *SHAPE), rectified(4, 2))


@pytest.mark.parametrize("since", ["gaussian:sigma=1", "laplace:scale=1", "uniform:scale=2", "quantize:bits=2"])
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
def test_dropout_that_cannot_be_told_is_guessed_no_worse_than_by_the_mean(rate: float, since: str) -> None:
    guess, sent, clean = sends([f"dropout:rate={rate}", since], 1)
    assert off(guess.features, clean) <= 1.03 * MEAN
    assert off(guess.features, clean) <= off((1 - rate) * sent[0].features, clean)


def test_a_number_that_many_sends_do_not_show_is_zero() -> None:
    found = [off(sends(["dropout:rate=0.5"], count)[0].features, rectified(4, 2)) for count in (1, 4, 8, 16)]
    assert found == sorted(found, reverse=True)
    assert found[0] < MEAN
    assert found[-1] < 0.02


@pytest.mark.parametrize("limit", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_more_sends_tell_more_of_what_was_clipped_first(limit: float, sigma: float) -> None:
    texts = [f"clip:limit={limit},relative=true", f"gaussian:sigma={sigma * limit},relative=true"]
    found = [off(sends(texts, count)[0].features, rectified(4, 2)) for count in (1, 8, 64)]
    assert found[0] > found[1] > found[2] - 1e-3
    assert found[2] < 0.2  # rows are of several norms, and lifted to the usual one


def test_what_the_wire_rounded_is_lifted_all_the_same() -> None:
    defense = pipeline(["clip:limit=0.3,relative=true"]).fit(iter([rectified(32, 1)]))
    clean = rectified(4, 2)
    sent, _ = defense.protect(clean, ())
    rounded = sent.with_features(sent.features.bfloat16().float())
    assert off(defense.law().estimate([rounded]).features, clean) < 0.1


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("relative", [0.001, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("shown", [0.0, 0.3])
def test_denoising_does_no_harm_where_leaks_vary_as_none_did_that_were_learned_from(
    shown: float, relative: float, count: int
) -> None:
    learned, clean = rectified(32, 1), rectified(4, 2)
    learned.features[:, :4] *= shown  # four channels that are dead, or nearly, in what it is fitted on
    spread = float(clean.features.std())
    defense = pipeline([f"gaussian:sigma={relative * spread}"]).fit(iter([learned]))
    sent = [defense.protect(clean, seeding.generators(0, "defense", list("abcd"), turn))[0] for turn in range(count)]
    plain = torch.stack([one.features for one in sent]).mean(0)
    assert off(defense.law().estimate(sent).features, clean) <= 1.01 * off(plain, clean)


@pytest.mark.parametrize("sigma", [1e-200, 0.0, 0.01, 0.5])
@pytest.mark.parametrize("rows", [1, 32])
def test_vectors_and_constants_are_denoised_too(sigma: float, rows: int) -> None:
    for shape in ((64,), (300,)):
        learned, clean = torch.rand(rows, *shape), leak(torch.rand(3, *shape))
        learned[:, 0] = 0.5
        defense = pipeline([f"gaussian:sigma={sigma}"]).fit(iter([leak(learned)]))
        sent, _ = defense.protect(clean, seeding.generators(0, "defense", list("abc")))
        guess = defense.law().estimate([sent]).features
        assert off(guess, clean) <= off(sent.features, clean) * 1.1 + 1e-6
    flat = pipeline([f"gaussian:sigma={sigma}"]).fit(iter([leak(torch.ones(4, 8))]))
    assert torch.isfinite(flat.law().estimate([leak(torch.ones(2, 8))]).features).all()


@pytest.mark.parametrize(
    "texts",
    [
        ["uniform:scale=0.5", "laplace:scale=1"],
        ["noise-shift", "gaussian:sigma=1"],
        ["laplace:scale=0.3", "uniform:scale=2"],
        ["uniform:scale=2", "prune:keep=0.25"],
    ],
    ids="+".join,
)
def test_sends_that_something_was_done_to_since_are_averaged(texts: list[str]) -> None:
    guess, sent, clean = sends(texts, 8)
    shift = 0.5 if texts[0] == "noise-shift" else 0.0
    assert off(guess.features, clean) <= off(torch.stack([one.features for one in sent]).mean(0) - shift, clean) + 1e-6


def test_noise_under_what_was_averaged_is_denoised_as_that_is() -> None:
    guess, _, clean = sends(["gaussian:sigma=0.7", "dropout:rate=0.2"], 64)
    assert off(guess.features, clean) <= 0.7 / (64 * 0.8) ** 0.5 / float(clean.features.square().mean().sqrt()) * 1.02


@pytest.mark.parametrize("limit", [1000.0, 1.0, 0.1])
def test_what_was_dropped_shows_through_clipping_as_far_as_without(limit: float) -> None:
    texts = ["dropout:rate=0.5", f"clip:limit={limit}", "gaussian:sigma=0.05,relative=true"]
    guess, _, clean = sends(texts, 1)
    assert off(guess.features, clean) < 0.7 < MEAN + 0.05


@pytest.mark.parametrize("since", ["quantize:bits=4", "clip:limit=10", "prune:keep=0.25", "project:keep=0.25"])
def test_what_was_cut_off_since_leaves_no_likelihood(since: str) -> None:
    for noise in ("uniform:scale=0.1", "gaussian:sigma=0.1"):
        defense, clean = pipeline([noise, since]).fit(iter([rectified(32, 1)])), rectified(4, 2)
        sent, _ = defense.protect(clean, seeding.generators(0, "defense", list("abcd")))
        assert defense.law().log_likelihood(sent, clean) is None
    wide = pipeline(["gaussian:sigma=0.5", "quantize:bits=8"]).fit(iter([rectified(32, 1)]))
    sent, _ = wide.protect(clean, seeding.generators(0, "defense", list("abcd")))
    own, other = (wide.law().log_likelihood(sent, one) for one in (clean, clean.with_features(0 * clean.features)))
    assert own is not None
    assert other is not None
    assert (own > other).all()


def test_tokens_that_were_mixed_are_averaged_by_their_chance() -> None:
    mean = torch.randn(17, 16, generator=torch.Generator().manual_seed(3))
    defense = pipeline(["token-drop:keep=0.5", "project:keep=1.0"]).fit(
        iter([leak(mean + 0.5 * torch.randn(64, 17, 16))])
    )
    clean = leak(mean + 0.5 * torch.randn(4, 17, 16))
    sent = [defense.protect(clean, seeding.generators(0, "defense", list("abcd"), turn))[0] for turn in range(64)]
    few, many = (off(defense.law().estimate(sent[:count]).features, clean) for count in (1, 64))
    assert many < 0.15 < few < off(mean.expand(4, 17, 16), clean) + 0.05


def test_wide_leaks_are_learned_from_without_a_matrix_of_their_numbers() -> None:
    known = Channels.of(iter([leak(torch.rand(8, 50_176))]))
    assert known.covariance is None
    assert known.variances.shape == (50_176,)
    assert Channels.of(iter([rectified(32, 1)])).covariance is not None


def test_what_was_learned_on_a_gpu_serves_there() -> None:
    known = Channels.of(iter([rectified(32, 1)]))
    _ = known._spectrum
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = torch.empty(4, *SHAPE, device="cuda")
        found = known.denoised(there, torch.zeros(4))
    assert (found.device.type, found.shape) == ("cuda", (4, *SHAPE))
