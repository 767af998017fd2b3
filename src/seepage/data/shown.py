"""The ways a picture is shown to a victim that is learned from: as it is, mirrored, and as random parts of itself."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .. import seeding

PLAIN, MIRRORED = 0, 1
"""Further ways, from 2 on, are crops."""
_AREA, _ASPECT = (0.4, 1.0), (3 / 4, 4 / 3)


def ways(*, flips: bool, crops: int) -> tuple[int, ...]:
    """Return the ways that are asked for."""
    return (PLAIN, *((MIRRORED,) if flips else ()), *range(MIRRORED + 1, MIRRORED + 1 + crops))


def pick(known: tuple[int, ...], share: float) -> int:
    """Return one of some ways by a number in [0, 1), each as likely as any other."""
    # The mirror image comes first, as a coin of one half always gave it.
    order = (MIRRORED, *(way for way in known if way != MIRRORED)) if MIRRORED in known else known
    return order[int(share * len(order))]


def shown(image: Float[Tensor, "c h w"], way: int, sha256: str) -> Float[Tensor, "c h w"]:
    """Return a picture as one way shows it, in its own size.

    A crop has two fifths to all of the area and nearly the picture's shape, and half of them are mirrored (Szegedy et
    al. 2015, Inception's, of which few are smaller than this). Which it is depends on the way and the file alone.
    """
    if way == PLAIN:
        return image
    if way == MIRRORED:
        return image.flip(-1)
    area, aspect, down, across, coin = torch.rand(
        5, generator=seeding.generator(0, "fit", "crop", way, sha256)
    ).tolist()
    height, width = image.shape[1:]
    side = math.sqrt(_AREA[0] + area * (_AREA[1] - _AREA[0]))
    narrow = math.exp(math.log(_ASPECT[0]) + aspect * (math.log(_ASPECT[1]) - math.log(_ASPECT[0]))) ** 0.5
    rows, columns = (
        min(max(round(one), 1), most)
        for one, most in ((side * height / narrow, height), (side * width * narrow, width))
    )
    top, left = int(down * (height - rows + 1)), int(across * (width - columns + 1))
    part = image[:, top : top + rows, left : left + columns]
    part = F.interpolate(part[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    return part.flip(-1) if coin < 0.5 else part
