"""Deep image prior: the picture is what a small convolutional network, fitted to this leak alone, makes of noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..inverses import sizes
from ..registry import register
from ..types import (
    Access,
    Auxiliary,
    Generators,
    Images,
    Knowledge,
    Leak,
    Prefix,
    Progress,
    Recoverer,
    Recovers,
    Recovery,
    Status,
)
from .chores import Chore
from .inversion import GREY, device_of, ended, leak_shape, recover_rows, white_box
from .networks import SLOPE, drawn
from .parameters import within

_NOISE = 0.1
_SMALLEST = 4
_SKIP = 4


@register("attack", "deep-image-prior")
@dataclass(frozen=True)
class DeepImagePrior:
    """Minimise |prefix(g_w(z)) - leak|^2 / |leak|^2 over the weights w of a small hourglass network g, from noise z.

    Ulyanov, Vedaldi & Lempitsky, "Deep Image Prior" (CVPR 2018), applied to features as in their section on natural
    pre-images. Each row has its own weights and its own fixed z, uniform in [0, 0.1]; what the network draws easily is
    the only prior. At each of `steps` steps of Adam, at a rate that falls from `lr` along a cosine to a tenth, z is
    moved by Gaussian noise of deviation `jitter`, which fades by the same factor. The answer is the exponential average
    of the outputs with factor `average`. The network halves the picture up to `depth` times, as long as 4 pixels stay,
    with `channels` maps at full size and up to four times as many below; sigmoids keep the picture in [0, 1].

    White-box; it sees the leak and the prefix, no picture of any kind. A row has converged at a relative residual of at
    most `tolerance`. A step is one pass, the answer's residual one more.
    """

    steps: int = 1000
    lr: float = 0.02
    channels: int = within(16, least=1)
    depth: int = 5
    jitter: float = 0.003
    average: float = within(0.95, most=1)
    tolerance: float = 1e-3

    recovers: ClassVar[Recovers] = "images"
    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {
        "quick": {"steps": 200},
        "standard": {},
        "full": {"steps": 4000},
    }

    @property
    def access(self) -> Access:
        """The prefix is needed."""
        return "white-box"

    @property
    def auxiliary(self) -> Auxiliary:
        """Nothing is needed beside the leak."""
        return "none"

    @property
    def budget(self) -> int:
        """One pass a step, and one to judge the answer."""
        return self.steps + 1

    def fit(
        self,
        knowledge: Knowledge,
        generator: torch.Generator,
        *,
        workdir: Path | None = None,
        progress: Progress | None = None,
    ) -> Recoverer:
        """Return the recoverer; there is nothing to learn before a leak is seen.

        Raises:
            NotRunError: the attacker has no prefix.
        """
        return DeepImagePriorRecoverer(self, white_box(knowledge, "deep-image-prior"), knowledge.image_shape)

    def chores(self, knowledge: Knowledge, rows: int) -> Sequence[Chore]:
        """Return one step: network and prefix there and back, for one picture alone.

        Raises:
            NotRunError: the attacker has no prefix.
        """
        prefix = white_box(knowledge, "deep-image-prior")
        device = device_of(prefix)
        search = DeepImagePriorRecoverer(self, prefix, knowledge.image_shape)
        network, z = search._start(torch.Generator().manual_seed(0), device)
        adam = torch.optim.Adam(network.parameters(), lr=self.lr)

        def step() -> None:
            adam.zero_grad()
            with torch.enable_grad():
                prefix(network(z)).square().mean().backward()
            adam.step()

        return (Chore(step, each=self.budget),)

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        """Return the recoverer that was saved to `path`."""
        saved = DeepImagePrior(**json.loads(path.read_text(encoding="utf-8")))
        return saved.fit(knowledge, torch.Generator())


class DeepImagePriorRecoverer(Recoverer):
    """The search on one prefix, row after row: each has a network of its own."""

    def __init__(self, attack: DeepImagePrior, prefix: Prefix, image_shape: tuple[int, int, int]) -> None:
        self.attack = attack
        self.prefix = prefix
        self.image_shape = image_shape

    def recover(self, leak: Leak, generators: Generators) -> Recovery:
        """Fit a network to each row."""

        def search(features: Tensor, rows: Sequence[int]) -> tuple[Tensor, Sequence[Status], Tensor]:
            found = [self._row(features[place : place + 1], generators[row]) for place, row in enumerate(rows)]
            images, residuals, solved, passes = zip(*found, strict=True)
            residual = torch.stack(residuals)
            return torch.cat(images), ended(residual, solved, self.attack.tolerance), torch.tensor(passes)

        return recover_rows(leak, leak_shape(self.prefix), self.image_shape, search)

    @torch.no_grad()
    def prior(self, n: int, generators: Generators) -> Recovery:
        """Return what each row's network draws before it is fitted."""
        device = device_of(self.prefix)
        drawings = []
        for generator in generators[:n]:
            network, z = self._start(generator, device)
            drawings.append(network(z))
        return Recovery(Images(torch.cat(drawings)), (Status("stopped", "no leak"),) * n, torch.zeros(n).long())

    def save(self, path: Path) -> None:
        """Write the configuration."""
        path.write_text(json.dumps(asdict(self.attack)), encoding="utf-8")

    def _start(self, generator: torch.Generator, device: torch.device) -> tuple[Hourglass, Tensor]:
        """Draw a network and its input."""
        network = drawn(lambda: Hourglass(self.image_shape, self.attack.channels, self.attack.depth), generator, device)
        z = _NOISE * torch.rand(1, self.attack.channels, *self.image_shape[1:], generator=generator)
        return network, z.to(device)

    def _row(self, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Status, int]:
        """Return picture, relative residual, whether it failed, and passes."""
        attack, size = self.attack, sizes(target)
        network, z = self._start(generator, target.device)
        adam = torch.optim.Adam(network.parameters(), lr=attack.lr)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(attack.steps, 1), attack.lr / 10)
        with torch.no_grad():
            answer = network(z)
        weight = 0.0
        for step in range(attack.steps):
            jitter = attack.jitter * rate.get_last_lr()[0] / attack.lr
            noise = torch.randn(z.shape, generator=generator).to(z)
            with torch.enable_grad():
                picture = network(z + jitter * noise)
                loss = ((self.prefix(picture) - target).flatten(1) / size).square().sum()
                adam.zero_grad()
                loss.backward()
            if not torch.isfinite(loss):
                failed = Status("failed", f"the loss is not finite at step {step}")
                return torch.full_like(answer, GREY), loss.detach(), failed, step + 1
            adam.step()
            rate.step()
            # The weights of past outputs fall geometrically and sum to one from the first.
            weight = attack.average * weight + 1
            answer = answer + (picture.detach() - answer) / weight
        with torch.no_grad():
            residual = ((self.prefix(answer) - target).flatten(1) / size).norm()
        return answer, residual, Status("stopped"), attack.steps + 1


