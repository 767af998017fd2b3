"""A row of a leak that is all zeros, as a ReLU may give: it fails alone, in every attack, and says what it is."""

from __future__ import annotations

import pytest
import torch
from tiny import TinyPrefix, draws, leak, narrow, pictures, wide
from torch import nn

from seepage import registry, seeding
from seepage.types import Images, Knowledge, Recovery

SHAPE = (3, 8, 8)
ATTACKS = (
    "rmle:steps=5",
    "joint:start=grey,steps=5,newton=1,open_steps=5",
    "joint:pictures=6,corrections=1,steps=0,newton=1,open_steps=2",
    "peel:passes=12",
    "peel:form=penalty,passes=12",
    "deep-image-prior:steps=3,channels=4,depth=1",
    "divide:pictures=6,steps=4,width=4,refine=3",
    "decoder:pictures=6,steps=4,width=4",
)


def recovered(attack: str, prefix: TinyPrefix, features: torch.Tensor) -> Recovery:
    fitted = registry.build("attack", attack).fit(Knowledge(SHAPE, prefix), seeding.generator(0, "fit"))
    found: Recovery = fitted.recover(leak(features), draws(len(features)))
    assert isinstance(found.value, Images)
    return found


@pytest.mark.parametrize("prefix", [wide, narrow])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_row_of_zeros_fails_alone_and_says_so(attack: str, prefix) -> None:
    network = prefix(size=8)
    features = network(pictures(3, 8))
    features[1] = 0
    found = recovered(attack, network, features)
    assert [status.kind == "failed" for status in found.status] == [False, True, False]
    assert found.status[1].message.startswith("the leak is all zeros")
    assert "\n" not in found.status[1].message
    assert torch.isfinite(found.value.images).all()
    assert found.passes[1] == 0


@pytest.mark.parametrize("attack", ATTACKS)
def test_where_nothing_is_excited_every_row_fails(attack: str) -> None:
    dead = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    dead[0].bias.data.fill_(-100)
    network = TinyPrefix(SHAPE, [dead], ["conv"])
    found = recovered(attack, network, network(pictures(2, 8)))
    assert {(status.kind, status.message[:21]) for status in found.status} == {("failed", "the leak is all zeros")}


def test_one_number_that_is_not_zero_is_a_leak() -> None:
    features = torch.zeros(1, 12, 8, 8)
    features[0, 0, 0, 0] = 1e-3
    assert recovered("rmle:steps=5", wide(size=8), features).status[0].kind != "failed"
