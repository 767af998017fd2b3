"""Dead leaves: synthetic pictures with the edges, scales and colours of photographs, drawn from nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_BACKGROUND = 20
_LEAVES = 300
_SMALLEST, _LARGEST = 0.01, 0.35
_NOISE_FIELDS = 6


@torch.no_grad()
def dead_leaves(n: int, image_shape: tuple[int, int, int], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Return `n` pictures in [0, 1] of overlapping shaded, textured shapes, on the generator's device.

    Sizes follow the power law r^-3 that makes the model scale-invariant (Lee, Mumford & Huang 2001) over a ground of
    large leaves; colours lie near a palette of the picture's own, textures have 1/f spectra. Pictures of one call share
    where their leaves lie, so that one operation draws a leaf into all of them; form, turn, colour and texture differ.
    """
    channels, height, width = image_shape
    draw = _Draw(generator)
    palette = _Palette(draw, n, channels)
    noise = _noise(draw, height, width)
    canvas = palette.colours(n).view(n, channels, 1, 1).repeat(1, 1, height, width)
    for index, radius in enumerate(_radii(draw, math.hypot(height, width))):
        centre = draw.uniform(2).tolist()
        top, left = centre[0] * height, centre[1] * width
        reach = 1.5 * radius + 1
        y = torch.arange(max(math.floor(top - reach), 0), min(math.ceil(top + reach) + 1, height)).to(canvas)
        x = torch.arange(max(math.floor(left - reach), 0), min(math.ceil(left + reach) + 1, width)).to(canvas)
        window = (slice(int(y[0]), int(y[-1]) + 1), slice(int(x[0]), int(x[-1]) + 1))
        inside, along, over = _leaf(draw, n, index % len(_SHAPES), radius, y - top, x - left)
        shading = draw.normal(n, channels, 2) * 0.05 + draw.normal(n, 1, 2) * 0.1
        grain = draw.uniform(n, 1).square() * 0.12
        paint = torch.stack([along, over, noise[index % _NOISE_FIELDS][window].expand_as(along)], 1)
        mix = torch.cat([shading, grain.expand(n, channels)[..., None]], 2)
        paint = torch.baddbmm(palette.colours(n)[..., None], mix, paint.flatten(2)).view(n, channels, len(y), len(x))
        canvas[:, :, window[0], window[1]].lerp_(paint, inside[:, None])
    return _turn(draw, _soften(draw, canvas)).clamp(0, 1)


class _Draw:
    """Random numbers on the generator's device."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self.device = generator.device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator, device=self.device)


class _Palette:
    """Colours about a picture's own mean: brightness varies most, then blue against yellow, then red against green."""

    def __init__(self, draw: _Draw, n: int, channels: int) -> None:
        self._draw = draw
        axes = 0.2 * torch.eye(channels)
        if channels == 3:
            axes = torch.tensor([[0.22, 0.22, 0.22], [0.07, 0.01, -0.08], [0.03, -0.04, 0.02]])
        self._axes = axes.to(draw.device)
        self._mean = 0.45 + draw.normal(n, channels) @ self._axes * 0.5
        self._spread = 0.35 + 0.75 * draw.uniform(n, 1)

    def colours(self, n: int) -> Tensor:
        """Return one colour a picture, "n c"."""
        return (self._mean + self._spread * (self._draw.normal(n, len(self._axes)) @ self._axes)).clamp(-0.05, 1.05)


# Unit balls, by the distance that draws them; the round ones are the commonest.
_SHAPES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    torch.hypot,
    torch.hypot,
    lambda x, y: (x.square().square() + y.square().square()).sqrt().sqrt(),
    lambda x, y: torch.maximum(x.abs(), y.abs()),
    lambda x, y: x.abs() + y.abs(),
)


def _radii(draw: _Draw, span: float) -> list[float]:
    low, high = max(_SMALLEST * span, 0.7), max(_LARGEST * span, 1.5)
    ground = high * (0.3 + 0.7 * draw.uniform(_BACKGROUND))
    at = draw.uniform(_LEAVES)
    radii: list[float] = torch.cat([ground, (low**-2 + at * (high**-2 - low**-2)).rsqrt()]).tolist()
    return radii


def _leaf(
    draw: _Draw, n: int, shape: int, radius: float, down: Tensor, right: Tensor
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """Return coverage in [0, 1] and the leaf's own two coordinates; `down`, `right` are pixels from its centre."""
    turn = draw.uniform(n, 1, 1) * math.pi
    stretch = 2.0 ** (draw.uniform(n, 1, 1) - 0.5)
    y, x = down[:, None] / radius, right[None] / radius
    along = (turn.cos() * x + turn.sin() * y) * stretch
    over = (turn.cos() * y - turn.sin() * x) / stretch
    return ((1 - _SHAPES[shape](along, over)) * radius + 0.5).clamp_(0, 1), along, over


def _noise(draw: _Draw, height: int, width: int) -> Tensor:
    """Return fields of unit variance whose amplitude falls as 1/f^a, a from 0.3 to 1.3."""
    white = torch.fft.rfft2(draw.normal(_NOISE_FIELDS, height, width))
    rows = torch.fft.fftfreq(height, device=draw.device)
    columns = torch.fft.rfftfreq(width, device=draw.device)
    frequency = torch.hypot(rows[:, None], columns[None]).clamp_min(1 / max(height, width))
    slope = torch.linspace(0.3, 1.3, _NOISE_FIELDS, device=draw.device).view(-1, 1, 1)
    fields: Tensor = torch.fft.irfft2(white * frequency.pow(-slope), s=(height, width))
    return fields / fields.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-6)


def _soften(draw: _Draw, pictures: Tensor) -> Tensor:
    """Blur each picture a little, as optics and resizing do."""
    amount = (draw.uniform(len(pictures), 1, 1, 1) * 0.25).to(pictures)
    for axis in (2, 3):
        size = pictures.shape[axis]
        before = torch.cat([pictures.narrow(axis, 0, 1), pictures.narrow(axis, 0, size - 1)], axis)
        after = torch.cat([pictures.narrow(axis, 1, size - 1), pictures.narrow(axis, size - 1, 1)], axis)
        pictures = pictures + amount * (before + after - 2 * pictures)
    return pictures


def _turn(draw: _Draw, pictures: Tensor) -> Tensor:
    """Mirror each picture at random along both axes, since all have their leaves in the same places."""
    for axis in (2, 3):
        mirrored = (draw.uniform(len(pictures)) < 0.5).view(-1, 1, 1, 1)
        pictures = torch.where(mirrored, pictures.flip(axis), pictures)
    return pictures
