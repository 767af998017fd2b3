"""Whether a defense hides its gradient rather than the picture."""

from __future__ import annotations

import torch

from ..schema import Check
from ..types import Law, Leak

_SEEN = 0.01


@torch.enable_grad()
def gradient_masking(law: Law | None, clean: Leak) -> tuple[Check, ...]:
    """Return a warning where what a law expects changes with the leak and its gradient does not say so.

    Both are taken along one direction of a tenth of the leak's size: an attack that follows the gradient would stand
    still, and show protection that is none.
    """
    expected = None if law is None else law.expected(clean)
    if law is None or expected is None:
        return ()
    features = clean.features.detach().clone().requires_grad_()
    step = torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features)
    step = step * 0.1 * features.detach().square().mean().sqrt().clamp_min(1e-6)
    ahead = law.expected(clean.with_features(features.detach() + step))
    here = law.expected(clean.with_features(features))
    if ahead is None or here is None:
        return ()
    moved = ahead.features - here.features.detach()
    slope = torch.zeros_like(features)
    if here.features.requires_grad:
        (slope,) = torch.autograd.grad(here.features, features, moved.detach(), allow_unused=True)
    told = 0.0 if slope is None else float((slope * step).sum().abs())
    if float(moved.norm()) < 1e-3 * float(step.norm()) or told > _SEEN * float(moved.square().sum()):
        return ()
    message = (
        "the defense's law gives no gradient where what is sent changes: attacks that follow it stand still, "
        "and what they fail at is not shown to be safe"
    )
    return (Check(name="gradient-masking", level="warning", message=message),)
