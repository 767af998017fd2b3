from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from tiny_language import CAPTIONS, captioned, leaks

from seepage import registry
from seepage.attacks.nearest import Nearest
from seepage.attacks.networks import SavedAttackError
from seepage.types import Attack, Captions, Examples, Knowledge, Leak, LeakHeader, NotRunError, Pictures, Recoverer

DRAWS = [torch.Generator()] * 9


def knowledge(leak: Leak, pictures: Pictures) -> Knowledge:
    return Knowledge((3, 2, 2), public=Examples([(leak, pictures)], ()))


def fitted(attack: Nearest) -> Recoverer:
    return attack.fit(knowledge(leaks(), captioned()), torch.Generator())


def said(recoverer: Recoverer, leak: Leak) -> tuple[str, ...]:
    value = recoverer.recover(leak, DRAWS[: len(leak)]).value
    assert isinstance(value, Captions)
    return value.texts


def test_it_is_an_attack() -> None:
    attack = registry.build("attack", "nearest:among=3")
    assert isinstance(attack, Attack)
    assert (attack.access, attack.auxiliary, attack.recovers, attack.budget) == ("black-box", "public", "captions", 0)
    assert attack.places() is None
    assert attack.learned_from(["ab" * 32]) == ()


@pytest.mark.assets
def test_a_leak_of_its_own_is_answered_with_what_is_said_of_it(tmp_path: Path) -> None:
    """Whatever a channel's scale: they are standardised."""
    recoverer, leak = fitted(Nearest(among=1)), leaks()
    near = leak.with_features(leak.features + 0.01 * torch.randn(leak.features.shape))
    assert said(recoverer, near) == CAPTIONS
    recoverer.save(tmp_path / "nearest")
    again = Nearest().load(tmp_path / "nearest", knowledge(leak, captioned()))
    assert said(again, near) == CAPTIONS
    scale = torch.logspace(-3, 3, leak.features.shape[1]).view(-1, *[1] * (leak.features.ndim - 2))
    scaled = Nearest(among=1).fit(knowledge(leak.with_features(leak.features * scale), captioned()), torch.Generator())
    assert said(scaled, near.with_features(near.features * scale)) == CAPTIONS


@pytest.mark.assets
def test_the_caption_that_most_neighbours_agree_on_wins() -> None:
    """The nearest picture's own is another; a leak that says nothing gets what fits all."""
    texts = ("a dog runs in the snow", "a dog plays in snow", "the dog is running through snow", "an old church")
    features = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.0]]) + torch.tensor([0.0, 0.0])
    far = torch.tensor([[-1.0, -0.2], [-1.0, 0.4]])
    leak = Leak(torch.cat([features, far]), LeakHeader("tiny", "ab" * 32, "late", ""))
    own = (*texts, "a man sleeps", "two men sleep")
    pictures = Pictures(torch.zeros(6, 3, 2, 2), tuple("abcdef"), captions=tuple((text,) for text in own))
    asked = leak.with_features(torch.tensor([[1.0, 0.0]]))
    one, four = (Nearest(among=k).fit(knowledge(leak, pictures), torch.Generator()) for k in (1, 4))
    assert said(one, asked) == ("an old church",)
    assert "dog" in said(four, asked)[0]
    prior = four.prior(2, DRAWS[:2]).value
    assert isinstance(prior, Captions)
    assert prior.texts[0] == prior.texts[1]
    assert "dog" in prior.texts[0]


@pytest.mark.assets
def test_a_row_that_is_no_leak_fails_alone() -> None:
    leak = leaks()
    features = leak.features.clone()
    features[1] = torch.nan
    recovery = fitted(Nearest(among=1)).recover(leak.with_features(features), DRAWS[: len(leak)])
    assert [status.kind for status in recovery.status] == ["stopped", "failed", *["stopped"] * 6]


def test_without_captioned_pictures_it_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(NotRunError, match="--public"):
        Nearest().fit(Knowledge((3, 2, 2)), torch.Generator())
    bare = Pictures(captioned().images, captioned().ids)
    with pytest.raises(NotRunError, match="none of them has a caption"):
        Nearest().fit(knowledge(leaks(), bare), torch.Generator())
    (tmp_path / "other").write_bytes(b"{}")
    with pytest.raises(SavedAttackError):
        Nearest().load(tmp_path / "other", Knowledge((3, 2, 2)))