class Hourglass(nn.Module):
    """From noise "1 c h w" to a picture of the same size: down by halves and up again, with narrow skips."""

    def __init__(self, image_shape: tuple[int, int, int], channels: int, depth: int) -> None:
        super().__init__()
        smallest = min(image_shape[1:])
        levels = [level for level in range(depth) if smallest >> (level + 1) >= _SMALLEST]
        widths = [channels * min(2 ** (level + 1), 4) for level in levels]
        self.down, self.skip, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        given = channels
        for level, width in zip(levels, widths, strict=True):
            self.skip.append(_block(given, _SKIP, kernel=1))
            self.down.append(nn.Sequential(_block(given, width, stride=2), _block(width, width)))
            above = widths[level - 1] if level else channels
            self.up.append(nn.Sequential(_block(width + _SKIP, above), _block(above, above, kernel=1)))
            given = width
        self.bottom = _block(given, given)
        self.end = nn.Conv2d(channels, image_shape[0], 1)

    def forward(self, z: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 k h w"]:
        """Return the picture, in [0, 1]."""
        kept = []
        for skip, down in zip(self.skip, self.down, strict=True):
            kept.append(skip(z))
            z = down(z)
        z = self.bottom(z)
        for side, up in zip(reversed(kept), reversed(self.up), strict=True):
            z = nn.functional.interpolate(z, side.shape[2:], mode="bilinear", align_corners=False)
            z = up(torch.cat([z, side], 1))
        picture: Tensor = self.end(z)
        return picture.sigmoid()


def _block(given: int, made: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(given, made, kernel, stride, kernel // 2, padding_mode="reflect"),
        nn.InstanceNorm2d(made, affine=True),
        nn.LeakyReLU(SLOPE),
    )
