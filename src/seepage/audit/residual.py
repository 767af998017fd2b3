"""How far a recovered picture's features are from the leak."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Images, Recovery, SplitModel


@torch.no_grad()
def residuals(split: SplitModel, features: Tensor, recovery: Recovery) -> list[float | None]:
    """Return |prefix(recovered) - leak| / |leak| a row, by a run of our own; None where no picture came back."""
    if not isinstance(recovery.value, Images):
        return [None] * len(features)
    again = split.prefix(recovery.value.images.to(split.device))
    target = features.to(again)
    off = (again - target).flatten(1).norm(dim=1)
    size = target.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return [float(value) for value in (off / size).tolist()]
