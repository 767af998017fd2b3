"""Stages of training: held-out tests are asked alike on the way and at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("accelerate")

from seepage.attacks.loop import Loop
from seepage.studies.stages import Watched


def test_held_out_tests_are_asked_in_full_precision_each_time(tmp_path: Path) -> None:
    net, mixed = nn.Linear(64, 1, bias=False), []
    given = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))

    def loss(number: int) -> Tensor:
        mixed.append(torch.is_autocast_enabled("cpu"))
        # No gradient: what is tested is the same network each time.
        return net(given).float().square().mean() * 0

    def test() -> dict[str, float]:
        return {"held-out": float(net(given).float().square().mean())}

    watched = Watched("fit", "squared", Loop(16, 1e-3, precision="bf16"), tmp_path)
    stage = watched.run(net, loss, test, {"seed": 0}, None)
    values = [value for _, value in stage.held["held-out"]]
    assert all(mixed)
    assert len(values) > 2
    assert len(set(values)) == 1, "a test on the way saw another precision than the last"
