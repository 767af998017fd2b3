"""A search with a law inside it starts at the law's guess and compares with what was in fact drawn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seepage import registry, seeding
from seepage.attacks.inversion import Target
from seepage.defenses import pipeline
from seepage.types import Images, Knowledge, Law, Leak, LeakHeader, Prefix, Segment, Telling

SHAPE = (3, 12, 12)


class Wide(Prefix):
    """Twelve channels of every pixel's neighbourhood: more numbers than a picture has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 12, 3, padding=1).requires_grad_(False)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return (Segment("layer", None, self.layer, SHAPE, (12, 12, 12)),)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(images)
        return found


def leak(features: torch.Tensor) -> Leak:
    return Leak(features, LeakHeader("module/toy", "ab", "layer", "as it is"))


def law_of(*texts: str, like: Leak) -> tuple[Law, Leak]:
    """Return the law of a pipeline that was fitted to a leak, and a send of that leak."""
    fitted = pipeline(texts).fit(iter([like]))
    names = seeding.row_hashes(like.features)
    return fitted.law(), fitted.protect(like, seeding.generators(0, "defense", names))[0]


@pytest.mark.parametrize(
    ("texts", "shape"),
    [
        (("dropout:rate=0.6",), (8, 6, 6)),
        (("clip:limit=3", "dropout:rate=0.6"), (8, 6, 6)),
        (("token-drop:keep=0.3",), (17, 8)),
    ],
)
def test_of_the_true_leak_exactly_what_was_sent_is_expected(texts: tuple[str, ...], shape: tuple[int, ...]) -> None:
    clean = leak(torch.randn(3, *shape))
    law, sent = law_of(*texts, like=clean)
    assert isinstance(law, Telling)
    matched, mean = law.matched(clean, sent), law.expected(clean)
    assert matched is not None
    assert mean is not None
    assert torch.allclose(matched.features, sent.features, atol=1e-6)
    assert not torch.allclose(mean.features, sent.features, atol=0.1)
    dropped = sent.features == 0
    assert 0.3 < float(dropped.float().mean()) < 0.8
    other = law.matched(clean.with_features(clean.features + 1), sent)
    assert other is not None
    assert torch.equal(other.features[dropped], sent.features[dropped]), "what did not arrive tells nothing"


@pytest.mark.parametrize("texts", [("dropout:rate=0.5", "gaussian:sigma=1"), ("gaussian:sigma=0.1",), ("mask",)])
def test_a_draw_that_does_not_show_is_not_matched(texts: tuple[str, ...]) -> None:
    clean = leak(torch.randn(2, 8, 6, 6))
    law, sent = law_of(*texts, like=clean)
    assert isinstance(law, Telling)
    assert law.matched(clean, sent) is None


@pytest.mark.parametrize("attack", ["joint:pictures=48,corrections=2", "rmle:steps=300,lr=0.05,tv=0"])
def test_dropout_stops_nobody_who_looks_at_what_arrived(attack: str) -> None:
    prefix, pictures = Wide(), torch.rand(2, *SHAPE)
    clean = leak(prefix(pictures))
    law, sent = law_of("dropout:rate=0.5", like=clean)
    built = registry.build("attack", attack)

    def error(known: Law | None) -> float:
        recoverer = built.fit(Knowledge(SHAPE, prefix, law=known), seeding.generator(0, "fit"))
        names = seeding.row_hashes(sent.features)
        value = recoverer.recover(sent, seeding.generators(0, "attack", names)).value
        assert isinstance(value, Images)
        return float((value.images - pictures).square().mean())

    # Six numbers a pixel arrive, on average; three would do.
    assert error(law) < 0.05 * error(None)


def test_a_search_starts_where_the_law_guesses() -> None:
    clean = leak(torch.rand(2, 12, 12, 12))
    law, sent = law_of("noise-shift:scale=4", like=clean)
    target = Target.of(sent, sent.features, law, SHAPE)
    assert torch.allclose(target.guess, sent.features - 2)
    assert torch.equal(target.features, sent.features)
    plain = Target.of(sent, sent.features, None, SHAPE)
    assert torch.equal(plain.guess, sent.features)
