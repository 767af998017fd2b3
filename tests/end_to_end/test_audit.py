from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from seepage import registry
from seepage.audit.request import Request
from seepage.audit.run import run_audit
from seepage.audit.workbench import Workbench
from seepage.metrics import ImageMetric
from seepage.schema import Cell
from seepage.store import Store
from seepage.types import Images, Knowledge, Leak, NotRunError, Recoverer, Recovery, Status

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--attack", "rmle:steps=20", "--layer", "wide")


@dataclass(frozen=True)
class Unmix:
    """Invert the tiny victim's mixing of colours exactly: an attack with a known answer."""

    behaviour: str = "right"
    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {}
    access: ClassVar[str] = "white-box"
    auxiliary: ClassVar[str] = "none"
    recovers: ClassVar[str] = "images"
    budget: ClassVar[int] = 1

    def fit(self, knowledge: Knowledge, generator: torch.Generator, *, workdir=None, progress=None) -> Recoverer:
        if self.behaviour == "refuse":
            raise NotRunError("needs a fax machine")
        return _Unmixer(self.behaviour)

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        return _Unmixer(path.read_text())


class _Unmixer(Recoverer):
    batches: ClassVar[list[int]] = []

    def __init__(self, behaviour: str) -> None:
        self.behaviour = behaviour

    def recover(self, leak: Leak, generators) -> Recovery:
        count = len(leak)
        self.batches.append(count)
        if self.behaviour == "crash":
            raise KeyError("an attack's own mistake")
        if self.behaviour == "memory" and count > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.behaviour == "hungry":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        mix = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]]).inverse()
        images = torch.einsum("oc,bchw->bohw", mix, leak.features).clamp(0, 1)
        if self.behaviour == "nan":
            images[0, 0, 0, 0] = torch.nan
        return Recovery(Images(images), (Status("converged"),) * count, torch.ones(count, dtype=torch.long))

    def prior(self, n: int, generators) -> Recovery:
        grey = torch.full((n, 3, 16, 16), 0.5)
        return Recovery(Images(grey), (Status("stopped"),) * n, torch.zeros(n, dtype=torch.long))

    def save(self, path: Path) -> None:
        path.write_text(self.behaviour)


@pytest.fixture(autouse=True)
def unmix() -> Iterator[None]:
    """Register the attack with a known answer, for one test."""
    registry.names("attack")
    registry.register("attack", "unmix")(Unmix)
    yield
    del registry._components["attack"]["unmix"]


def cells(folder: Path) -> list[Cell]:
    return list(Store(folder).cells().values())


