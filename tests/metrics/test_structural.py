"""SSIM and MS-SSIM against plain numpy, torchmetrics and values by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import gaussian_filter
from torch import Tensor

from seepage.metrics import MsSsim, Ssim
from seepage.types import Images, NotRunError, Pictures, Recovery, Status

C1, C2 = 1e-4, 9e-4


def score(metric: Ssim | MsSsim, truth: Tensor, recovered: Tensor) -> Tensor:
    count = len(truth)
    recovery = Recovery(Images(recovered), (Status("stopped"),) * count, torch.zeros(count, dtype=torch.long))
    return metric(Pictures(truth, tuple(map(str, range(count)))), recovery)


def degraded_pairs(count: int, height: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Waves, edges and noise of many kinds; recoveries from nearly equal to unrelated and inverted."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    rate = 60 * torch.rand(count, 3, 2, 1, 1, generator=random)
    waves = 0.5 + 0.5 * torch.sin(rate[:, :, 0] * x + rate[:, :, 1] * y)
    truth = torch.where(torch.rand(count, 1, 1, 1, generator=random) < 0.3, (waves > 0.5).float(), waves)
    strength = torch.rand(count, 1, 1, 1, generator=random) ** 3
    noise = torch.rand(count, 3, height, width, generator=random)
    recovered = (1 - strength) * truth + strength * noise
    recovered[::7] = 1 - recovered[::7]
    return truth, recovered


def similarity_by_hand(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Luminance and structure of one channel from the definition: weighted moments of every window, centred first."""
    place = np.arange(11) - 5
    weights = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    windows_a, windows_b = (sliding_window_view(channel, (11, 11)) for channel in (a, b))
    mean_a, mean_b = (np.einsum("yxij,ij->yx", windows, weights) for windows in (windows_a, windows_b))
    off_a, off_b = windows_a - mean_a[..., None, None], windows_b - mean_b[..., None, None]
    var_a, var_b, covariance = (
        np.einsum("yxij,yxij,ij->yx", first, second, weights)
        for first, second in ((off_a, off_a), (off_b, off_b), (off_a, off_b))
    )
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return luminance, (2 * covariance + C2) / (var_a + var_b + C2)


def similarity_by_scipy(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same from scipy's Gaussian filter, cut to where the window fits: quick enough for large pictures."""
    mean_a, mean_b, aa, bb, ab = (
        gaussian_filter(channel, 1.5, truncate=3.5)[5:-5, 5:-5] for channel in (a, b, a * a, b * b, a * b)
    )
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return luminance, (2 * (ab - mean_a * mean_b) + C2) / (aa + bb - mean_a**2 - mean_b**2 + C2)


def ms_ssim_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    values = []
    for first, second in zip(a, b):
        value = 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            luminance, structure = similarity_by_scipy(first, second)
            value *= max(0.0, float((luminance * structure if scale == 4 else structure).mean())) ** weight
            first, second = halved(first), halved(second)
        values.append(value)
    return float(np.mean(values))


def halved(channel: np.ndarray) -> np.ndarray:
    height, width = ((side + 1) // 2 * 2 for side in channel.shape)
    even = np.pad(channel, [(0, height - channel.shape[0]), (0, width - channel.shape[1])], mode="edge")
    return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4


@pytest.mark.parametrize(("height", "width", "seed"), [(16, 23, 0), (11, 11, 1), (32, 20, 2)])
def test_ssim_is_its_definition_on_200_cases(height: int, width: int, seed: int) -> None:
    truth, recovered = degraded_pairs(80, height, width, seed)
    expected = [
        np.mean([np.prod(similarity_by_hand(a, b), axis=0).mean() for a, b in zip(original, other)])
        for original, other in zip(truth.double().numpy(), recovered.double().numpy())
    ]
    found = score(Ssim(), truth, recovered).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert found.min() < 0 < 0.9 < found.max()


def test_ssim_is_torchmetrics_away_from_the_borders() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    truth, recovered = degraded_pairs(200, 32, 32, 3)
    _, full = structural_similarity_index_measure(
        recovered.double(), truth.double(), sigma=1.5, data_range=1.0, return_full_image=True
    )
    expected = full[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    torch.testing.assert_close(score(Ssim(), truth, recovered), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("height", "width", "cases"), [(161, 161, 130), (167, 190, 70)])
def test_ms_ssim_is_its_definition_on_200_cases(height: int, width: int, cases: int) -> None:
    truth, recovered = degraded_pairs(cases, height, width, height)
    expected = [ms_ssim_by_hand(a, b) for a, b in zip(truth.double().numpy(), recovered.double().numpy())]
    found = score(MsSsim(), truth, recovered).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert found.min() < 0.2 < 0.95 < found.max()


def test_constant_pictures_differ_in_luminance_alone() -> None:
    truth, recovered = torch.full((1, 3, 176, 176), 0.5), torch.full((1, 3, 176, 176), 0.25)
    luminance = (2 * 0.125 + C1) / (0.25 + 0.0625 + C1)
    assert score(Ssim(), truth, recovered).item() == pytest.approx(luminance, abs=1e-9)
    assert score(MsSsim(), truth, recovered).item() == pytest.approx(luminance**0.1333, abs=1e-9)


def test_inverted_structure_is_negative_and_no_root_of_it_is_taken() -> None:
    truth, _ = degraded_pairs(4, 176, 176, 9)
    assert (score(Ssim(), truth, 1 - truth) < 0).all()
    assert score(MsSsim(), truth, 1 - truth).tolist() == [0.0] * 4


def test_least_sizes() -> None:
    assert Ssim().unavailable((3, 11, 11)) is None
    assert MsSsim().unavailable((3, 161, 161)) is None
    assert "at least 161" in str(MsSsim().unavailable((3, 224, 160)))
    for metric, side in ((Ssim(), 10), (MsSsim(), 160)):
        picture = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        reason = metric.unavailable((3, side, side))
        assert reason is not None
        with pytest.raises(NotRunError, match=f"{side}x{side}") as caught:
            score(metric, picture, picture)
        assert str(caught.value) == reason
