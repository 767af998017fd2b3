from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import seepage as api
from seepage.store import Store

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--attack", "rmle:steps=60")


def written(victim: str, folder: Path, path: Path, run: Run, *more: object) -> Path:
    code, out, err = run("leak", victim, folder, "--layer", "wide", "-o", path, *more)
    assert code == 0, err
    assert out.splitlines()[-1] == str(path)
    return path


@pytest.mark.parametrize("wire", ["fp32", "fp16", "bf16", "int8"])
def test_a_leak_file_holds_what_the_client_would_send(
    wire: str, victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    leak = api.read_leak(written(victim, folder, tmp_path / "leak.safetensors", seepage, "--wire", wire))
    split = api.cut(api.load(victim), "wide")
    images = torch.stack([split.load(folder / f"{i}.png") for i in range(6)])
    expected = split.prefix(images)
    from seepage.wire import decode

    received = decode(leak).features
    assert received.shape == expected.shape
    tolerance = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 1e-2, "int8": 1e-2}[wire]
    assert (received - expected).abs().max() <= tolerance * expected.abs().max()
    assert leak.header.wire == wire
    assert leak.header.layer == "wide"
    assert leak.header.weights_sha256 == split.weights_sha256
    assert leak.ids == tuple(f"{i}.png" for i in range(6))


