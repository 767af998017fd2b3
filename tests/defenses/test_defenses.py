"""Every built-in defense keeps the contract: what it draws, what its law says of it, what it undoes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from seepage import registry, seeding
from seepage.defenses import DefenseError, Payload, Pipeline, SecretError, pipeline
from seepage.types import Defense, Generators, Law, Leak, LeakHeader, Noise, Secret
from seepage.wire import decode, encode

MAPS, TOKENS = (6, 4, 4), (10, 5)
RANDOMISED = {
    "gaussian:sigma=0.7": MAPS,
    "laplace:scale=0.5": MAPS,
    "uniform:scale=2": MAPS,
    "gaussian:sigma=0.5,relative=true": MAPS,
    "noise-shift": MAPS,
    "dropout:rate=0.3": MAPS,
    "token-drop:keep=0.4": TOKENS,
    "token-shuffle": TOKENS,
}
FIXED = {
    "clip:limit=0.5": MAPS,
    "clip:limit=0.3,by=value,relative=true": MAPS,
    "quantize:bits=2": MAPS,
    "quantize:bits=1": MAPS,
    "prune:keep=0.2": MAPS,
    "prune:by=channel": MAPS,
    "project:onto=random": MAPS,
    "project:keep=0.5": MAPS,
    "project:keep=0.4,onto=random": TOKENS,
}
ALL = RANDOMISED | FIXED | {"mask": MAPS}


def leak(rows: int, shape: tuple[int, ...] = MAPS, seed: int = 0) -> Leak:
    """Features of uneven channels about a mean that differs from place to place."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    scale = torch.linspace(0.2, 2, shape[0 if len(shape) == 3 else -1])
    scale = scale[:, None, None] if len(shape) == 3 else scale
    features = 2 * place + 3 * scale.flip(0) + scale * torch.randn(rows, *shape, generator=generator)
    return Leak(features, LeakHeader("module/toy", "ab", "body", "as it is"))


def built(text: str, shape: tuple[int, ...]) -> Defense:
    defense = registry.build("defense", text)
    assert isinstance(defense, Defense)
    fitted = defense.fit(iter([leak(60, shape, seed=5), leak(60, shape, seed=6)]))
    assert registry.spec("defense", fitted) == registry.spec("defense", defense)
    assert isinstance(fitted.law(), Law)
    return fitted


def draws(rows: int, turn: int = 0) -> tuple[torch.Generator, ...]:
    return seeding.generators(3, "defense", [str(row) for row in range(rows)], turn)


@pytest.mark.parametrize(("text", "shape"), ALL.items())
def test_what_is_sent_says_so_and_depends_on_the_generators_alone(text: str, shape: tuple[int, ...]) -> None:
    defense, clean = built(text, shape), leak(5, shape)
    before = clean.features.clone()
    sent, _ = defense.protect(clean, draws(5))
    assert sent.features.shape == clean.features.shape
    assert sent.header.defenses == (registry.spec("defense", defense),)
    assert torch.equal(clean.features, before), "the clean leak is somebody else's"
    if text == "mask":
        return  # its keys are the operating system's
    for rows in ([4, 2, 0], [3], [1, 0]):
        part = clean.with_features(clean.features[rows])
        again, _ = defense.protect(part, [draws(5)[row] for row in rows])
        assert torch.allclose(again.features, sent.features[rows], rtol=1e-6, atol=1e-6)
        alone = [defense.protect(clean.rows(row, row + 1), [draws(5)[row]])[0].features[0] for row in rows]
        one = [defense.protect(clean.rows(row, row + 1), [draws(5)[row]])[0].features[0] for row in reversed(rows)]
        assert torch.equal(torch.stack(alone), torch.stack(one[::-1]))


@pytest.mark.parametrize(("text", "shape"), RANDOMISED.items())
def test_samples_of_the_law_are_distributed_as_what_is_sent(text: str, shape: tuple[int, ...]) -> None:
    defense, clean = built(text, shape), leak(1, shape)
    law = defense.law()
    sent = torch.stack([defense.protect(clean, draws(1, turn))[0].features for turn in range(150)])
    drawn = torch.stack([law.sample(clean, draws(1, turn)).features for turn in range(1000, 1150)])
    assert not torch.equal(sent[0], sent[1])
    for place in (0, 7, -1):
        one, other = sent.flatten(1)[:, place].numpy(), drawn.flatten(1)[:, place].numpy()
        assert ks_2samp(one, other, method="asymp").pvalue > 1e-5