def test_an_exact_attack_scores_as_the_truth_and_its_controls_do_not(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    code, out, err = seepage("audit", victim, folder, "--attack", "unmix", "--layer", "mix", "-o", tmp_path / "o")
    assert code == 0, err
    assert out.splitlines()[-1] == str(tmp_path / "o" / "report.html")
    assert (tmp_path / "o" / "report.html").exists()
    (cell,) = cells(tmp_path / "o")
    assert cell.status == "done"
    assert [sample.id for sample in cell.samples] == [f"{i}.png" for i in range(6)]
    assert cell.summary["mse"].mean < 1e-12
    assert cell.summary["mse"].recovery == pytest.approx(1.0)
    assert set(cell.controls) == {"mean_picture", "prior", "shuffled"}
    assert all(stats["mse"].mean > 0.001 for stats in cell.controls.values())
    assert all(sample.residual < 1e-6 for sample in cell.samples)
    assert cell.utility["agreement"] == 1.0
    assert cell.bytes_per_image == 3 * 16 * 16 * 4
    assert cell.cut.shape == (3, 16, 16)
    assert cell.cost.passes == 6
    for sample in cell.samples:
        recovered = np.asarray(Image.open(tmp_path / "o" / sample.recovered.image))
        assert np.array_equal(recovered, np.asarray(Image.open(folder / sample.id)))
        assert np.array_equal(recovered, np.asarray(Image.open(tmp_path / "o" / sample.truth.image)))


def test_prior_control_is_what_it_says(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    seepage("audit", victim, folder, "--attack", "unmix", "--layer", "mix", "-o", tmp_path / "o")
    pictures = [np.asarray(Image.open(folder / f"{i}.png")) / 255 for i in range(6)]
    grey = float(np.mean([((picture - 0.5) ** 2).mean() for picture in pictures]))
    shuffled = float(np.mean([((pictures[i] - pictures[(i + 1) % 6]) ** 2).mean() for i in range(6)]))
    (cell,) = cells(tmp_path / "o")
    assert cell.controls["prior"]["mse"].mean == pytest.approx(grey, rel=1e-5)
    assert cell.controls["shuffled"]["mse"].mean == pytest.approx(shuffled, rel=1e-5)


def test_the_same_command_again_computes_nothing(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    arguments = ("audit", victim, folder, "--attack", "unmix", "--layer", "mix", "-o", tmp_path / "o")
    seepage(*arguments)
    before = (tmp_path / "o" / "results.jsonl").read_bytes()
    _Unmixer.batches.clear()
    assert seepage(*arguments)[0] == 0
    assert _Unmixer.batches == []
    assert (tmp_path / "o" / "results.jsonl").read_bytes() == before


def test_unreadable_pictures_are_failed_samples_by_name(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    (folder / "2.png").write_text("I am text")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:60])
    code, _, err = seepage("audit", victim, folder, "--attack", "unmix", "--layer", "mix", "-o", tmp_path / "o")
    assert code == 0, err
    (cell,) = cells(tmp_path / "o")
    failed = {sample.id: sample.message for sample in cell.samples if sample.status == "failed"}
    assert set(failed) == {"2.png", "4.png"}
    assert all(name in message for name, message in failed.items())
    assert cell.summary["mse"].n == 4
    assert cell.summary["mse"].n_failed == 2
    assert cell.summary["mse"].recovery == pytest.approx(1.0)
    assert "failed-samples" in {item.name for item in cell.checks}


def test_one_picture_has_no_shuffled_control(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    seepage("audit", victim, folder / "1.png", "--attack", "unmix", "--layer", "mix", "-o", tmp_path / "o")
    (cell,) = cells(tmp_path / "o")
    assert set(cell.controls) == {"mean_picture", "prior"}
    assert "no other picture" in cell.unavailable["shuffled"]


@pytest.mark.parametrize("wire", ["fp16", "bf16", "int8"])
def test_the_wire_costs_precision_and_saves_bytes(
    wire: str, victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    seepage("audit", victim, folder, "--attack", "unmix", "--layer", "mix", "--wire", wire, "-o", tmp_path / "o")
    (cell,) = cells(tmp_path / "o")
    assert cell.spec.wire == wire
    assert cell.bytes_per_image == {"fp16": 1536, "bf16": 1536, "int8": 768 + 4}[wire]
    assert 1e-10 < cell.summary["mse"].mean < 1e-4


def test_out_of_memory_halves_the_batch(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    _Unmixer.batches.clear()
    arguments = ("audit", victim, folder, "--attack", "unmix:behaviour=memory", "--layer", "mix", "-o", tmp_path / "o")
    assert seepage(*arguments)[0] == 0
    assert sorted(_Unmixer.batches) == [1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 6]
    (cell,) = cells(tmp_path / "o")
    assert cell.summary["mse"].mean < 1e-12
    assert cell.summary["mse"].n == 6


def test_out_of_memory_for_one_picture_is_a_typed_failure(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    arguments = ("audit", victim, folder, "--attack", "unmix:behaviour=hungry", "--layer", "mix", "-o", tmp_path / "o")
    assert seepage(*arguments)[0] == 3
    (cell,) = cells(tmp_path / "o")
    assert cell.status == "failed"
    assert all("out of memory" in sample.message for sample in cell.samples)


def test_a_crashing_attack_costs_its_own_cell_alone(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    attacks = ("--attack", "unmix:behaviour=crash", "--attack", "unmix")
    code, out, _ = seepage("audit", victim, folder, *attacks, "--layer", "mix", "-o", tmp_path / "o")
    assert code == 3
    assert out.splitlines()[-1].endswith("report.html")
    crashed, fine = cells(tmp_path / "o")
    assert (crashed.status, fine.status) == ("failed", "done")
    assert "an attack's own mistake" in crashed.message
    assert "KeyError" in crashed.message


def test_failed_cells_are_run_again(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    arguments = ("audit", victim, folder, "--attack", "unmix:behaviour=crash", "--layer", "mix", "-o", tmp_path / "o")
    seepage(*arguments)
    _Unmixer.batches.clear()
    assert seepage(*arguments)[0] == 3
    assert _Unmixer.batches == [6]


def test_a_nan_recovery_is_a_failed_sample(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    arguments = ("audit", victim, folder, "--attack", "unmix:behaviour=nan", "--layer", "mix", "-o", tmp_path / "o")
    seepage(*arguments)
    (cell,) = cells(tmp_path / "o")
    assert [sample.status for sample in cell.samples].count("failed") == 1
    assert "NaN" in cell.samples[0].message


def test_what_an_attack_lacks_is_a_not_run_line(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    arguments = ("audit", victim, folder, "--attack", "unmix:behaviour=refuse", "--layer", "mix", "-o", tmp_path / "o")
    assert seepage(*arguments)[0] == 0
    (cell,) = cells(tmp_path / "o")
    assert (cell.status, cell.message) == ("not_run", "needs a fax machine")
    assert cell.samples == ()


def test_weights_that_are_not_finite_fail_their_cells_by_name(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    name = victim.replace(":tiny", ":poisoned")
    code, out, err = seepage("audit", name, folder, "--attack", "unmix", "--layer", "wide", "-o", tmp_path / "o")
    assert code == 3, err
    assert out.splitlines()[-1].endswith("report.html")
    (cell,) = cells(tmp_path / "o")
    assert cell.status == "failed"
    assert "wide.weight holds 1 NaN or infinite" in cell.message
    code, _, err = seepage("leak", name, folder, "--layer", "wide", "-o", tmp_path / "leak.safetensors")
    assert code == 2
    assert "wide.weight holds 1 NaN or infinite" in err
    base = ("audit", victim, folder, "--attack", "unmix", "--layer", "mix", "--metric", "agreement")
    code, _, err = seepage(*base, "--judge", name, "-o", tmp_path / "j")
    assert code == 2
    assert "wide.weight holds 1 NaN or infinite" in err


def test_pictures_of_another_size_are_said_to_be_resized(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    base = ("audit", victim, folder, "--attack", "unmix", "--layer", "mix")
    _, _, err = seepage(*base, "-o", tmp_path / "a")
    assert "16x16" not in err
    Image.new("RGB", (40, 20), "teal").save(folder / "wide.png")
    said = "1 of 7 pictures are not of 16x16 pixels and are prepared as the victim does: resize and crop centrally"
    _, _, err = seepage(*base, "-o", tmp_path / "b")
    assert said in err
    (cell,) = cells(tmp_path / "b")
    assert said in next(check.message for check in cell.checks if check.name == "resized")
    _, _, err = seepage("leak", victim, folder, "--layer", "mix", "-o", tmp_path / "leak.safetensors")
    assert said in err


def test_a_gate_on_what_no_cell_measured_is_no_pass(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    arguments = ("--attack", "unmix:behaviour=refuse", "--layer", "mix", "-o", tmp_path / "o", "--fail-if", "psnr>20")
    code, out, err = seepage("audit", victim, folder, *arguments)
    assert code == 2
    assert "no cell measured psnr: needs a fax machine" in err
    assert out.splitlines()[-1].endswith("report.html")


def test_agreement_of_outputs_that_are_no_scores_is_not_reported(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    seepage("audit", victim.replace(":tiny", ":embedder"), folder, *SMALL, "-o", tmp_path / "o")
    (cell,) = cells(tmp_path / "o")
    assert set(cell.utility) == {"cosine"}
    assert cell.utility["cosine"] == pytest.approx(1.0)


def test_other_public_pictures_are_another_cell(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    public = tmp_path / "public"
    public.mkdir()
    keys = set()
    for colour in ("red", "blue", "blue"):
        Image.new("RGB", (16, 16), colour).save(public / "one.png")
        base = ("audit", victim, folder, "--public", public, "--attack", "unmix", "--layer", "mix")
        assert seepage(*base, "-o", tmp_path / "o")[0] == 0
        keys |= set(Store(tmp_path / "o").cells())
    found = Store(tmp_path / "o").cells().values()
    assert len(keys) == len(found) == 2
    means = {cell.controls["mean_picture"]["mse"].mean for cell in found}
    assert len(means) == 2


def test_a_metric_that_a_plug_in_brings_is_shown(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    @dataclass(frozen=True)
    class Darkness(ImageMetric):
        unit: ClassVar[str] = "cd"
        higher_means_more_leakage: ClassVar[bool] = False
        perfect: ClassVar[float | None] = None

        def score(self, original, recovered, judge):
            return float(recovered.mean())

    registry.names("metric")
    registry.register("metric", "darkness")(Darkness)
    try:
        base = ("audit", victim, folder, "--attack", "unmix", "--layer", "mix", "--metric", "darkness")
        code, out, err = seepage(*base, "-o", tmp_path / "o")
    finally:
        del registry._components["metric"]["darkness"]
    assert code == 0, err
    (cell,) = cells(tmp_path / "o")
    assert "darkness cd" in out
    assert f"{cell.summary['darkness'].mean:.3f} [" in out
    assert "lower is more leakage" in (tmp_path / "o" / "report.html").read_text()


def test_features_that_overflow_fail_by_name(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    name = victim.replace(":tiny", ":overflowing")
    code, _, _ = seepage("audit", name, folder, "--attack", "unmix", "--layer", "wide", "-o", tmp_path / "o")
    assert code == 3
    (cell,) = cells(tmp_path / "o")
    assert cell.status == "failed"
    assert "NaN or infinite" in cell.message


@pytest.mark.parametrize(
    ("conditions", "code"),
    [
        (["psnr>20"], 1),
        (["psnr.mean<20"], 0),
        (["mse.max>0.5"], 0),
        (["mse.recovery>0.9"], 1),
        (["ssim.min < 0.5", "ssim > 0.5"], 1),
    ],
)
def test_fail_if(conditions: list[str], code: int, victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    gates = [part for condition in conditions for part in ("--fail-if", condition)]
    arguments = ("audit", victim, folder, "--attack", "unmix", "--layer", "mix", "-o", tmp_path / "o", *gates)
    found, out, err = seepage(*arguments)
    assert found == code, err
    assert out.splitlines()[-1].endswith("report.html")
    assert ("--fail-if" in err) == (code == 1)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("psnr", "METRIC"),
        ("psrn>3", "psnr"),
        ("psnr.wurst>3", "worst"),
        ("psnr>x", "METRIC"),
        ("ms_ssim>0.5", "161"),
    ],
)
def test_a_gate_that_could_not_fail_is_refused(
    condition: str, expected: str, victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    metrics = ("--metric", "ms_ssim" if condition.startswith("ms") else "psnr")
    arguments = ("--attack", "unmix", "--layer", "mix", "-o", tmp_path / "o", "--fail-if", condition)
    code, _, err = seepage("audit", victim, folder, *arguments, *metrics)
    assert code == 2
    assert expected in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_the_judge_must_not_be_the_victim_and_judges_agreement(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    base = ("audit", victim, folder, "--attack", "unmix", "--layer", "mix", "--metric", "agreement")
    code, _, err = seepage(*base, "--judge", victim, "-o", tmp_path / "a")
    assert code == 2
    assert "victim's own weights" in err
    code, _, err = seepage(*base[:-1], "mse", "--judge", "zoo/mobilenet_v3", "-o", tmp_path / "a")
    assert code == 2
    assert "add --metric agreement" in err
    code, _, err = seepage(*base, "--judge", victim.replace(":tiny", ":judge"), "-o", tmp_path / "b")
    assert code == 0, err
    (cell,) = cells(tmp_path / "b")
    assert cell.summary["agreement"].mean == 1.0
    assert cell.spec.judges["label"].name.endswith(":judge")


def test_a_judge_that_cannot_be_had_is_said_so_and_costs_nothing_else(
    victim: str, folder: Path, tmp_path: Path, seepage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    base = ("audit", victim, folder, "--attack", "unmix", "--layer", "mix", "-o", tmp_path / "o")
    code, _, err = seepage(*base, "--metric", "mse", "--metric", "agreement", "--metric", "ms_ssim")
    assert code == 0, err
    (cell,) = cells(tmp_path / "o")
    assert set(cell.summary) == {"mse"}
    assert "efficientnet_lite0" in cell.unavailable["agreement"]
    assert "161" in cell.unavailable["ms_ssim"]
    assert cell.spec.judges == {}


def test_redacted_audits_hold_no_name_and_no_picture(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    (folder / "0.png").rename(folder / "alice.png")
    (folder / "bob.png").write_text("no picture")
    base = ("audit", victim, folder, "--attack", "unmix", "--layer", "mix", "-o", tmp_path / "o")
    assert seepage(*base, "--redact")[0] == 0
    assert not (tmp_path / "o" / "images").exists()
    for path in (tmp_path / "o").iterdir():
        content = path.read_text(encoding="utf-8")
        assert "alice" not in content
        assert "bob" not in content
    assert [sample.id for sample in cells(tmp_path / "o")[0].samples] == [str(i) for i in range(1, 8)]


def test_a_redacted_audit_does_not_land_beside_pictures(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    base = ("audit", victim, folder, "--attack", "unmix", "--layer", "mix", "-o", tmp_path / "o")
    seepage(*base)
    code, _, err = seepage(*base, "--redact")
    assert code == 2
    assert "choose another folder" in err


def test_dry_run_forecasts_and_writes_nothing(victim: str, folder: Path, tmp_path: Path, seepage: Run) -> None:
    code, out, err = seepage("audit", victim, folder, *SMALL, "-o", tmp_path / "o", "--dry-run")
    assert code == 0, err
    assert "1 cells" in out
    assert "minutes" in out
    assert not (tmp_path / "o").exists()


def test_results_do_not_depend_on_workers_or_batch(victim: str, folder: Path, tmp_path: Path) -> None:
    base = {"victim": victim, "images": str(folder), "attacks": ("rmle:steps=15",), "metrics": ("mse",)}
    request = Request(**base, layers=("mix", "wide"))
    alone = run_audit(request, tmp_path / "a")
    pooled = run_audit(Request(**base, layers=("mix", "wide"), workers=2), tmp_path / "b")
    assert [cell.key for cell in alone] == [cell.key for cell in pooled]
    single = run_audit(Request(**{**base, "images": str(folder / "3.png")}, layers=("wide",)), tmp_path / "c")
    for one, other in zip(alone, pooled):
        for a, b in zip(one.samples, other.samples):
            assert a.metrics["mse"] == pytest.approx(b.metrics["mse"], rel=1e-3)
    assert single[0].samples[0].metrics["mse"] == pytest.approx(alone[1].samples[3].metrics["mse"], rel=1e-3)


def test_a_killed_cell_loses_no_finished_sample(victim: str, folder: Path, tmp_path: Path) -> None:
    for index in range(6, 80):
        Image.open(folder / f"{index % 6}.png").rotate(90 * (index % 4)).point(lambda v, i=index: (v + i) % 256).save(
            folder / f"{index}.png"
        )
    request = Request(victim, str(folder), ("wide",), ("rmle:steps=60",), metrics=("mse",))
    script = (
        "import sys; from pathlib import Path; from seepage.audit.request import Request\n"
        "from seepage.audit.run import run_audit\n"
        f"run_audit({request!r}, Path(sys.argv[1]))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "o")], env=environment)
    journals = tmp_path / "o" / "partial"
    deadline = time.time() + 120
    while time.time() < deadline and not any(journals.glob("*.jsonl")) and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (journal,) = journals.glob("*.jsonl")
    kept = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
    assert 0 < len(kept) < 80
    (cell,) = run_audit(request, tmp_path / "o")
    assert not journals.exists()
    assert len(cell.samples) == 80
    by_id = {sample.id: sample for sample in cell.samples}
    for line in kept:
        assert by_id[line["sample"]["id"]].seconds == line["sample"]["seconds"]


def test_ctrl_c_says_how_to_resume(victim: str, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "seepage", "audit", victim, str(folder), "-o", str(tmp_path / "o")]
    command += ["--attack", "rmle:steps=100000", "--layer", "wide", "--metric", "mse"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while time.time() < deadline and not (tmp_path / "o" / ".lock").exists():
        time.sleep(0.05)
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    ready, _, _ = select.select([child.stderr], [], [], 60)
    assert ready
    deadline = time.time() + 60
    while child.poll() is None and time.time() < deadline:  # an impatient person, while the libraries are taken down
        child.send_signal(signal.SIGINT)
        time.sleep(0.002)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "same command goes on" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert out == ""


def test_memory_is_flat_in_the_number_of_pictures(victim: str, folder: Path, tmp_path: Path) -> None:
    """Pictures are held one batch at a time: at most a batch's worth of tensors is alive at once."""
    for index in range(6, 200):
        Image.open(folder / f"{index % 6}.png").save(folder / f"{index}.png")
    loaded: list[int] = []
    bench = Workbench(Request(victim, str(folder), ("mix",), ("unmix",), metrics=("mse",)))
    _Unmixer.batches.clear()
    run_audit(bench.request, tmp_path / "o", bench=bench)
    loaded = _Unmixer.batches
    assert sum(loaded) == 200
    assert max(loaded) == 64
