"""From one cut on to a later one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from seepage.victims import Victim
from seepage.victims.cut import CutError, cut, onward
from seepage.victims.preprocess import Normalise


class Skips(nn.Module):
    """Two convolutions with a skip around the second, an in-place activation, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = self.relu(x + self.inner(x))
        return self.head(self.pool(x).flatten(1))


@pytest.fixture
def victim() -> Victim:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Skips().eval().requires_grad_(False)
    return Victim(
        name="module/skips",
        model=model,
        normalise=Normalise((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)),
        image_shape=(3, 8, 8),
        picture=lambda image: torch.zeros(3, 8, 8),
        preprocessing="none",
        weights_sha256="0" * 64,
    )


@pytest.mark.parametrize(("start", "end"), [("stem", "relu"), ("stem", "pool"), ("relu", "head"), ("pool", "pool")])
def test_what_is_run_on_is_what_the_later_cut_sends(victim: Victim, start: str, end: str) -> None:
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    sent = cut(victim, start).leak(images).features
    kept = sent.clone()
    torch.testing.assert_close(onward(victim, start, end)(sent), cut(victim, end).leak(images).features)
    assert torch.equal(sent, kept)


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        ("pool", "stem", "cannot be run on from 'pool' to 'stem'"),
        ("inner", "pool", "cannot be run on from 'inner' to 'pool'"),
        ("stem", "poll", "did you mean 'pool'"),
    ],
)
def test_where_no_way_leads_it_says_so(victim: Victim, start: str, end: str, words: str) -> None:
    with pytest.raises(CutError, match=words):
        onward(victim, start, end)


def test_a_leak_of_another_shape_is_refused_by_both_shapes(victim: Victim) -> None:
    run = onward(victim, "stem", "pool")
    sent = cut(victim, "stem").leak(torch.rand(1, 3, 8, 8)).features
    with pytest.raises(CutError, match=rf"features of shape \({sent.shape[1]}, .*\) at 'stem', not \(7,\)"):
        run(torch.zeros(1, 7))
