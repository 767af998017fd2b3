from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import seepage as api

Run = Callable[..., tuple[int, str, str]]


def test_a_narrow_terminal_hides_no_column(victim: str, monkeypatch: pytest.MonkeyPatch, seepage: Run) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, out, err = seepage("layers", victim)
    assert code == 0, err
    rows = [line for line in out.splitlines() if "16,384" in line]
    assert any("wide" in row and "16x16x16" in row for row in rows), out


def test_help_and_the_first_seconds_do_without_torch() -> None:
    """A Ctrl-C while a library loads is the command line's to answer, so it stands before they load."""
    script = "import sys; import seepage.cli; seepage.cli.run(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_layers_lists_legal_cuts(victim: str, seepage: Run) -> None:
    code, out, err = seepage("layers", victim, "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["name"] for row in rows] == ["mix", "wide", "relu", "pool", "head"]
    assert rows[1]["shape"] == [16, 16, 16]
    assert rows[1]["bytes"]["fp32"] == 16 * 16 * 16 * 4
    # 1x1 mixing of 3 colours, then 3x3 from 3 to 16 channels, at 256 places each
    assert rows[1]["macs_before"] == 9 * 256 + 27 * 16 * 256
    assert rows[1]["macs_after"] == 16 * 5
    code, out, _ = seepage("layers", victim)
    assert "16x16x16" in out
    assert "16,384" in out


def test_what_there_is_is_listed(seepage: Run) -> None:
    for command, expected in (
        ("attacks", {"rmle", "joint", "peel", "deep-image-prior", "divide", "decoder", "gan"}),
        ("metrics", {"mse", "psnr", "ssim", "ms_ssim", "lpips", "agreement"}),
        ("victims", {"torchvision", "timm", "open_clip", "hf", "zoo", "module"}),
        ("datasets", {"samples"}),
    ):
        code, out, err = seepage(command, "--json")
        assert code == 0, err
        assert expected <= {row["name"] for row in json.loads(out)}
        code, out, err = seepage(command)
        assert code == 0, err
        assert all(name in out for name in expected)
    code, out, _ = seepage("defenses")
    (line,) = [line for line in out.splitlines() if line.startswith("mask ")]
    assert code == 0
    assert "client and provider" in line
    assert "eavesdropper, storage" in line
    assert "provider" not in line.partition("eavesdropper")[2].split("  ")[0], "whoever holds the key is not kept out"
    code, out, _ = seepage("defenses", "--json")
    listed = {row["name"]: row for row in json.loads(out)}
    assert {"gaussian", "laplace", "uniform", "noise-shift", "mask", "clip", "quantize", "dropout", "prune", "project",
            "token-drop", "token-shuffle"} <= listed.keys()  # fmt: skip
    assert listed["gaussian"]["protects_from"] == ["eavesdropper", "storage", "provider"]


def test_every_attack_says_what_it_needs_and_spends(seepage: Run) -> None:
    for row in json.loads(seepage("attacks", "--json")[1]):
        assert row["access"] in ("white-box", "black-box")
        assert row["auxiliary"] in ("none", "synthetic", "public")
        assert row["recovers"] in ("images", "captions", "labels")
        assert set(row["efforts"]) == {"quick", "standard", "full"}
        budgets = [
            api.build("attack", row["name"], row["efforts"][effort]).budget for effort in ("quick", "standard", "full")
        ]
        assert budgets[0] < budgets[1] < budgets[2] or (row["access"] == "black-box" and budgets == [0] * 3)


def test_an_unknown_asset(seepage: Run) -> None:
    code, _, err = seepage("pull", "mobilenet")
    assert code == 2
    assert "'mobilenet_v2'" in err


def test_report_is_rebuilt_from_the_records(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    seepage("audit", victim, folder, "--attack", "rmle:steps=5", "--layer", "mix", "-o", tmp_path / "o")
    report = tmp_path / "o" / "report.html"
    before = report.read_text()
    report.unlink()
    code, out, err = seepage("report", tmp_path / "o")
    assert code == 0, err
    assert out.splitlines()[-1] == str(report)
    assert report.read_text() == before
    code, _, err = seepage("report", tmp_path)
    assert code == 2
    assert "results.jsonl" in err


def test_help_and_no_command(seepage: Run) -> None:
    code, out, _ = seepage("audit", "--help")
    assert code == 0
    assert "--fail-if" in out
    code, _, err = seepage("adit")
    assert code == 2
    assert "adit" in err


def test_import_is_fast() -> None:
    script = (
        "import sys, time; began = time.perf_counter(); import seepage; "
        "print(time.perf_counter() - began, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert float(said[0]) < 1.0
    assert said[1] == "False"


@pytest.mark.assets
@pytest.mark.slow
def test_the_readme_runs(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    block = text.split("```python\n")[1].split("```")[0]
    assert len([line for line in block.splitlines() if line.strip()]) < 15
    script = block + "\nassert psnr.min() > 10, psnr\nassert report.exists()\n"
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
