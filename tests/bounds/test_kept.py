from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from seepage.bounds import Estimate, Spectrum, kept, spectrum


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path))
    return tmp_path / "bounds"


def test_a_value_is_computed_once_and_read_as_it_was(home: Path) -> None:
    asked: list[int] = []

    def compute() -> Spectrum:
        asked.append(1)
        return spectrum(lambda x: x[:, :2, 0] * 3, torch.rand(1, 3, 2, 2), torch.Generator())

    first, again = (kept(Spectrum, {"layer": "a"}, compute) for _ in range(2))
    assert first == again
    assert math.isinf(again.condition)
    assert len(asked) == 1
    kept(Spectrum, {"layer": "b"}, compute)
    assert len(asked) == len(list(home.iterdir())) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"value": {}, "sha256": "0"}', "other"])
def test_a_damaged_file_is_computed_anew(home: Path, damage: str) -> None:
    kept(Estimate, {}, lambda: Estimate(1.0, 0.5, 2.0))
    (path,) = home.iterdir()
    whole = path.read_text()
    path.write_text(whole.replace("0.5", "0.75") if damage == "other" else damage)
    assert kept(Estimate, {}, lambda: Estimate(4.0, 3.0, 5.0)).value == 4.0
    assert kept(Estimate, {}, lambda: Estimate(1.0, 0.5, 2.0)).value == 4.0
    assert [item.name for item in home.iterdir()] == [path.name]


def test_a_cache_that_cannot_be_written_is_done_without(home: Path) -> None:
    home.write_text("a file where a folder belongs")
    assert kept(Estimate, {}, lambda: Estimate(1.0, 0.5, 2.0)).low == 0.5
