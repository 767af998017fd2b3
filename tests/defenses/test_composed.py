"""What is known of several defenses together: of what went through harmless stages no less than without them."""

from __future__ import annotations

import pytest
import torch

from seepage import seeding
from seepage.defenses import Pipeline, pipeline
from seepage.types import Leak, LeakHeader, Telling

MAPS, TOKENS = (8, 6, 6), (17, 32)


def leak(features: torch.Tensor) -> Leak:
    return Leak(features, LeakHeader("module/toy", "ab", "layer", "as it is"))


def draws(rows: int, turn: int = 0) -> tuple[torch.Generator, ...]:
    return tuple(seeding.generators(0, "defense", [str(row) for row in range(rows)], turn))


def known(texts: list[str], shape: tuple[int, ...]) -> tuple[Pipeline, Leak]:
    """Return defenses fitted on leaks about a mean, and other leaks about it."""
    mean = torch.randn(shape)
    fitted = pipeline(texts).fit(iter([leak(mean + 0.3 * torch.randn(64, *shape))]))
    return fitted, leak(mean + 0.3 * torch.randn(3, *shape))


def off(guess: Leak, clean: Leak) -> float:
    return float((guess.features - clean.features).norm() / clean.features.norm())


@pytest.mark.parametrize(
    ("texts", "shape", "most"),
    [
        (["dropout", "clip:limit=1000"], MAPS, 1e-6),
        (["dropout", "quantize:bits=8"], MAPS, 0.03),
        (["dropout", "gaussian:sigma=0.1"], MAPS, 0.1),
        (["gaussian:sigma=0.1", "dropout"], MAPS, 0.03),
        (["noise-shift", "dropout"], MAPS, 0.08),
        (["dropout:rate=0.9", "noise-shift"], MAPS, 0.1),
        (["token-shuffle", "quantize:bits=8"], TOKENS, 0.02),
        (["token-shuffle", "gaussian:sigma=0.1"], TOKENS, 0.02),
        (["gaussian:sigma=0.1", "token-shuffle"], TOKENS, 0.02),
        (["token-drop", "quantize:bits=8"], TOKENS, 0.02),
        (["token-drop", "gaussian:sigma=0.1"], TOKENS, 0.03),
        (["token-drop", "token-shuffle"], TOKENS, 0.01),
        (["token-shuffle", "token-drop"], TOKENS, 0.01),
        (["dropout", "token-shuffle"], TOKENS, 0.01),
        (["token-shuffle", "dropout"], TOKENS, 0.01),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_many_sends_together_tell_the_leak(texts: list[str], shape: tuple[int, ...], most: float) -> None:
    defense, clean = known(texts, shape)
    sends = [defense.protect(clean, draws(3, turn))[0] for turn in range(64)]
    assert off(defense.law().estimate(sends), clean) <= most
    # One send tells no more than many, and no less than nothing at all: which is zero.
    assert most < off(defense.law().estimate(sends[:1]), clean) + 0.02 < 1


@pytest.mark.parametrize(
    ("texts", "close"),
    [
        (["dropout:rate=0.6"], 1e-6),
        (["dropout:rate=0.6", "clip:limit=1e9"], 1e-6),
        (["dropout:rate=0.6", "quantize:bits=8"], 0.01),
        (["dropout:rate=0.6", "gaussian:sigma=0.05"], 0.08),
        (["token-drop:keep=0.3", "quantize:bits=4"], 1e-6),
        (["token-drop:keep=0.3", "laplace:scale=0.05"], 0.08),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_what_was_dropped_shows_through_what_was_done_since(texts: list[str], close: float) -> None:
    defense, clean = known(texts, TOKENS)
    law, sent = defense.law(), defense.protect(clean, draws(3))[0]
    assert isinstance(law, Telling)
    matched = law.matched(clean, sent)
    assert matched is not None
    assert float((matched.features - sent.features).square().mean().sqrt()) <= close
    mean = law.expected(clean)
    assert mean is not None
    assert off(matched, sent) < 0.3 * off(mean, sent)


def test_what_noise_drowns_is_not_told() -> None:
    defense, clean = known(["dropout", "gaussian:sigma=3"], MAPS)
    law = defense.law()
    assert isinstance(law, Telling)
    assert law.matched(clean, defense.protect(clean, draws(3))[0]) is None


def test_of_rows_that_show_their_draw_and_others_each_is_told_apart() -> None:
    # Of rows whose numbers span more, rounding leaves less to be told.
    defense, clean = known(["dropout", "quantize:bits=4"], MAPS)
    clean.features[1] *= 0.2
    clean.features[1, 0, 0, 0] = 30
    law, sent = defense.law(), defense.protect(clean, draws(3))[0]
    assert isinstance(law, Telling)
    alone = [law.matched(clean.rows(row, row + 1), sent.rows(row, row + 1)) for row in range(3)]
    assert [one is None for one in alone] == [False, True, False]
    together = law.matched(clean, sent)
    assert together is not None
    for row, one in enumerate(alone):
        one = one or law.expected(clean.rows(row, row + 1))
        assert one is not None
        assert torch.allclose(together.features[row], one.features[0], atol=1e-6)
    guess = law.estimate([sent])
    assert torch.allclose(guess.features[1:2], law.estimate([sent.rows(1, 2)]).features, atol=1e-6)


@pytest.mark.parametrize("texts", [["gaussian:sigma=0.5", "quantize:bits=2"], ["dropout", "quantize:bits=1"]])
def test_what_is_expected_of_a_leak_does_not_depend_on_the_others(texts: list[str]) -> None:
    defense, clean = known(texts, MAPS)
    law = defense.law()
    together = law.expected(clean)
    alone = [law.expected(clean.rows(row, row + 1)) for row in range(3)]
    assert together is not None
    for row, one in enumerate(alone):
        assert one is not None
        assert torch.allclose(together.features[row], one.features[0], atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "shape"),
    [
        (["token-drop:keep=0.4", "quantize:bits=2"], TOKENS),
        (["prune:keep=0.4", "quantize:bits=2"], MAPS),
        (["prune:keep=0.4,by=channel", "quantize:bits=2"], MAPS),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_zeros_that_the_reader_is_told_of_are_not_rounded(texts: list[str], shape: tuple[int, ...]) -> None:
    defense, clean = known(texts, shape)
    first = Pipeline(defense.stages[:1]).protect(clean, draws(3))[0].features == 0
    sent = defense.protect(clean, draws(3))[0]
    assert torch.equal(sent.features == 0, first)
    assert torch.equal(defense.law().sample(clean, draws(3)).features, sent.features)


def test_the_next_stage_still_fills_in_tokens_that_are_missing() -> None:
    defense, clean = known(["token-drop:keep=0.4", "quantize:bits=8"], TOKENS)
    plain = Pipeline(defense.stages[:1])
    received = defense.restore(defense.protect(clean, draws(3))[0], None)
    expected = plain.restore(plain.protect(clean, draws(3))[0], None)
    assert off(received, expected) < 0.01


def test_of_what_is_rounded_alone_any_zero_is() -> None:
    defense, clean = known(["dropout", "quantize:bits=2"], MAPS)
    sent = defense.protect(clean, draws(3))[0].features
    assert all(len((100 * row).round().unique()) <= 4 for row in sent), "two bits a number, and no map of zeros"


@pytest.mark.parametrize(("last", "exact"), [("clip:limit=1e9", True), ("quantize:bits=8", False)])
def test_harmless_last_stages_leave_the_likelihood(last: str, exact: bool) -> None:
    clean = leak(torch.randn(3, *MAPS))
    before, after = pipeline(["laplace:scale=0.5"]).law(), pipeline(["laplace:scale=0.5", last]).law()
    sent = after.sample(clean, draws(3))
    found, wanted = after.log_likelihood(sent, clean), before.log_likelihood(before.sample(clean, draws(3)), clean)
    assert found is not None
    assert wanted is not None
    assert torch.allclose(found, wanted, rtol=0 if exact else 0.02, atol=1e-3)


@pytest.mark.parametrize("text", ["gaussian:sigma=1", "laplace:scale=0.7", "uniform:scale=1.7"])
@pytest.mark.parametrize("sends", [1, 4])
def test_what_leaks_are_like_denoises_them(text: str, sends: int) -> None:
    defense, clean = known([text], MAPS)
    sent = [defense.protect(clean, draws(3, turn))[0] for turn in range(sends)]
    bare = pipeline([text]).law().estimate(sent)
    assert off(defense.law().estimate(sent), clean) < 0.98 * off(bare, clean)


def test_many_sends_are_hardly_denoised() -> None:
    defense, clean = known(["gaussian:sigma=0.3"], MAPS)
    sent = [defense.protect(clean, draws(3, turn))[0] for turn in range(256)]
    bare = pipeline(["gaussian:sigma=0.3"]).law().estimate(sent)
    assert off(defense.law().estimate(sent), bare) < 0.01
