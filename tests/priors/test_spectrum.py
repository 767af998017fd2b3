from __future__ import annotations

import math

import pytest
import torch
from scipy.fft import dctn, idctn

from seepage.priors import Spectrum

COLOURS = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
COLOURS = COLOURS / COLOURS.norm(dim=1, keepdim=True) * torch.tensor([[1.0], [0.35], [0.2]])


def written_out(u: torch.Tensor) -> torch.Tensor:
    """The picture by its formula, from SciPy's cosine transform."""
    height, width = u.shape[2:]
    down, across = torch.arange(height)[:, None] / (2 * height), torch.arange(width)[None] / (2 * width)
    frequency = torch.hypot(down.double(), across.double()).clamp_min(0.5 / max(height, width))
    waves = torch.from_numpy(idctn((0.5 / frequency * u).numpy(), axes=(2, 3), norm="ortho"))
    return torch.stack([sum(COLOURS[k, c] * waves[:, k] for k in range(3)) for c in range(3)], 1).sigmoid()


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (33, 17), (1, 4)])
def test_a_picture_is_its_weighted_cosines_along_opponent_colours(size: tuple[int, int]) -> None:
    u = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(Spectrum().decode(u), written_out(u), atol=1e-12)


def test_encoding_is_the_inverse_inside_the_range() -> None:
    images = 0.01 + 0.98 * torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(Spectrum().decode(Spectrum().encode(images)), images, atol=1e-5)
    corners = torch.tensor([0.0, 1.0]).repeat(1, 3, 4, 2)
    assert torch.isfinite(Spectrum().encode(corners)).all()
    assert (Spectrum().decode(Spectrum().encode(corners)) - corners).abs().max() <= 0.005 + 1e-5


def test_natural_pictures_are_nearly_white_in_it() -> None:
    from skimage.data import astronaut

    picture = torch.from_numpy(astronaut()[:256, :256].copy()).permute(2, 0, 1)[None] / 255
    u = Spectrum().encode(picture)[0, 0]
    plain = torch.from_numpy(dctn(picture.clamp(0.005, 0.995).logit().mean(1)[0].numpy(), norm="ortho"))

    def ratio(values: torch.Tensor) -> float:
        return float(values[1:16, 1:16].square().mean() / values[64:128, 64:128].square().mean())

    assert ratio(u) < ratio(plain) / 30
    assert math.log10(ratio(u)) < 2