@pytest.mark.parametrize(("text", "shape"), (RANDOMISED | FIXED).items())
def test_the_expected_leak_is_the_mean_over_draws_and_differentiable(text: str, shape: tuple[int, ...]) -> None:
    defense, clean = built(text, shape), leak(2, shape)
    law = defense.law()
    features = clean.features.clone().requires_grad_()
    expected = law.expected(clean.with_features(features))
    assert expected is not None
    sends = torch.stack([law.sample(clean, draws(2, turn)).features for turn in range(300)])
    error = sends.std(0) / math.sqrt(len(sends))
    assert ((sends.mean(0) - expected.features.detach()).abs() <= 6 * error + 1e-5).all()
    expected.features.square().sum().backward()
    assert torch.isfinite(features.grad).all()
    assert features.grad.abs().sum() > 0


@pytest.mark.parametrize("text", ["gaussian:sigma=0.7", "laplace:scale=0.5", "uniform:scale=2", "noise-shift"])
def test_sends_of_one_leak_average_the_noise_away(text: str) -> None:
    defense, clean = built(text, (8, 16, 16)), leak(2, (8, 16, 16))

    def off(count: int) -> torch.Tensor:
        sends = [defense.protect(clean, draws(2, turn))[0] for turn in range(count)]
        return defense.law().estimate(sends).features - clean.features

    one, sixteen = off(1), off(16)
    assert abs(one.mean()) < 5 * one.std() / math.sqrt(one.numel()), "the mean is removed"
    assert sixteen.std() < 1.05 * one.std() / 4
    if text.startswith("gaussian"):
        assert sixteen.std() > 0.95 * one.std() / 4, "no more can be had from sixteen sends"


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("dropout:rate=0.3", MAPS),
        ("token-drop:keep=0.4", TOKENS),
        ("token-shuffle", TOKENS),
        ("prune:by=channel", MAPS),
        ("project:keep=0.4,onto=random", MAPS),
        ("noise-shift:scale=3", MAPS),
        ("clip:limit=0.5", MAPS),
    ],
)
def test_whoever_knows_the_law_comes_nearer_to_the_clean_leak(text: str, shape: tuple[int, ...]) -> None:
    defense, clean = built(text, shape), leak(8, shape)
    sent, _ = defense.protect(clean, draws(8))
    guess = defense.law().estimate([sent])
    naive = (sent.features - clean.features).square().mean()
    assert (guess.features - clean.features).square().mean() < 0.8 * naive


def test_dropped_numbers_come_back_with_enough_sends() -> None:
    clean = leak(3)
    for text, shape in (("dropout:rate=0.5", MAPS), ("token-drop:keep=0.4", TOKENS)):
        defense, clean = built(text, shape), leak(3, shape)
        sends = [defense.protect(clean, draws(3, turn))[0] for turn in range(40)]
        assert torch.allclose(defense.law().estimate(sends).features, clean.features, rtol=1e-5, atol=1e-5)


def test_tokens_find_their_places() -> None:
    defense, clean = built("token-shuffle", TOKENS), leak(4, TOKENS)
    sent, secret = defense.protect(clean, draws(4))
    assert secret is None
    assert torch.equal(sent.features[:, 0], clean.features[:, 0]), "ten tokens are a class token and 3x3 patches"
    assert torch.equal(sent.features.sort(1).values, clean.features.sort(1).values)
    guess = defense.law().estimate([sent]).features
    right = (guess == clean.features).all(2).float().mean()
    moved = (sent.features == clean.features).all(2).float().mean()
    assert right > 0.6 > moved


@pytest.mark.parametrize(
    ("text", "noise"),
    [
        ("gaussian:sigma=0.7", torch.distributions.Normal(0, 0.7)),
        ("laplace:scale=0.5", torch.distributions.Laplace(0.0, 0.5)),
        ("uniform:scale=2", torch.distributions.Uniform(-2, 2.001)),
        ("noise-shift:scale=2", torch.distributions.Uniform(0, 2.001)),
    ],
)
def test_the_likelihood_is_that_of_the_distribution(text: str, noise: torch.distributions.Distribution) -> None:
    defense, clean = built(text, MAPS), leak(3)
    sent, _ = defense.protect(clean, draws(3))
    found = defense.law().log_likelihood(sent, clean)
    assert found is not None
    wanted = noise.log_prob(sent.features - clean.features).flatten(1).sum(1)
    assert torch.allclose(found, wanted, rtol=1e-2, atol=1e-2)
    elsewhere = defense.law().log_likelihood(sent, clean.with_features(clean.features + 5))
    assert elsewhere is not None
    assert (elsewhere < found).all()