def test_recover_needs_no_truth(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    leak = written(victim, folder, tmp_path / "leak.safetensors", seepage)
    originals = [np.asarray(Image.open(folder / f"{i}.png")) / 255 for i in range(6)]
    for path in folder.iterdir():
        path.unlink()
    code, out, err = seepage("recover", leak, "--attack", "rmle:steps=300", "-o", tmp_path / "r")
    assert code == 0, err
    record = json.loads((tmp_path / "r" / "recovery.json").read_text())
    assert out.splitlines()[-1] == str(tmp_path / "r" / "recovery.json")
    assert [row["name"] for row in record["rows"]] == [f"{i}.png" for i in range(6)]
    for row, original in zip(record["rows"], originals):
        recovered = np.asarray(Image.open(tmp_path / "r" / row["image"])) / 255
        assert ((recovered - original) ** 2).mean() < 1e-3
        assert row["residual"] < 0.05


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_a_raw_array_serves_with_victim_and_layer(
    kind: str, victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    split = api.cut(api.load(victim), "wide")
    # One picture at a time, as the client computes them: the bits seed the attack.
    features = torch.cat([split.prefix(split.load(folder / f"{i}.png")[None]) for i in range(6)])
    path = tmp_path / f"store.{kind}"
    if kind == "npy":
        np.save(path, features.numpy())
    else:
        save_file({"features": features}, path)
    code, _, err = seepage("recover", path, *QUICK, "-o", tmp_path / "r")
    assert code == 2
    assert "--victim" in err
    code, _, err = seepage("recover", path, *QUICK, "--victim", victim, "--layer", "wide", "-o", tmp_path / "r")
    assert code == 0, err
    assert len(list((tmp_path / "r").glob("*.png"))) == 6
    code, _, err = seepage("audit", victim, folder, *QUICK, "--layer", "wide", "--leak", path, "-o", tmp_path / "a")
    assert code == 0, err
    code, _, err = seepage("audit", victim, folder, *QUICK, "--layer", "wide", "-o", tmp_path / "b")
    dumped, live = (next(iter(Store(tmp_path / name).cells().values())) for name in "ab")
    assert dumped.key != live.key
    assert dumped.summary["mse"].mean == pytest.approx(live.summary["mse"].mean, rel=1e-3)


def test_a_dump_is_matched_by_its_ids(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    leak = written(victim, folder, tmp_path / "leak.safetensors", seepage)
    for name in ("0.png", "3.png"):
        (folder / name).unlink()
    code, _, err = seepage("audit", victim, folder, *QUICK, "--layer", "wide", "--leak", leak, "-o", tmp_path / "o")
    assert code == 0, err
    (cell,) = Store(tmp_path / "o").cells().values()
    assert all(sample.residual < 0.2 for sample in cell.samples)
    assert cell.summary["mse"].recovery > 0.8


def test_rows_without_ids_must_be_as_many_as_the_pictures(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    leak = written(victim, folder, tmp_path / "leak.safetensors", seepage, "--redact")
    assert b"0.png" not in leak.read_bytes()
    (folder / "0.png").unlink()
    code, _, err = seepage("audit", victim, folder, *QUICK, "--layer", "wide", "--leak", leak, "-o", tmp_path / "o")
    assert code == 2
    assert "6 rows" in err
    assert "5 pictures" in err


def test_an_unreadable_picture_that_the_client_left_out_is_a_failed_sample(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    (folder / "2.png").write_text("no picture")
    for number, options in enumerate(((), ("--redact",))):
        leak = written(victim, folder, tmp_path / f"{number}.safetensors", seepage, *options)
        out = tmp_path / str(number)
        code, _, err = seepage("audit", victim, folder, *QUICK, "--layer", "wide", "--leak", leak, "-o", out)
        assert code == 0, err
        (cell,) = Store(out).cells().values()
        assert [sample.status == "failed" for sample in cell.samples] == [False, False, True, False, False, False]
        assert "2.png is no picture" in cell.samples[2].message
        assert all(sample.residual < 0.2 for sample in cell.samples if sample.status != "failed")


def test_a_picture_without_a_row_is_a_failed_sample_and_a_foreign_dump_is_refused(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    leak = written(victim, folder, tmp_path / "leak.safetensors", seepage)
    Image.new("RGB", (16, 16), "teal").save(folder / "late.png")
    base = ("audit", victim, folder, *QUICK, "--layer", "wide", "--leak", leak)
    assert seepage(*base, "-o", tmp_path / "a")[0] == 0
    (cell,) = Store(tmp_path / "a").cells().values()
    assert [sample.message for sample in cell.samples if sample.status == "failed"] == [
        "the stored dump has no row for it"
    ]
    for path in folder.iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    code, _, err = seepage(*base, "-o", tmp_path / "b")
    assert code == 2
    assert "no row for 'other-0.png'" in err
    assert not (tmp_path / "b").exists()


def test_a_defended_leak_is_recovered_by_who_knows_its_law(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    shift = ("--layer", "mix", "--defense", "noise-shift:scale=0.5", "--secret", tmp_path / "kept.safetensors")
    leak = written(victim, folder, tmp_path / "leak.safetensors", seepage, *shift)
    originals = [np.asarray(Image.open(folder / f"{i}.png")) / 255 for i in range(6)]
    errors, said = {}, {}
    for name, attacker in (("told", ()), ("naive", ("naive",)), ("likely", ("aware:likelihood",))):
        out = tmp_path / name
        options = [word for who in attacker for word in ("--attacker", who)]
        code, _, said[name] = seepage("recover", leak, *QUICK, *options, "-o", out)
        assert code == 0, said[name]
        record = json.loads((out / "recovery.json").read_text())
        assert record["defenses"] == ["noise-shift:scale=0.5"]
        assert record["attacker"] == (attacker[0] if attacker else "aware:estimate")
        found = [np.asarray(Image.open(out / row["image"])) / 255 for row in record["rows"]]
        errors[name] = np.mean([(a - b) ** 2 for a, b in zip(found, originals, strict=True)])
    # The noise has a mean of a quarter, which whoever knows it takes away first.
    assert errors["told"] < 0.6 * errors["naive"]
    assert errors["likely"] < errors["told"]
    assert "carries noise-shift:scale=0.5; attacked is its law's best guess" in said["told"]
    bare = written(victim, folder, tmp_path / "bare.safetensors", seepage)
    for path, who, message in (
        (bare, "naive", "carries none"),
        (leak, "aware:retrained", "a leak file is attacked by naive, aware:estimate, aware:likelihood"),
        (leak, "nobody", "a leak file is attacked by"),
    ):
        code, _, err = seepage("recover", path, *QUICK, "--attacker", who, "-o", tmp_path / "no")
        assert (code, len(err.splitlines())) == (2, 1), err
        assert message in err
    assert not (tmp_path / "no").exists()


def test_relative_noise_is_known_by_the_spread_that_it_was_made_by(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    clip = ("--defense", "clip:limit=0.5,relative=true")
    leak = written(victim, folder, tmp_path / "leak.safetensors", seepage, *clip)
    clean = api.read_leak(written(victim, folder, tmp_path / "clean.safetensors", seepage)).features
    code, _, err = seepage("recover", leak, *QUICK, "-o", tmp_path / "r")
    assert code == 0, err
    # Half of what rows usually measure came through: the guess is of the usual length again.
    sent = api.read_leak(leak).features.flatten(1).norm(dim=1)
    assert float(sent.std()) < 0.01 * float(sent.mean())
    rows = json.loads((tmp_path / "r" / "recovery.json").read_text())["rows"]
    found = torch.stack([torch.from_numpy(np.asarray(Image.open(tmp_path / "r" / row["image"])) / 255) for row in rows])
    split = api.cut(api.load(victim), "wide")
    again = split.leak(found.permute(0, 3, 1, 2).float()).features.flatten(1).norm(dim=1)
    assert float(again.mean()) > 1.3 * float(sent.mean())
    assert float(clean.flatten(1).norm(dim=1).mean()) > 1.3 * float(sent.mean())


def test_a_place_that_cannot_be_written_is_said_before_the_work(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    leak = written(victim, folder, tmp_path / "leak.safetensors", seepage)
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        # So many steps would take days.
        code, _, err = seepage("recover", leak, "--attack", "rmle:steps=100000000", "-o", place)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert "cannot write to" in err
    assert (tmp_path / "file").read_text() == "mine"
    # Nor is a picture read for a leak that would replace a folder.
    (folder / "unreadable.png").write_text("no picture")
    code, _, err = seepage("leak", victim, folder, "--layer", "wide", "-o", folder)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert "Is a directory" in err


def test_a_dump_with_two_rows_of_one_picture_is_refused(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    leak = api.read_leak(written(victim, folder, tmp_path / "leak.safetensors", seepage))
    twice = tmp_path / "twice.safetensors"
    api.write_leak(dataclasses.replace(leak, ids=("1.png", *leak.ids[1:])), twice)
    base = ("audit", victim, folder, *QUICK, "--layer", "wide", "--leak", twice, "-o", tmp_path / "o")
    code, _, err = seepage(*base)
    assert code == 2
    assert "more than one row for '1.png'" in err
    assert not (tmp_path / "o").exists()


def test_what_a_dump_says_it_carries_is_in_the_record(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    leak = api.read_leak(written(victim, folder, tmp_path / "leak.safetensors", seepage))
    header = dataclasses.replace(leak.header, defenses=("gaussian:sigma=0.0",))
    path = tmp_path / "defended.safetensors"
    api.write_leak(dataclasses.replace(leak, header=header), path)
    base = ("audit", victim, folder, *QUICK, "--layer", "wide", "--leak", path)
    code, _, err = seepage(*base, "-o", tmp_path / "o")
    assert code == 0, err
    cells = Store(tmp_path / "o").cells().values()
    assert {cell.spec.defenses for cell in cells} == {("gaussian:sigma=0,relative=false",)}
    assert {"naive", "aware:estimate"} <= {cell.spec.attacker for cell in cells if cell.status == "done"}
    told = dataclasses.replace(leak, header=dataclasses.replace(header, defenses=("somebodys",)))
    api.write_leak(told, path)
    code, _, err = seepage(*base, "-o", tmp_path / "x")
    assert (code, err.count("\n")) == (2, 1)
    assert "carries somebodys" in err
    assert "--defense" in err


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "damaged":
        path.write_bytes(b"\x00" * 100 + content[100:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("hello")
    elif how == "missing":
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "damaged", "empty", "text", "missing"])
def test_a_broken_file_is_one_clear_line(how: str, victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    leak = written(victim, folder, tmp_path / "leak.safetensors", seepage)
    damaged(leak, how)
    code, _, err = seepage("recover", leak, *QUICK, "--victim", victim, "--layer", "wide", "-o", tmp_path / "r")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "leak.safetensors" in err
    assert not (tmp_path / "r").exists()


def test_nan_features_are_refused(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    features = torch.zeros(6, 16, 16, 16)
    features[2, 0, 0, 0] = torch.nan
    save_file({"features": features}, tmp_path / "nan.safetensors")
    arguments = ("--victim", victim, "--layer", "wide", *QUICK, "-o", tmp_path / "r")
    code, _, err = seepage("recover", tmp_path / "nan.safetensors", *arguments)
    assert code == 2
    assert "NaN" in err


def test_another_victims_or_layers_leak_is_refused(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    leak = written(victim, folder, tmp_path / "leak.safetensors", seepage)
    other = victim.replace(":tiny", ":judge")
    code, _, err = seepage("recover", leak, *QUICK, "--victim", other, "-o", tmp_path / "r")
    assert code == 2
    assert "weights" in err
    code, _, err = seepage("recover", leak, *QUICK, "--layer", "mix", "-o", tmp_path / "r")
    assert code == 2
    assert "wide" in err
    assert "mix" in err
