"""Networks that attacks train are drawn from what is handed in and come back from disk as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from seepage.attacks import networks


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.InstanceNorm2d(64, affine=True), nn.Linear(5, 7))


def test_weights_come_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    found = [networks.drawn(net, torch.Generator().manual_seed(s), torch.device("cpu")).state_dict() for s in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.equal(found[0]["0.weight"], found[2]["0.weight"])


def test_weights_start_as_he_did() -> None:
    found = networks.drawn(net, torch.Generator().manual_seed(0), torch.device("cpu")).state_dict()
    assert found["0.weight"].std().item() == pytest.approx((2 / 1.01 / 27) ** 0.5, rel=0.05)
    assert torch.equal(found["1.weight"], torch.ones(64))
    assert all(not found[name].any() for name in ("0.bias", "1.bias", "2.bias"))


def test_a_file_holds_tensors_and_what_is_said(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.zeros(0)}
    networks.write(tmp_path / "x", tensors, {"width": 3, "name": "é"})
    found, said = networks.read(tmp_path / "x")
    assert said == {"width": 3, "name": "é"}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_another_file_is_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "other").write_bytes(content)
    with pytest.raises(networks.SavedAttackError, match="other holds no attack"):
        networks.read(tmp_path / "other")
