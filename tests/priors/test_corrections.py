from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from seepage.priors import CorrectedDecoder, Corrections, dead_leaves

SHAPE = (3, 16, 16)
CPU = torch.device("cpu")


def psnr(images: Tensor, truth: Tensor) -> float:
    return float((-10 * (images - truth).square().flatten(1).mean(1).log10()).mean())


class Bent(nn.Module):
    """Twelve maps of half the size, clamped as by a ReLU6: no linear map undoes it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(24, 3, 3, 3, generator=generator) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x - 0.5, self.weight, stride=2, padding=1).relu()


@cache
def fitted(stages: int, seed: int = 0) -> tuple[Bent, CorrectedDecoder]:
    prefix = Bent()
    decoder, mean = Corrections(stages, 48).fit(prefix, SHAPE, torch.Generator().manual_seed(seed), device=CPU)
    assert mean.shape == (1, 24, 8, 8)
    return prefix, decoder


@pytest.fixture(scope="module")
def truth() -> Tensor:
    return dead_leaves(6, SHAPE, torch.Generator().manual_seed(99))


def test_corrections_see_what_a_linear_decoder_cannot(truth: Tensor) -> None:
    prefix, decoder = fitted(3)
    leak = prefix(truth).detach()
    assert len(decoder.corrections) == 3
    assert psnr(decoder(leak), truth) > psnr(decoder.decoder(leak), truth) + 4
    assert decoder.psnr == pytest.approx(psnr(decoder(leak), truth), abs=3)


def test_without_corrections_it_is_the_ridge_decoder(truth: Tensor) -> None:
    prefix, decoder = fitted(0)
    leak = prefix(truth).detach()
    assert decoder.corrections == ()
    assert torch.equal(decoder(leak), decoder.decoder(leak))


def test_the_same_seed_gives_the_same_steps(truth: Tensor) -> None:
    prefix, first = fitted(3)
    leak = prefix(truth).detach()
    assert torch.equal(first(leak), fitted.__wrapped__(3)[1](leak))
    assert not torch.equal(first(leak), fitted(3, seed=1)[1](leak))


def test_a_picture_does_not_depend_on_its_batch(truth: Tensor) -> None:
    prefix, decoder = fitted(3)
    leak = prefix(truth).detach()
    assert torch.allclose(decoder(leak)[2:3], decoder(leak[2:3]), atol=1e-5)


def test_nothing_is_added_where_nothing_can_be_gained() -> None:
    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8) + 0 * nn.functional.avg_pool2d(x, 2)

    decoder, _ = Corrections(4, 24).fit(Blind(), SHAPE, torch.Generator().manual_seed(0), device=CPU)
    assert len(decoder.corrections) <= 1


def test_a_vector_has_no_grid_to_correct_on() -> None:
    def pooled(x: Tensor) -> Tensor:
        return x.mean((2, 3))

    decoder, mean = Corrections(4, 24).fit(pooled, SHAPE, torch.Generator().manual_seed(0), device=CPU)
    assert decoder.corrections == ()
    assert mean.shape == (1, 3)


def test_the_preconditioner_is_symmetric_and_positive() -> None:
    _, decoder = fitted(3)
    assert decoder.preconditioner is not None
    v, w = torch.randn(2, 5, 768, generator=torch.Generator().manual_seed(3))
    there, back = decoder.preconditioner(v), decoder.preconditioner(w)
    torch.testing.assert_close((there * w).sum(1), (v * back).sum(1), rtol=1e-3, atol=1e-4)
    assert (there * v).sum(1).gt(0).all()