@pytest.mark.parametrize(
    ("text", "noise"),
    [
        ("gaussian:sigma=0.7", Noise("gaussian", 0.7)),
        ("laplace:scale=0.5", Noise("laplace", 0.5 * math.sqrt(2))),
        ("uniform:scale=2", Noise("uniform", 2 / math.sqrt(3))),
    ],
)
def test_noise_is_told_by_its_deviation(text: str, noise: Noise) -> None:
    defense = pipeline([text, "quantize:bits=4"])
    assert defense.noise() == noise
    off = built(text, MAPS).protect(leak(50), draws(50))[0].features - leak(50).features
    assert off.std() == pytest.approx(noise.scale, rel=0.05)
    clipped = pipeline(["clip:limit=3", text])
    assert clipped.noise() == noise, "noise on what clipping gives"
    assert clipped.continuous == ("clip to a norm of 3.0",)
    assert torch.equal(clipped.mapped(leak(4)).features, clipped.stages[0].protect(leak(4), draws(4))[0].features)
    assert pipeline(["clip"]).noise() is None
    assert pipeline(["quantize:bits=4", text]).noise() is None, "a step has no slope from which a bound would follow"
    assert pipeline(["noise-shift"]).noise() == Noise("uniform", 1 / math.sqrt(12)), "about a mean that anyone knows"


def test_relative_noise_goes_by_the_leaks_it_is_fitted_on() -> None:
    fitted = built("uniform:scale=0.5,relative=true", MAPS)
    spread = torch.cat([leak(60, seed=5).features, leak(60, seed=6).features]).std(correction=0)
    off = fitted.protect(leak(50), draws(50))[0].features - leak(50).features
    assert float(off.abs().max()) == pytest.approx(0.5 * float(spread), rel=1e-2)
    with pytest.raises(DefenseError, match="fitted"):
        registry.build("defense", "gaussian:relative=true").protect(leak(1), draws(1))
    flat = leak(2).with_features(torch.ones(2, 3))
    with pytest.raises(DefenseError, match="no spread"):
        registry.build("defense", "gaussian:relative=true").fit(iter([flat]))


def test_clipped_rows_keep_to_the_limit_and_short_ones_are_left_alone() -> None:
    long, short = leak(20), leak(20).with_features(1e-3 * leak(20).features)
    defense = built("clip:limit=2", MAPS)
    norms = defense.protect(long, ())[0].features.flatten(1).double().norm(dim=1)
    assert (norms <= 2 * (1 + 1e-6)).all()
    assert (norms > 1.999).all()
    assert torch.equal(defense.protect(short, ())[0].features, short.features)
    assert built("clip:limit=0.5,by=value", MAPS).protect(long, ())[0].features.abs().max() == 0.5


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_quantised_rows_have_few_levels_and_are_near(bits: int) -> None:
    clean = leak(4)
    clean = clean.with_features(clean.features.relu())
    sent = built(f"quantize:bits={bits}", MAPS).protect(clean, ())[0].features
    reach = clean.features.flatten(1).amax(1) / (2**bits - 1)
    assert all(len(row.unique()) <= 2**bits for row in sent)
    assert ((sent - clean.features).flatten(1).abs().amax(1) <= 0.501 * reach).all()
    assert (sent[clean.features == 0] == 0).all(), "what a ReLU silenced stays silent"


def test_pruning_keeps_the_largest_and_the_most_varied() -> None:
    clean = leak(3)
    sent = built("prune:keep=0.25", MAPS).protect(clean, ())[0].features.flatten(1)
    flat = clean.features.flatten(1)
    kept = sent != 0
    assert (kept.sum(1) == 24).all()
    assert (flat.abs().where(kept, math.inf).amin(1) >= flat.abs().where(~kept, -math.inf).amax(1)).all()
    channels = built("prune:keep=0.5,by=channel", MAPS).protect(clean, ())[0].features
    alive = (channels != 0).any(0).flatten(1).any(1)
    assert alive.sum() == 3


