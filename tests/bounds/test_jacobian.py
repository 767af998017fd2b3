from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seepage.bounds import LEVELS, jacobian, spectrum


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Sequential:
    """A convolution, a ReLU and a convolution, 192 numbers in and 256 out."""
    found = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
    with torch.no_grad():
        for weight in found.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw(1)) * 0.3)
    return found.requires_grad_(False)


def stretch(values: Tensor) -> nn.Module:
    """A map of known singular values between two orthogonal ones: a shuffle of the pixels, and signs."""
    order = torch.randperm(len(values), generator=draw(2))
    signs = torch.randint(2, (len(values),), generator=draw(3)) * 2.0 - 1.0

    class Stretch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1) * values * signs)[:, order]

    return Stretch()


def test_an_exact_spectrum_is_numpy_s() -> None:
    model, x = network(), torch.rand(1, 3, 8, 8, generator=draw(4))
    dense = torch.autograd.functional.jacobian(model, x).reshape(256, 192)
    wanted = np.linalg.svd(dense.double().numpy(), compute_uv=False)
    found = spectrum(model, x, draw(0))
    assert found.exact
    assert (found.inputs, found.outputs) == (192, 256)
    at = [min(math.ceil(level * 192), 191) for level in LEVELS]
    np.testing.assert_allclose(found.values, wanted[at], rtol=1e-4, atol=1e-6)
    assert found.energy.value == pytest.approx((wanted**2).sum(), rel=1e-5)
    assert found.rank.value == np.linalg.matrix_rank(dense.double().numpy(), tol=1e-6 * wanted[0])
    assert found.condition == math.inf
    invertible = spectrum(nn.Sequential(network()[0], nn.Flatten()), x, draw(0))
    assert invertible.rank.value == 192
    assert math.isfinite(invertible.condition)
    torch.testing.assert_close(jacobian(model, x), dense)


def test_a_narrow_function_is_computed_by_rows_and_loses_rank() -> None:
    model = nn.Sequential(network(), nn.Flatten(), nn.Linear(256, 20).requires_grad_(False))
    x = torch.rand(1, 3, 8, 8, generator=draw(5))
    dense = torch.autograd.functional.jacobian(model, x).reshape(20, 192)
    torch.testing.assert_close(jacobian(model, x), dense)
    found = spectrum(model, x, draw(0))
    assert (found.rank.value, found.condition, found.passes) == (20, math.inf, 20)


def test_intervals_cover_a_known_spectrum_of_6000_inputs() -> None:
    """A quarter of the directions are lost, the others spread over a decade. Of 16 intervals 95 % cover 15."""
    values = torch.cat([torch.logspace(-1, 0, 4500), torch.zeros(1500)])
    model, x = stretch(values), torch.rand(1, 3, 40, 50, generator=draw(6))
    found = [spectrum(model, x, draw(100 + seed), probes=6, steps=24) for seed in range(16)]
    truth = float(values.double().square().sum())
    assert not any(one.exact for one in found)
    assert sum(one.energy.low < truth < one.energy.high for one in found) >= 12
    assert sum(one.rank.low < 4500 < one.rank.high for one in found) >= 12
    assert all(one.energy.high - one.energy.low < 0.2 * truth for one in found)
    assert all(one.rank.low > 0.8 * 4500 for one in found)
    half, wanted = LEVELS.index(0.5), float(values.sort(descending=True).values[3000])
    for one in found:
        assert one.values[0] == pytest.approx(1.0, rel=0.02)
        assert one.values[half] == pytest.approx(wanted, rel=0.3)
        assert one.values[-1] < 0.01
    ordered = values.sort(descending=True).values
    for place, level in enumerate(LEVELS):
        true = float(ordered[min(int(level * 6000), 5999)])
        held = sum(one.low[place] - 1e-6 <= true <= one.high[place] * 1.001 for one in found)
        assert held >= 12, level
        assert all(one.low[place] <= one.values[place] <= one.high[place] for one in found)
    assert all(one.high[half] < 2 * wanted for one in found)


def test_the_condition_of_a_large_function_is_bounded_from_below() -> None:
    values = torch.logspace(-3, 0, 6000)
    found = spectrum(stretch(values), torch.rand(1, 3, 40, 50, generator=draw(8)), draw(9), probes=3, steps=40)
    assert 50 < found.condition <= 1000.5
    assert found.rank.high == 6000
    assert all(one >= other for one, other in zip(found.values, found.values[1:], strict=False))


def test_outputs_too_few_are_known_without_a_search() -> None:
    values = torch.logspace(-1, 0, 6000)
    model = nn.Sequential(stretch(values), Head())
    found = spectrum(model, torch.rand(1, 3, 40, 50, generator=draw(10)), draw(11), probes=4, steps=20)
    assert found.condition == math.inf
    assert found.rank.high == 1500
    assert found.values[LEVELS.index(0.5)] == 0.0
    assert found.values[LEVELS.index(0.1)] > 0.05


class Head(nn.Module):
    """The first quarter of the numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1500]


def test_the_same_generator_gives_the_same_estimate() -> None:
    model, x = network(), torch.rand(1, 3, 8, 8, generator=draw(12))
    first, again = (spectrum(model, x, draw(13), probes=2, steps=5, exact_up_to=0) for _ in range(2))
    other = spectrum(model, x, draw(14), probes=2, steps=5, exact_up_to=0)
    assert first == again != other
