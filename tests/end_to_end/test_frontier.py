"""The frontier and the decision through the command line, on a victim whose right answer is known."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seepage.report.frontier import render
from seepage.store import Store

Run = Callable[..., tuple[int, str, str]]
# An invertible mixing of colours, then sixteen means, of which no attack can make a picture of 768 numbers.
WHERE = ("--layer", "mix", "--layer", "pool", "--attack", "rmle:steps=20,lr=0.1", "--limit", "2")
BYTES = {"mix": 3 * 16 * 16 * 4, "pool": 16 * 4}


def advised(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "advise.json").read_text())
    return record


def test_the_frontier_is_drawn_and_resumes(seepage: Run, victim: str, folder: Path, tmp_path: Path) -> None:
    asked = ("frontier", victim, folder, *WHERE, "--defense", "quantize:bits=8,1", "-o", tmp_path / "o")
    code, out, error = seepage(*asked)
    assert code == 0, error
    assert out.splitlines()[-1] == str(tmp_path / "o" / "frontier.html")
    record = json.loads((tmp_path / "o" / "frontier.json").read_text())
    points = {(p["layer"], *p["defenses"]): p for p in record["points"]}
    assert len(points) == 6
    bare = {layer: points[(layer,)] for layer in BYTES}
    assert {layer: point["bytes"] for layer, point in bare.items()} == BYTES
    assert {layer: point["utility"]["agreement"] for layer, point in bare.items()} == {"mix": 1.0, "pool": 1.0}
    assert points["mix", "quantize:bits=1"]["bytes"] == 3 * 16 * 16 // 8 + 8
    assert bare["mix"]["leakage"]["psnr"]["mean"] > bare["pool"]["leakage"]["psnr"]["mean"] + 5
    assert bare["mix"]["macs_before"] == 9 * 16 * 16 < bare["pool"]["macs_before"]
    assert not bare["mix"]["front"] or points["mix", "quantize:bits=8"]["utility"]["agreement"] < 1, (
        "as good at a quarter"
    )
    assert any(point["front"] for point in points.values())
    for point in points.values():
        for side in ("device_ms", "server_ms"):
            assert 0 < point[side]["least"] <= point[side]["median"] <= point[side]["most"]
    for cell in Store(tmp_path / "o").cells().values():
        assert cell.spec.attacker == ("aware:" + cell.spec.attacker[6:] if cell.spec.defenses else "none")
    (lost,) = [line for line in record["missing"] if "aware:retrained" in line]
    assert "at 4 candidates" in lost
    page = (tmp_path / "o" / "frontier.html").read_text()
    assert page == render(record)
    assert page.count("<svg") == page.count("</svg") >= 8
    assert "http://" not in page.replace("http://www.w3.org", "")
    rows = list(csv.DictReader((tmp_path / "o" / "frontier.csv").read_text().splitlines()))
    assert [float(row["psnr_mean"]) for row in rows] == [p["leakage"]["psnr"]["mean"] for p in record["points"]]
    before = (tmp_path / "o" / "results.jsonl").read_bytes()
    assert seepage(*asked)[0] == 0
    assert (tmp_path / "o" / "results.jsonl").read_bytes() == before, "nothing is attacked again"
    assert json.loads((tmp_path / "o" / "frontier.json").read_text()) == record, "nor timed again"


def test_advice_is_right_where_the_answer_is_known(seepage: Run, victim: str, folder: Path, tmp_path: Path) -> None:
    asked = ("advise", victim, folder, *WHERE, "--defense", "none", "--effort", "quick", "-o", tmp_path / "o")
    code, out, error = seepage(*asked, "--max-psnr", "20", "--min-utility", "0.98")
    assert code == 0, error
    record = advised(tmp_path / "o")
    assert record["answer"]["layer"] == "pool"
    by = {row["layer"]: row for row in record["rows"]}
    assert (by["mix"]["status"], by["mix"]["fails"]) == ("refused", ["max-psnr"])
    assert by["pool"]["values"]["max-psnr"] >= by["pool"]["leaks"]["max-psnr"]["worst"], "the upper end decides"
    assert "at pool, undefended" in out
    assert "not a proof of privacy" in out
    assert "nothing beyond it was seen" in out, "of two pictures no more can be said"
    before = (tmp_path / "o" / "results.jsonl").read_bytes()
    code, out, _ = seepage(*asked, "--max-psnr", "160")
    assert (code, advised(tmp_path / "o")["answer"]["layer"]) == (0, "mix"), (
        "with that much allowed the cheapest will do"
    )
    assert "1 skipped" in out
    code, out, _ = seepage(*asked, "--max-psnr", "160", "--minimise", "bytes")
    assert (code, advised(tmp_path / "o")["answer"]["layer"]) == (0, "pool")
    code, out, _ = seepage(*asked, "--max-psnr", "1")
    assert code == 1
    (miss,) = advised(tmp_path / "o")["unmet"]
    assert miss["nearest"]["layer"] == "pool"
    assert miss["excess"] == pytest.approx(by["pool"]["values"]["max-psnr"] - 1)
    assert "cannot be met by any of 2 candidates" in out
    assert (miss["n"], miss["confirmed"], miss["stage"]) == (2, False, "quick")
    assert miss["low"] < miss["middle"] <= miss["high"] == miss["value"]
    assert re.search(
        r"upper end of the 95\s% interval, [\d]+\.\d to [\d.]+\sdB, of the worst, .*n = 2, in the screen alone", out
    )
    assert (tmp_path / "o" / "results.jsonl").read_bytes() == before, "other limits ask of the same attacks"


def test_a_defense_that_fits_no_cut_is_left_out_and_named(
    seepage: Run, victim: str, folder: Path, tmp_path: Path
) -> None:
    sweep = (victim, folder, *WHERE, "--defense", "token-shuffle", "--defense", "quantize:bits=8", "-o", tmp_path / "o")
    said = "token-shuffle: not run at mix, pool: token-shuffle needs a leak of tokens (tokens, width), mix gives"
    code, out, error = seepage("frontier", *sweep)
    assert code == 0, error
    assert said in error
    record = json.loads((tmp_path / "o" / "frontier.json").read_text())
    assert {(p["layer"], *p["defenses"]) for p in record["points"]} == {
        (layer, *defense) for layer in BYTES for defense in ((), ("quantize:bits=8",))
    }
    assert record["missing"][0].startswith(said)
    assert said in (tmp_path / "o" / "frontier.html").read_text()
    code, out, error = seepage("frontier", *sweep, "--dry-run")
    assert (code, "4 candidates" in out, said in error) == (0, True, True)
    code, out, error = seepage("advise", *sweep, "--effort", "quick", "--max-psnr", "20")
    assert code == 0, error
    assert said in error
    assert advised(tmp_path / "o")["missing"][0].startswith(said)
    assert not any("token-shuffle" in row["defenses"] for row in advised(tmp_path / "o")["rows"])


DEFENDED = ("--layer", "mix", "--defense", "gaussian:sigma=3", "--effort", "standard", "--max-psnr", "14")


def test_who_cannot_be_screened_is_confirmed(seepage: Run, victim: str, folder: Path, tmp_path: Path) -> None:
    asked = ("advise", victim, folder, *DEFENDED, "--attack", "rmle:steps=20,lr=0.1", "-o", tmp_path / "o")
    code, out, error = seepage(*asked, "--attacker", "aware:likelihood")
    assert code == 0, error
    record = advised(tmp_path / "o")
    assert record["answer"]["defenses"][0].startswith("gaussian")
    assert record["answer"]["leaks"]["max-psnr"]["attacker"] == "aware:likelihood"
    assert (record["answer"]["confirmed"], record["answer"]["stage"]) == (True, "standard")
    assert "2 of them attacked" in out
    stronger = ("--attacker", "aware:likelihood", "--attacker", "aware:retrained")
    code, out, error = seepage(*asked, *stronger)
    assert code == 0, error
    said = "rmle by aware:retrained: not run at mix, gaussian"
    assert said in error
    assert any(line.startswith(said) for line in advised(tmp_path / "o")["missing"])
    assert "Against it could not be run: rmle by aware:retrained: rmle learns from no leaks" in out


def test_a_limit_that_nobody_could_test_is_not_called_broken(
    seepage: Run, victim: str, folder: Path, tmp_path: Path
) -> None:
    asked = ("advise", victim, folder, *DEFENDED, "-o", tmp_path / "o")
    code, out, _ = seepage(*asked, "--attack", "rmle:steps=20,lr=0.1", "--attacker", "aware:retrained")
    assert code == 1
    rows = {bool(row["defenses"]): row for row in advised(tmp_path / "o")["rows"]}
    assert (rows[True]["status"], rows[True]["fails"], rows[True]["stage"]) == ("unmeasured", [], "")
    assert rows[True]["unknown"]["max-psnr"].startswith("nobody could be run: rmle by aware:retrained")
    assert (rows[False]["status"], rows[False]["fails"]) == ("refused", ["max-psnr"])
    assert "cannot be met by any of 1 candidate measured:" in out, "of the other it is not known"
    assert "Whether --max-psnr is kept is not known at mix, gaussian" in out
    assert "2 of 2 candidates looked at, 1 of them attacked; of 1 not known" in out
    code, out, error = seepage(*asked, "--attack", "decoder:train=public")
    assert code == 2, "a limit that was measured nowhere cannot be asked for here"
    assert "--max-psnr was measured at no candidate: nobody could be run: decoder" in error
    assert out.splitlines()[-1].endswith("report.html")


def test_what_costs_too_much_is_not_attacked(seepage: Run, victim: str, folder: Path, tmp_path: Path) -> None:
    asked = ("advise", victim, folder, *WHERE, "--defense", "none", "--effort", "quick", "-o", tmp_path / "o")
    code, _, error = seepage(*asked, "--max-psnr", "160", "--max-bytes", "1k")
    assert code == 0, error
    assert advised(tmp_path / "o")["answer"]["layer"] == "pool"
    assert {cell.spec.layer for cell in Store(tmp_path / "o").cells().values()} == {"pool"}
    code, out, _ = seepage(*asked, "--max-psnr", "160", "--max-bytes", "10")
    assert code == 1
    (miss,) = advised(tmp_path / "o")["unmet"]
    assert (miss["key"], miss["value"], miss["excess"]) == ("max-bytes", 64, 54)
    code, out, _ = seepage(*asked, "--max-psnr", "160", "--max-device-macs", "1")
    assert code == 1
    assert (
        "--max-device-macs 1 multiply-add cannot be met by any of 2 candidates: the nearest, mix, undefended, has 2.3"
        in out
    )
    # Each is kept by one of the cuts: a short device by the first, a short message by the last.
    code, out, error = seepage(*asked, "--max-psnr", "160", "--max-bytes", "1k", "--max-device-macs", "10k")
    assert (code, out) == (2, "")
    assert "contradict each other" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((), "no limit is given"),
        (("--max-bytes", "200k"), "no limit on what leaks"),
        (("--max-psnr", "nan"), "finite"),
        (("--max-psnr", "18", "--minimise", "bites"), "did you mean 'bytes'"),
        (("--max-psnr", "18", "--defense", "quantise:bits=4"), "did you mean 'quantize'"),
        (("--max-psnr", "18", "--layer", "mixx"), "did you mean|nearest"),
        (("--max-top1", "0.2"), "needs an attack that reads labels"),
        (("--max-rank1", "0.2"), "needs --gallery"),
        (("--max-caption-gain", "0.1", "--attack", "nearest", "--public", "OWNED"), "cannot be had: .*50"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    seepage: Run, victim: str, folder: Path, tmp_path: Path, asked: tuple[str, ...], said: str
) -> None:
    lines = [
        json.dumps({"file_name": f"{index}.png", "captions": [f"a field of colour {index}"]}) for index in range(6)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    words = [str(folder) if word == "OWNED" else word for word in asked]
    if "OWNED" in asked:
        owned = tmp_path / "owned"
        owned.mkdir()
        for index in range(6):
            (owned / f"{index}.png").write_bytes((folder / f"{5 - index}.png").read_bytes())
        words[words.index(str(folder))] = str(owned)
        (owned / "metadata.jsonl").write_text("\n".join(lines))
    code, out, error = seepage("advise", victim, folder, "--limit", "3", *words, "-o", tmp_path / "o")
    assert (code, out) == (2, "")
    assert error.count("\n") == 1
    assert re.search(said, error), error


def test_the_grid_is_printed_before_anything_runs(seepage: Run, victim: str, folder: Path, tmp_path: Path) -> None:
    for command, more in (("frontier", ()), ("advise", ("--max-psnr", "18"))):
        code, out, error = seepage(
            command, victim, folder, *WHERE, *more, "--defense", "quantize:bits=8,4", "--dry-run", "-o", tmp_path / "o"
        )
        assert code == 0, error
        assert out.splitlines()[-1].startswith("6 candidates")
        assert not (tmp_path / "o").exists()
