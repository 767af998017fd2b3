"""Small prefixes with known answers, and smooth pictures to send through them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seepage.seeding import generator
from seepage.types import Leak, LeakHeader, Prefix, Segment


class TinyPrefix(Prefix):
    """Modules in a row, each a segment."""

    def __init__(self, image_shape: tuple[int, ...], modules: list[nn.Module], kinds: list[str | None]) -> None:
        super().__init__()
        self.body = nn.ModuleList(modules).eval().requires_grad_(False)
        self.calls = 0
        shapes = [image_shape]
        x = torch.zeros(1, *image_shape)
        for module in self.body:
            x = module(x)
            shapes.append(tuple(x.shape[1:]))
        parts = zip(self.body, kinds, shapes[:-1], shapes[1:], strict=True)
        self._segments = tuple(Segment(f"s{i}", kind, m, a, b) for i, (m, kind, a, b) in enumerate(parts))

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self._segments

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        for module in self.body:
            images = module(images)
        return images


def wide(channels: int = 12, size: int = 16) -> TinyPrefix:
    """Two convolutions with more numbers out than in: the picture is determined by the leak."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
    return TinyPrefix((3, size, size), [nn.Sequential(first, nn.LeakyReLU(0.3)), second], ["conv", "conv"])


def narrow(size: int = 16) -> TinyPrefix:
    """A strided convolution with a quarter of the numbers: many pictures explain the leak."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyPrefix((3, size, size), [nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.LeakyReLU(0.3))], ["conv"])


def pictures(count: int, size: int = 16) -> Tensor:
    """Smooth pictures in [0.1, 0.9], the same every time."""
    noise = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return 0.1 + 0.8 * torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)


def leak(features: Tensor) -> Leak:
    """Wrap features as a leak."""
    return Leak(features, LeakHeader("tiny", "0" * 64, "s", "none"))


def draws(count: int, first: int = 0) -> list[torch.Generator]:
    """One generator a row."""
    return [generator(0, "attack", first + row) for row in range(count)]


def psnr(found: Tensor, truth: Tensor) -> Tensor:
    """In dB, a picture."""
    return -10 * (found - truth).square().flatten(1).mean(1).log10()
