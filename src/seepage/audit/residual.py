"""How far a recovered picture's features are from the leak."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attacks.inversion import told
from ..types import Images, Law, Leak, Recovery, SplitModel


@torch.no_grad()
def residuals(split: SplitModel, leak: Leak, recovery: Recovery, law: Law | None = None) -> list[float | None]:
    """Return |prefix(recovered) - leak| / |leak| a row, by a run of our own; None where no picture came back.

    Where the attacker used a law, what it expects to be sent stands for the features of the recovered picture.
    """
    if not isinstance(recovery.value, Images):
        return [None] * len(leak)
    again: Tensor = split.prefix(recovery.value.images.to(split.device))
    target = leak.features.to(again)
    expected = None if law is None else told(law, leak.with_features(again), leak.with_features(target))
    again = again if expected is None else expected.features
    off = (again - target).flatten(1).norm(dim=1)
    size = target.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return [float(value) for value in (off / size).tolist()]