def test_a_projection_onto_all_directions_loses_nothing_and_onto_few_stays_there() -> None:
    clean = leak(6)
    for onto in ("random", "pca"):
        whole = built(f"project:keep=1,onto={onto}", MAPS).protect(clean, ())[0].features
        assert torch.allclose(whole, clean.features, atol=1e-4)
        sent = built(f"project:keep=0.3,onto={onto}", MAPS).protect(clean, ())[0].features
        vectors = sent.movedim(1, -1).reshape(-1, 6)
        values = torch.linalg.svdvals(vectors - vectors.mean(0))
        assert (values[2:] < 1e-4 * values[0]).all(), "two of six directions"


def test_pipelines_protect_in_order_and_restore_in_reverse() -> None:
    clean = leak(3)
    defense = pipeline(["clip:limit=3", "gaussian:sigma=0.2", "noise-shift", "mask"]).fit(iter([leak(9, seed=2)]))
    sent, secret = defense.protect(clean, draws(3))
    assert sent.header.defenses == defense.texts
    assert sent.features.dtype == torch.int32
    restored = defense.restore(encode(sent, "fp32"), secret)
    partly = pipeline(["clip:limit=3", "gaussian:sigma=0.2"])
    assert torch.allclose(restored.features, partly.protect(clean, draws(3))[0].features, atol=1e-5)
    assert restored.header.defenses == partly.texts
    with pytest.raises(SecretError, match="used already"):
        defense.restore(sent, secret)
    assert defense.law().expected(clean) is None
    assert defense.law().log_likelihood(sent, clean) is None


def test_laws_compose() -> None:
    clean = leak(3)
    law = pipeline(["clip:limit=3", "gaussian:sigma=0.2"]).law()
    clipped = registry.build("defense", "clip:limit=3").protect(clean, ())[0]
    sent = law.sample(clean, draws(3))
    alone = registry.build("defense", "gaussian:sigma=0.2").law().log_likelihood(sent, clipped)
    assert torch.equal(law.log_likelihood(sent, clean), alone)
    assert torch.equal(law.expected(clean).features, clipped.features)
    assert pipeline(["gaussian", "laplace"]).law().log_likelihood(sent, clean) is None
    assert pipeline(["dropout", "project"]).law().log_likelihood(sent, clean) is None
    after = pipeline(["clip:limit=3", "gaussian:sigma=0.2", "clip:limit=1e9"]).law()
    assert torch.equal(after.log_likelihood(sent, clean), alone), "what changes nothing hides nothing"


def test_what_draws_and_then_continuous_is_averaged_over_draws() -> None:
    clean = leak(2)
    law = pipeline(["gaussian:sigma=3", "clip:limit=0.5,by=value"]).law()
    sends = torch.stack([law.sample(clean, draws(2, turn)).features for turn in range(500)])
    expected = law.expected(clean).features
    bent = clean.features.clamp(-0.5, 0.5)
    assert (expected - sends.mean(0)).abs().mean() < 0.5 * (bent - sends.mean(0)).abs().mean()
    assert torch.equal(expected, law.expected(clean).features), "the same draws each time"


