"""The walk that goes as far as it can by itself, searches for a picture behind the rest, and goes on from that."""

from __future__ import annotations

import pytest
import torch
from test_peel import HEADER, SHAPE, Bottleneck, Drawn, images, pictures, psnr, stem, walk
from torch import nn

from seepage import seeding
from seepage.attacks.head import Head, remaining
from seepage.attacks.peel import Peel
from seepage.inverses import Step, Transformer, steps
from seepage.types import Images, Knowledge, Leak, LeakHeader, NotRunError, Recoverer, Recovery
from seepage.victims import load
from seepage.victims.cut import cut

SEARCH = Peel(start="search", passes=120, search="quick")


TINY = """
import timm


def tiny():
    return timm.models.VisionTransformer(img_size=16, patch_size=4, embed_dim=48, depth=3, num_heads=4, num_classes=3)


tiny.image_shape = (3, 16, 16)
"""


def lossy() -> nn.Module:
    """A block that keeps its shape, and hides what is negative."""
    return nn.Sequential(Bottleneck(32, 4, 0.1), nn.ReLU())


def signed() -> nn.Module:
    """A stem that gives everything with both signs: behind a ReLU the picture is still told, its output is not."""
    made = stem(channels=32)
    conv = made[0]
    conv.weight.data[16:], conv.bias.data[16:] = -conv.weight.data[:16], -conv.bias.data[:16]
    return made


def network() -> Drawn:
    return Drawn(("stem", signed()), ("post-activation", lossy()), *free(2))


def free(count: int) -> list[tuple[str, nn.Module]]:
    return [("linear-bottleneck", Bottleneck(32, seed)) for seed in range(count)]


@pytest.fixture(scope="module")
def fitted() -> tuple[Drawn, Recoverer]:
    prefix = network()
    return prefix, SEARCH.fit(Knowledge(SHAPE, prefix), torch.Generator().manual_seed(0))


def recovered(recoverer: Recoverer, leak: Leak) -> Recovery:
    return recoverer.recover(leak, seeding.generators(0, "attack", seeding.row_hashes(leak.features)))


@pytest.fixture(scope="module")
def together(fitted) -> Recovery:
    """What comes back of two pictures."""
    return recovered(fitted[1], fitted[0].leak(pictures(2)))


def nothing(step: Step) -> None:
    """No prior."""


def grey() -> torch.Tensor:
    return torch.full((1, *SHAPE), 0.5)


def test_the_walk_goes_by_itself_to_the_block_that_hides():
    prefix = network()
    assert remaining(steps(prefix, grey()), 0, 480, nothing) == 2
    # No block hides anything: but for the picture's own segment all are behind.
    free = Drawn(
        ("stem", stem()), *(("linear-bottleneck", Bottleneck(16, seed)) for seed in range(3)), image_shape=SHAPE
    )
    assert remaining(steps(free, grey()), 0, 480, nothing) == 1
    # The last segment changes the shape: nothing is behind.
    down = Drawn(("stem", stem(channels=32)), (None, nn.Conv2d(32, 32, 2, stride=2)))
    assert remaining(steps(down, grey()), 0, 480, nothing) == 2


def test_a_head_is_the_network_up_to_there():
    prefix, truth = network(), pictures(2)
    head = Head(prefix.segments[:2])
    assert torch.equal(head(truth), prefix.parts[1](prefix.parts[0](truth)))
    assert head.segments[-1].out_shape == tuple(head(truth).shape[1:])


def test_a_search_comes_back_where_the_walk_alone_does_not(fitted, together):
    prefix, _ = fitted
    truth = pictures(2)
    found, alone = together, walk(prefix, prefix.leak(truth))
    assert psnr(found, truth).min() > 45
    assert psnr(found, truth).min() > psnr(alone, truth).max() + 10
    assert {status.kind for status in found.status} == {"converged"}
    # Every segment was walked, the last first.
    assert len(found.trace) == 3
    expected = prefix.parts[1](prefix.parts[0](truth))
    assert (found.trace[1] - expected).norm() / expected.norm() < 1e-3
    assert SEARCH.budget > Peel(passes=SEARCH.passes).budget


@pytest.mark.slow
def test_rows_are_apart_and_what_is_saved_recovers_the_same(fitted, together, tmp_path):
    prefix, recoverer = fitted
    row = prefix.leak(pictures(2)).rows(1, 2)
    alone = recovered(recoverer, row)
    assert psnr(alone, images(together)[1:]).item() > 60
    recoverer.save(tmp_path / "peel")
    again = SEARCH.load(tmp_path / "peel", Knowledge(SHAPE, prefix))
    assert torch.equal(images(recovered(again, row)), images(alone))


def test_what_the_search_found_is_kept_where_the_walk_makes_it_worse(fitted, monkeypatch):
    from seepage.inverses import Generic
    from seepage.inverses.affine import Affine
    from seepage.solvers import Adam

    def spoil(self, segment, target, passes):
        return Adam(steps=0).solve(lambda x, y: x - x, torch.zeros_like(target.start), target.features)

    prefix, recoverer = fitted
    truth = pictures(1)
    for rule in (Generic, Affine):
        monkeypatch.setattr(rule, "invert", spoil)
    found = recovered(recoverer, prefix.leak(truth))
    assert psnr(found, truth).min() > 40
    assert "failed" not in {status.kind for status in found.status}


def test_a_leak_that_is_not_exact_is_searched_for_whole(fitted):
    prefix, recoverer = fitted
    truth = pictures(1)
    rough = LeakHeader(HEADER.victim, HEADER.weights_sha256, HEADER.layer, "none", wire="int8")
    leak = prefix.leak(truth, rough)
    noise = 0.003 * torch.randn(leak.features.shape, generator=torch.Generator().manual_seed(0))
    assert psnr(recovered(recoverer, leak.with_features(leak.features + noise)), truth).min() > 20


def test_a_search_goes_with_no_other_form():
    with pytest.raises(NotRunError, match="not by form=penalty"):
        Peel(start="search", form="penalty").fit(Knowledge(SHAPE, network()), torch.Generator())


@pytest.mark.slow
def test_a_row_that_breaks_on_the_way_fails_and_the_others_go_on(fitted):
    prefix, recoverer = fitted
    truth = pictures(2)
    leak = prefix.leak(truth)
    broken = leak.features.clone()
    broken[0] = 1e30
    found = recovered(recoverer, leak.with_features(broken))
    assert found.status[1].kind == "converged"
    assert psnr(found, truth)[1] > 45
    assert torch.isfinite(images(found)).all()
    assert found.status[0].kind != "converged"


def test_without_a_leak_it_gives_what_the_search_gives(fitted):
    mean = fitted[1].prior(2, ())
    assert isinstance(mean.value, Images)
    assert torch.equal(images(mean)[0], images(mean)[1])
    assert 0 < images(mean).std() < 0.4


def test_a_vision_transformer_is_walked_back_with_its_class_token_held(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    victim = load(f"module/{tmp_path / 'tiny.py'}:tiny@random:1")
    split = cut(victim, "blocks.2")
    path = steps(split.prefix, torch.full((1, *split.image_shape), 0.5))
    known = [step.known for step in path if isinstance(step.served[1], Transformer)]
    assert known[0] is not None
    assert known[0].all(1).nonzero().flatten().tolist() == [0]
    assert known[1:] == [None, None]
    truth = pictures(2, split.image_shape)
    leak = split.leak(truth)
    knowledge = Knowledge(split.image_shape, split.prefix)
    found = recovered(SEARCH.fit(knowledge, torch.Generator().manual_seed(0)), leak)
    assert psnr(found, truth).min() > 60
