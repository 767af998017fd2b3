"""The baselines that are asked for by name, each through a whole audit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
from PIL import Image

Run = Callable[..., tuple[int, str, str]]


def cells(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return {cell["spec"]["attack"].partition(":")[0]: cell for cell in found}


def test_each_runs_and_says_what_it_needed(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    attacks = (
        *("--attack", "deep-image-prior:steps=40,channels=4"),
        *("--attack", "divide:steps=80,pictures=60,width=16,refine=150"),
        *("--attack", "decoder:steps=40,pictures=30,width=16"),
        *("--attack", "gan"),
    )
    code, _, err = seepage("audit", victim, folder, *attacks, "--layer", "wide", "--limit", "2", "-o", tmp_path / "o")
    assert code == 0, err
    found = cells(tmp_path / "o")
    said = {name: (cell["status"], cell["spec"]["access"], cell["spec"]["auxiliary"]) for name, cell in found.items()}
    assert said == {
        "deep-image-prior": ("done", "white-box", "none"),
        "divide": ("done", "white-box", "synthetic"),
        "decoder": ("done", "black-box", "synthetic"),
        "gan": ("not_run", "white-box", "public"),
    }
    assert "name one with gan:generator=" in found["gan"]["message"]
    for name in ("deep-image-prior", "divide", "decoder"):
        assert found[name]["summary"]["psnr"]["mean"] > found[name]["controls"]["prior"]["psnr"]["mean"] + 1, name
    assert found["decoder"]["cost"]["passes"] == 0
    assert found["decoder"]["samples"][0]["residual"] > 0


def test_public_pictures_are_those_that_are_not_under_audit(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    attacks = ("--attack", "decoder:train=public,steps=20,width=16", "--attack", "divide:train=public,steps=20,width=8")
    base = ("audit", victim, folder, *attacks, "--layer", "wide", "--limit", "2")
    assert seepage(*base, "-o", tmp_path / "none")[0] == 0
    for cell in cells(tmp_path / "none").values():
        assert (cell["status"], cell["spec"]["auxiliary"]) == ("not_run", "public")
        assert "pictures that the attacker owns, and has none" in cell["message"]
    owned = tmp_path / "owned"
    copytree(folder, owned)
    for index in range(20):
        level = np.full((16, 16, 3), 10 * index + 20, dtype=np.uint8)
        Image.fromarray(level).save(owned / f"own{index}.png")
    code, _, err = seepage(*base, "--public", owned, "-o", tmp_path / "some")
    assert code == 0, err
    assert [cell["status"] for cell in cells(tmp_path / "some").values()] == ["done"] * 2
