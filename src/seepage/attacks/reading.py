"""Leaks of labelled pictures as a probe reads them: a grid of bounded size, and the label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..priors.ridge import Layout
from ..types import Pair, Shape

WIDEST = 16


@dataclass(frozen=True)
class Reading:
    """What of a leak is read: its grid, averaged over the largest square of places that leaves at most `most` numbers.

    The square has at most `WIDEST` places a side and at least one. A vector is read whole.
    """

    leak_shape: Shape
    image_shape: tuple[int, int, int]
    most: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of what is read."""
        channels, rows, columns = Layout.of(self.leak_shape, self.image_shape).grid
        side = next((k for k in range(WIDEST, 1, -1) if channels * min(k, rows) * min(k, columns) <= self.most), 1)
        return channels, min(side, rows), min(side, columns)

    def __call__(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b c r s"]:
        """Return the grids of some leaks."""
        grid = Layout.of(self.leak_shape, self.image_shape).arrange(features.float())
        return grid if tuple(grid.shape[1:]) == self.shape else adaptive_avg_pool2d(grid, self.shape[1:])


@dataclass(frozen=True)
class Labelled:
    """What was read of pictures with a label, `classes` the names of all labels where they have names."""

    reading: Reading
    grid: Float[Tensor, "n c r s"]
    labels: Int[Tensor, "n"]
    classes: tuple[str, ...] | None


@torch.no_grad()
def labelled(pairs: Iterable[Pair], image_shape: tuple[int, int, int], most: int) -> Labelled | None:
    """Read leaks once; those without a label and those that are not finite are left out. None where none is left."""
    reading, classes = None, None
    grids, labels = list[Tensor](), list[Tensor]()
    for leak, pictures in pairs:
        if pictures.labels is None or not len(leak):
            continue
        reading = reading or Reading(tuple(leak.features.shape[1:]), image_shape, most)
        classes = pictures.classes
        finite = torch.isfinite(leak.features.flatten(1)).all(1)
        rows = ((pictures.labels.to(finite.device) >= 0) & finite).nonzero().flatten()
        grids.append(reading(leak.features.detach()[rows]))
        labels.append(pictures.labels.to(rows.device)[rows])
    if reading is None or not sum(map(len, labels)):
        return None
    return Labelled(reading, torch.cat(grids), torch.cat(labels).long(), classes)
