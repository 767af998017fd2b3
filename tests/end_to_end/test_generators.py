"""What a record says of a generator that an attack brings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seepage.audit.plan import Job, jobs
from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.audit.workbench import Workbench

FILE = """
from pathlib import Path

import torch
from torch import nn


class Drawer(nn.Module):
    latent_dim = 2

    def __init__(self):
        super().__init__()
        self.register_buffer("basis", torch.load(Path(__file__).with_name("basis.pt"), weights_only=True))

    def forward(self, z):
        return (0.5 + torch.einsum("bk,kchw->bchw", z, self.basis)).clamp(0, 1)
"""


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    (tmp_path / "drawer.py").write_text(FILE)
    torch.save(torch.full((2, 3, 16, 16), 0.1), tmp_path / "basis.pt")
    return tmp_path / "drawer.py"


def planned(victim: str, folder: Path, *attacks: str) -> tuple[Job, ...]:
    return jobs(Workbench(Request(victim, str(folder), layers=("wide",), attacks=attacks, metrics=("mse",))))


def test_a_cell_is_another_one_when_its_generator_changes(victim: str, folder: Path, generator: Path) -> None:
    attack = f"gan:generator=module/{generator}:Drawer,steps=2"
    (first,), (again,) = (planned(victim, folder, attack) for _ in range(2))
    assert first == again
    assert len(first.spec.adapter_sha256) == 64
    torch.save(torch.full((2, 3, 16, 16), 0.2), generator.with_name("basis.pt"))
    (weights,) = planned(victim, folder, attack)
    generator.write_text(FILE.replace("0.5 +", "0.4 +"))
    (code,) = planned(victim, folder, attack)
    assert len({job.spec.adapter_sha256 for job in (first, weights, code)}) == 3
    assert len({job.key for job in (first, weights, code)}) == 3
    assert {job.spec.attack for job in (first, weights, code)} == {first.spec.attack}


def test_attacks_that_bring_nothing_have_no_such_hash(victim: str, folder: Path) -> None:
    assert [job.spec.adapter_sha256 for job in planned(victim, folder, "rmle", "gan")] == [None, None]


def test_a_generator_that_cannot_be_loaded_costs_its_own_cell(victim: str, folder: Path, tmp_path: Path) -> None:
    request = Request(
        victim,
        str(folder / "0.png"),
        layers=("mix",),
        attacks=(f"gan:generator=module/{tmp_path}/none.py:f", "rmle:steps=2"),
        metrics=("mse",),
    )
    missing, other = run_audit(request, tmp_path / "o")
    assert (missing.status, other.status) == ("failed", "done")
    assert "no file" in missing.message
    assert missing.spec.adapter_sha256 is None
