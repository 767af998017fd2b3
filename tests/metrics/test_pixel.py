"""MSE and PSNR against numpy, scikit-image and values by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from seepage.metrics import Mse, Psnr
from seepage.types import Images, Pictures, Recovery, Status


def score(metric: Mse | Psnr, truth: Tensor, recovered: Tensor) -> Tensor:
    count = len(truth)
    recovery = Recovery(Images(recovered), (Status("stopped"),) * count, torch.zeros(count, dtype=torch.long))
    return metric(Pictures(truth, tuple(map(str, range(count)))), recovery)


def test_400_random_cases_are_numpys_and_scikit_images() -> None:
    random = np.random.default_rng(0)
    truth = random.random((400, 3, 7, 9), dtype=np.float32)
    # From 1e-4 to beyond the range, so that the clipping counts.
    spread = 10 ** random.uniform(-4, 0.3, (400, 1, 1, 1)).astype(np.float32)
    recovered = truth + spread * random.standard_normal(truth.shape, dtype=np.float32)
    clipped = recovered.clip(0, 1).astype(np.float64)
    expected = ((clipped - truth.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    found = score(Mse(), torch.from_numpy(truth), torch.from_numpy(recovered)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    ratios = [peak_signal_noise_ratio(a.astype(np.float64), b, data_range=1.0) for a, b in zip(truth, clipped)]
    found = score(Psnr(), torch.from_numpy(truth), torch.from_numpy(recovered)).numpy()
    np.testing.assert_allclose(found, ratios, rtol=1e-10)


@pytest.mark.parametrize(
    ("offset", "decibels"), [(0.1, 20.0), (0.01, 40.0), (0.0001, 80.0), (0.5, 6.020599913), (1e-9, 160.0), (0.0, 160.0)]
)
def test_constant_offset(offset: float, decibels: float) -> None:
    truth = torch.full((1, 3, 4, 4), 0.25, dtype=torch.float64)
    assert score(Mse(), truth, truth + offset).item() == pytest.approx(offset**2, rel=1e-6)
    assert score(Psnr(), truth, truth + offset).item() == pytest.approx(decibels, abs=1e-6)


def test_black_against_white_is_zero_decibels() -> None:
    white = torch.ones(1, 3, 4, 4)
    assert score(Mse(), white, torch.zeros_like(white)).item() == 1.0
    assert str(score(Psnr(), white, torch.zeros_like(white)).item()) == "0.0"


def test_what_lies_beyond_the_range_is_clipped() -> None:
    white = torch.ones(1, 3, 4, 4)
    assert score(Psnr(), white, 1.7 * white).item() == 160.0
    assert score(Mse(), 0 * white, -white).item() == 0.0


def test_each_picture_has_its_own_ratio() -> None:
    truth = torch.zeros(2, 3, 4, 4)
    recovered = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    # Pooling the errors before the logarithm would give 22.97 for both.
    assert score(Psnr(), truth, recovered).tolist() == pytest.approx([20.0, 40.0], abs=1e-5)
