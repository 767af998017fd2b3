"""Total variation: how much neighbouring pixels differ."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

_EPSILON = 1e-3


def total_variation(
    images: Float[Tensor, "b c h w"], *, isotropic: bool = True, epsilon: float = _EPSILON
) -> Float[Tensor, "b"]:
    """Return each picture's mean variation a pixel and channel: zero for a flat one (Rudin, Osher & Fatemi 1992).

    `isotropic` takes the length of the gradient, otherwise its two components add. `epsilon`, in the pictures' unit,
    rounds the corner at zero so that the slope is finite everywhere. Pictures of one row or column have a gradient too.
    """
    down = images.diff(dim=2, append=images[:, :, -1:])
    across = images.diff(dim=3, append=images[..., -1:])
    if isotropic:
        length = (down.square() + across.square() + epsilon**2).sqrt() - epsilon
    else:
        length = (down.square() + epsilon**2).sqrt() + (across.square() + epsilon**2).sqrt() - 2 * epsilon
    return length.flatten(1).mean(1)