@pytest.mark.parametrize(
    ("text", "shape", "weight"),
    [
        ("gaussian", MAPS, 96 * 4),
        ("noise-shift", MAPS, 2 * 96 * 4),
        ("mask", MAPS, 96 * 4 + 32),
        ("quantize:bits=2", MAPS, 96 * 2 // 8 + 8),
        ("prune:keep=0.25", MAPS, 24 * 4 + 12),
        ("prune:keep=0.5,by=channel", MAPS, 48 * 4),
        ("project:keep=0.5", MAPS, 48 * 4),
        ("token-drop:keep=0.3", TOKENS, 4 * 5 * 4 + 2),
        ("token-shuffle", TOKENS, 50 * 4),
    ],
)
def test_what_is_sent_weighs_with_what_carries_its_secret(text: str, shape: tuple[int, ...], weight: int) -> None:
    numbers = math.prod(shape)
    assert pipeline([text]).payload(Payload(numbers, 32), shape).bytes == weight


# 16,384 numbers: 65,536 bytes of float32. A tenth of 64 channels is 7 of them, a tenth of the numbers 1,639.
LARGE, MANY_TOKENS = (64, 16, 16), (65, 64)


@pytest.mark.parametrize(
    ("texts", "weight"),
    [
        ("quantize:bits=1 mask", 65_536 + 32),
        ("quantize:bits=4 gaussian", 65_536),
        ("prune:keep=0.1 gaussian", 65_536),
        ("prune:keep=0.1 uniform", 65_536),
        ("project:keep=0.1 laplace", 65_536),
        ("quantize:bits=4 noise-shift", 65_536 + 65_536),
        ("noise-shift quantize:bits=4", 8_192 + 8 + 65_536),
        ("noise-shift gaussian", 65_536 + 65_536),
        ("gaussian quantize:bits=4", 8_192 + 8),
        ("quantize:bits=4 gaussian quantize:bits=2", 4_096 + 8),
        ("quantize:bits=2 quantize:bits=8", 4_096 + 8),
        ("quantize:bits=4 clip", 8_192 + 8),
        ("quantize:bits=4 clip:by=value", 8_192 + 8),
        ("quantize:bits=1 dropout", 2_048 + 8 + 2_048),
        ("dropout quantize:bits=1", 2_048 + 8),
        ("prune:keep=0.1", 1_639 * 4 + 2_048),
        ("prune:keep=0.1 prune:keep=0.1", 1_639 * 4 + 2_048),
        ("prune:keep=0.1 quantize:bits=4", 820 + 2_048 + 8),
        ("quantize:bits=4 prune:keep=0.1", 820 + 2_048 + 8),
        ("prune:keep=0.1,by=channel quantize:bits=4", 7 * 256 // 2 + 8),
        ("prune:keep=0.5,by=channel prune:keep=0.1", 1_639 * 4 + 2_048),
        ("quantize:bits=4 project:keep=0.1", 7 * 256 * 4),
        ("prune:keep=0.1 project:keep=0.1", 7 * 256 * 4),
        ("project:keep=0.1 project:keep=0.5", 7 * 256 * 4),
        ("project:keep=0.1 clip", 7 * 256 * 4),
        ("project:keep=0.1 clip:by=value", 65_536),
        ("project:keep=0.1 dropout", 65_536),
        ("project:keep=0.1 quantize:bits=4", 8_192 + 8),
        ("project:keep=0.1 prune:keep=0.1", 1_639 * 4 + 2_048),
        ("project:keep=0.1 prune:keep=0.5,by=channel", 32_768),
    ],
)
def test_a_later_stage_undoes_what_an_earlier_one_saves(texts: str, weight: int) -> None:
    assert pipeline(texts.split()).payload(Payload(16_384, 32), LARGE).bytes == weight


@pytest.mark.parametrize(
    ("texts", "weight"),
    [
        # One token has no place; of the other 64 half are sent, and 9 bytes say which.
        ("token-drop", 33 * 64 * 4 + 9),
        ("token-drop mask", 65 * 64 * 4 + 32),
        ("token-drop quantize:bits=2", 33 * 64 // 4 + 9 + 8),
        ("token-drop prune:keep=0.25,by=channel", 33 * 16 * 4 + 9),
        ("prune:keep=0.25,by=channel token-drop", 33 * 16 * 4 + 9),
        ("project:keep=0.25 token-drop", 33 * 64 * 4 + 9),
        ("project:keep=0.25 token-shuffle", 65 * 16 * 4),
        ("quantize:bits=2 token-shuffle", 65 * 64 // 4 + 8),
    ],
)
def test_tokens_that_are_left_out_stay_left_out(texts: str, weight: int) -> None:
    assert pipeline(texts.split()).payload(Payload(65 * 64, 32), MANY_TOKENS).bytes == weight


def test_the_scale_of_the_wire_stays_and_what_does_not_say_what_it_weighs_fills() -> None:
    eight = Payload(16_384, 8).beside(4)
    assert pipeline(["quantize:bits=4"]).payload(eight, LARGE).bytes == 8_192 + 8 + 4
    assert pipeline(["quantize:bits=4", "gaussian"]).payload(eight, LARGE).bytes == 16_384 + 4
    silent = Pipeline((*pipeline(["prune:keep=0.1"]).stages, Silent()))
    assert silent.payload(Payload(16_384, 32), LARGE).bytes == 65_536


class Silent:
    """The least that a plug-in is: it does nothing, and says nothing of what it weighs."""

    holder: ClassVar[str] = "nobody"
    protects_from: ClassVar[tuple[str, ...]] = ()

    def fit(self, leaks: Iterator[Leak]) -> Defense:
        return self

    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, Secret | None]:
        return leak, None

    def restore(self, leak: Leak, secret: Secret | None) -> Leak:
        return leak

    def law(self) -> Law:
        return registry.build("defense", "clip").law()


SAVING = ("clip:limit=0.5", "clip:limit=0.3,by=value", "quantize:bits=2", "prune:keep=0.4", "prune:keep=0.3,by=channel",
          "project:keep=0.3", "project:keep=0.4,onto=random", "gaussian:sigma=0.1", "dropout:rate=0.2")  # fmt: skip


@pytest.mark.parametrize("texts", [pair for pair in itertools.product(SAVING, repeat=2) if pair[0] != pair[1]])
def test_what_is_said_to_be_saved_is_not_in_what_is_sent(texts: tuple[str, str]) -> None:
    defense = pipeline(texts).fit(iter([leak(60, seed=5), leak(60, seed=6)]))
    weighed = defense.payload(Payload(96, 32), MAPS)
    sent = defense.protect(leak(20), draws(20))[0].features
    saved = weighed.saving
    if saved.subspace:
        places = sent[:1].movedim(1, 3).flatten(0, 2).double()
        singular = torch.linalg.svdvals(places - places.mean(0))
        assert (singular > 1e-4 * singular[0]).sum() <= math.ceil(saved.channels * 6)
    else:
        # Rounding makes of zeros the level that is nearest to zero.
        flat = sent.flatten(1)
        known = flat.gather(1, flat.abs().argmin(1, keepdim=True))
        assert ((flat - known).abs() > 1e-4).sum(1).max() <= math.ceil(96 * min(saved.channels, saved.numbers))
    if weighed.rounded:
        levels = [int((row[row != 0].sort().values.diff() > 1e-3).sum()) + 1 for row in sent]
        zero = 0 if saved.marks or saved.channels < 1 else int((sent == 0).any())
        assert max(levels) + zero <= 2**saved.bits


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gaussian:sigma=-1", "sigma is a finite number of at least 0, got -1"),
        ("laplace:scale=nan", "got nan"),
        ("uniform:scale=inf", "got inf"),
        ("noise-shift:scale=-0.5", "got -0.5"),
        ("clip:limit=0", "limit is a finite number above 0, got 0"),
        ("quantize:bits=3", "one of 8, 4, 2, 1, got '3'"),
        ("dropout:rate=1", "below 1, got 1"),
        ("prune:keep=0", "share above 0 and at most 1, got 0"),
        ("project:keep=1.5", "got 1.5"),
        ("token-drop:keep=nan", "got nan"),
        ("gausian", "'gaussian'"),
        ("gaussian:sigm=1", "'sigma'"),
    ],
)
def test_a_strength_that_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(Exception, match=said) as caught:
        pipeline([text])
    assert type(caught.value).__module__ == "seepage.registry"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", registry.names("defense"))
def test_who_holds_what_undoes_a_defense_is_named_where_something_is_kept(name: str) -> None:
    defense = registry.build("defense", name)
    assert (defense.holder != "nobody") == defense.keeps_secret
    assert ("provider" not in defense.protects_from) == defense.keeps_secret, "whoever undoes it is not kept out"


def test_what_cannot_serve_says_what_can() -> None:
    for text in ("token-drop", "token-shuffle"):
        with pytest.raises(DefenseError, match=r"tokens, width.*dropout"):
            registry.build("defense", text).protect(leak(1), draws(1))
    with pytest.raises(DefenseError, match=r"mask comes last.*quantize"):
        pipeline(["mask", "quantize"])
    with pytest.raises(Exception, match="--wire fp32"):
        encode(registry.build("defense", "mask").protect(leak(1), ())[0], "fp16")


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 5), st.sampled_from(["quantize:bits=4", "clip:limit=0.5", "prune:keep=0.3", "project:onto=random"])
)
def test_a_defense_that_draws_nothing_changes_nothing_the_second_time(rows: int, text: str) -> None:
    defense = built(text, MAPS)
    once = defense.protect(leak(rows), ())[0]
    twice = defense.protect(once, ())[0]
    assert torch.allclose(once.features, twice.features, atol=1e-4)


def test_masked_bits_read_as_finite_numbers() -> None:
    clean = leak(2).with_features(torch.full((2, 9), math.nan))
    read = decode(registry.build("defense", "mask").protect(clean, ())[0]).features
    assert torch.isfinite(read).all()
    assert read.abs().max() <= 1
