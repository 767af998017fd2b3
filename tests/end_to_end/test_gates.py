"""`--fail-if`: what it judges, and that it can ask what `advise` asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seepage.cli import gates
from seepage.schema import Cell
from seepage.store import Store

Run = Callable[..., tuple[int, str, str]]
ATTACK = ("--attack", "rmle:steps=20,lr=0.1", "--effort", "quick")


def cells(folder: Path) -> list[Cell]:
    return list(Store(folder).cells().values())


def test_a_gate_judges_what_is_sent(seepage: Run, victim: str, folder: Path, tmp_path: Path) -> None:
    asked = ("audit", victim, folder, "--layer", "mix", *ATTACK, "-o", tmp_path / "o")
    defended = (*asked, "--defense", "gaussian:sigma=3")
    assert seepage(*defended)[0] == 0
    worst = {cell.spec.attacker: cell.summary["psnr"].worst for cell in cells(tmp_path / "o") if cell.summary}
    bare = worst.pop("none")
    most = max(worst, key=lambda who: worst[who])
    assert bare > worst[most] + 2
    code, _, error = seepage(*defended, "--fail-if", f"psnr>{bare - 1}")
    assert code == 0, "the undefended leak is not sent"
    assert "judges what is sent, the defended cells; not the 1 undefended" in error
    code, _, error = seepage(*defended, "--fail-if", f"psnr>{min(worst.values()) - 1}")
    assert code == 1
    assert f"worst is {worst[most]:.4g} at mix by rmle ({most}), of the defended cells" in error
    code, _, error = seepage(*asked, "--fail-if", f"psnr>{bare - 1}")
    assert (code, "undefended" in error) == (1, False), "without defenses there is nothing else to judge"


def test_a_gate_on_defended_cells_of_which_none_was_run_is_no_pass(
    seepage: Run, victim: str, folder: Path, tmp_path: Path
) -> None:
    asked = ("audit", victim, folder, "--layer", "mix", *ATTACK, "--defense", "gaussian:sigma=3", "-o", tmp_path / "o")
    code, _, error = seepage(*asked, "--attacker", "aware:retrained", "--fail-if", "psnr>1")
    assert code == 2
    assert "no defended cell measured psnr: rmle learns from no leaks" in error


def test_a_dump_is_judged_by_what_it_carries(seepage: Run, victim: str, folder: Path, tmp_path: Path) -> None:
    dump = tmp_path / "sent.safetensors"
    assert seepage("leak", victim, folder, "--layer", "mix", "--defense", "gaussian:sigma=3", "-o", dump)[0] == 0
    asked = ("audit", victim, folder, "--layer", "mix", *ATTACK, "--leak", dump, "-o", tmp_path / "o")
    code, _, error = seepage(*asked, "--fail-if", "psnr>1")
    assert (code, "of the defended cells" in error, "undefended beside" in error) == (1, True, False)


def test_worst_high_is_what_advise_limits(seepage: Run, victim: str, folder: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for index in range(14):  # of ten pictures or fewer the interval ends at the worst one
        picture = random.uniform(0, 255, (16, 16, 3)) * random.uniform(0, 1)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"more{index}.png")
    where = (victim, folder, "--layer", "wide", *ATTACK)
    assert seepage("advise", *where, "--defense", "none", "--max-psnr", "160", "-o", tmp_path / "a")[0] == 0
    limited = json.loads((tmp_path / "a" / "advise.json").read_text())["answer"]["values"]["max-psnr"]
    asked = ("audit", *where, "-o", tmp_path / "o")
    assert seepage(*asked, "--fail-if", f"psnr.worst_high>{limited + 1e-6}")[0] == 0
    assert seepage(*asked, "--fail-if", f"psnr.worst_high>{limited - 1e-6}")[0] == 1
    (cell,) = cells(tmp_path / "o")
    assert limited > cell.summary["psnr"].worst + 1e-3
    assert seepage(*asked, "--fail-if", f"psnr>{limited - 1e-6}")[0] == 0


def test_worst_high_of_an_error_is_refused(seepage: Run, victim: str, folder: Path, tmp_path: Path) -> None:
    asked = ("audit", victim, folder, "--layer", "mix", *ATTACK, "-o", tmp_path / "o")
    code, out, error = seepage(*asked, "--fail-if", "mse.worst_high>0.1")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "of mse less is" in error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [("a>1", 1.0, False), ("a>1", 1.1, True), ("a<1", 0.9, True), ("a<1", 1.0, False), ("a<1", float("nan"), True)],
)
def test_a_condition_holds_beyond_its_limit_and_on_nan(text: str, value: float, holds: bool) -> None:
    assert gates.read(text).holds(value) == holds
