"""Training by steps: the schedule, accumulation, resuming bit for bit, several processes, what is not finite."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

pytest.importorskip("accelerate")

from seepage.attacks.checkpoints import CheckpointError, Shelf
from seepage.attacks.learning import TrainingError
from seepage.attacks.loop import Curve, Loop
from seepage.seeding import generator

SCRIPT = """
import signal, sys, time
from pathlib import Path
import torch
from torch import nn
from safetensors.torch import save_file
from seepage.attacks.loop import Loop
from seepage.seeding import generator

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2)).train()
frozen = nn.Linear(2, 2).requires_grad_(False)
whole = nn.ModuleList([net, frozen])

def loss(n):
    x = torch.randn(6, 4, generator=generator(0, "fit", n))
    time.sleep(float(sys.argv[3]))
    return (frozen(net(x)) - x[:, :2]).square().mean()

loop = Loop(steps=40, lr=1e-2, warmup=5, every=3, precision=sys.argv[4])
curve = loop.run(whole, loss, folder=Path(sys.argv[1]), header={"seed": 0}, progress=lambda f, w: print(w, flush=True))
save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, sys.argv[2])
"""


def start(tmp_path: Path, folder: str, out: str, pause: float = 0.0, precision: str = "fp32") -> subprocess.Popen[str]:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / folder), str(tmp_path / out), str(pause), precision]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment())


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(word):
            return
    assert process.stderr is not None
    raise AssertionError(process.stderr.read())


def line() -> tuple[nn.Linear, Callable[[int], Tensor], list[int]]:
    """A line to be fitted to y = 2 x - 1, and the numbers of the batches that were drawn."""
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.zero_()
    drawn: list[int] = []

    def loss(number: int) -> Tensor:
        drawn.append(number)
        x = torch.randn(16, 1, generator=generator(0, "fit", number))
        return (module(x) - (2 * x - 1)).square().mean()

    return module, loss, drawn


def test_fits_a_line_and_says_how_it_went() -> None:
    module, loss, drawn = line()
    said: list[tuple[float, str]] = []
    curve = Loop(steps=200, lr=0.1).run(module, loss, header={}, progress=lambda done, what: said.append((done, what)))
    assert module.weight.item() == pytest.approx(2, abs=0.01)
    assert module.bias.item() == pytest.approx(-1, abs=0.01)
    assert drawn == list(range(200))
    assert curve.step == list(range(1, 201))
    assert curve.loss[-1] < 1e-3 < curve.loss[0]
    assert curve.seconds == sorted(curve.seconds)
    assert said[-1][0] == 1.0
    assert "step 200 of 200" in said[-1][1]
    assert Curve(**json.loads(json.dumps(asdict(curve)))) == curve


def test_rate_rises_then_falls_along_a_cosine() -> None:
    loop = Loop(steps=110, lr=0.2, warmup=10)
    assert [loop.rate(step) for step in (0, 4, 9)] == pytest.approx([0.02, 0.1, 0.2])
    assert loop.rate(10) == pytest.approx(0.2)
    assert loop.rate(60) == pytest.approx(0.1)
    assert loop.rate(110) == pytest.approx(0.0, abs=1e-12)
    assert Loop(steps=110, lr=0.2, warmup=10, schedule="constant").rate(109) == 0.2


def test_first_step_is_adams() -> None:
    """Adam's first step is the rate times the gradient's sign, whatever its size."""
    module, loss, _ = line()
    Loop(steps=1, lr=0.1, schedule="constant").run(module, loss, header={})
    assert module.weight.item() == pytest.approx(0.1, rel=1e-4)
    assert module.bias.item() == pytest.approx(-0.1, rel=1e-4)


def test_accumulated_batches_are_one_batch() -> None:
    """Two batches of 8 a step are the 16 rows of one."""
    rows = torch.randn(5, 16, 3, generator=torch.Generator().manual_seed(0))

    def trained(parts: int) -> Tensor:
        torch.manual_seed(0)
        module = nn.Linear(3, 1)
        batch = rows.view(5 * parts, 16 // parts, 3)
        loop = Loop(steps=5, lr=0.01, accumulate=parts)
        curve = loop.run(module, lambda n: (module(batch[n]) - batch[n].sum(1, True)).square().mean(), header={})
        return torch.cat([module.weight.flatten(), torch.tensor(curve.loss)]).detach()

    assert torch.allclose(trained(1), trained(2), atol=1e-6)


def test_long_gradients_are_shortened(tmp_path: Path) -> None:
    """A clipped gradient keeps its direction: with AdamW alone its size would not show, so Adam's memory is read."""
    module = nn.Linear(2, 1, bias=False)

    def moment(clip: float, folder: Path) -> Tensor:
        loop = Loop(steps=1, lr=0.1, clip=clip)
        loop.run(module, lambda n: module(torch.tensor([30.0, 40.0])).sum(), folder=folder, header={})
        return load_file(next(folder.glob("*.safetensors")))["exp_avg/weight"]

    assert torch.allclose(moment(1.0, tmp_path / "a"), torch.tensor([[0.06, 0.08]]), atol=1e-5)
    assert torch.allclose(moment(0.0, tmp_path / "b"), torch.tensor([[3.0, 4.0]]), atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_killed_run_goes_on_bit_for_bit(tmp_path: Path, precision: str) -> None:
    """Dropout, batch norm's statistics and Adam's memory included: kill -9 in the middle changes no bit."""
    whole = start(tmp_path, "whole", "whole.safetensors", precision=precision)
    _, error = whole.communicate(timeout=120)
    assert whole.returncode == 0, error
    killed = start(tmp_path, "killed", "never.safetensors", 0.05, precision)
    wait_for(killed, "step 14 of 40")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "never.safetensors").exists()
    again = start(tmp_path, "killed", "resumed.safetensors", precision=precision)
    output, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    # Some steps were not made again, and those after the last checkpoint were.
    first = int(output.split()[1])
    assert 12 < first <= 17
    expected, found = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    curves = [Shelf(tmp_path / name, _header(tmp_path / name)).latest()[0] for name in ("whole", "killed")]
    assert curves[0] is not None
    assert curves[1] is not None
    assert curves[0].state["curve"]["loss"] == curves[1].state["curve"]["loss"]
    assert len(list((tmp_path / "killed").glob("step-*.json"))) == 2
    assert not list((tmp_path / "killed").glob(".*.part"))


def _header(folder: Path) -> dict[str, object]:
    header: dict[str, object] = json.loads(next(folder.glob("step-*.json")).read_text())["header"]
    return header


def test_interrupt_keeps_the_step_it_met(tmp_path: Path) -> None:
    process = start(tmp_path, "run", "out.safetensors", 0.05)
    wait_for(process, "step 7 of 40")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in error
    steps = sorted(int(path.stem.removeprefix("step-")) for path in (tmp_path / "run").glob("step-*.json"))
    assert steps[-1] >= 7, error
    again = start(tmp_path, "run", "out.safetensors")
    output, error = again.communicate(timeout=60)
    assert again.returncode == 0, error
    assert output.startswith(f"step {steps[-1] + 1} of 40")


def run_to_the_end(folder: Path, **changes: object) -> tuple[nn.Linear, Curve]:
    module, loss, _ = line()
    settings: dict[str, object] = {"steps": 9, "lr": 0.1, "every": 3, **changes}
    header = settings.pop("header", {"seed": 1})
    return module, Loop(**settings).run(module, loss, folder=folder, header=header)  # type: ignore[arg-type]


def test_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first, curve = run_to_the_end(tmp_path)
    module, loss, drawn = line()
    again = Loop(steps=9, lr=0.1, every=3).run(module, loss, folder=tmp_path, header={"seed": 1})
    assert drawn == []
    assert torch.equal(module.weight, first.weight)
    assert again.loss == curve.loss


@pytest.mark.parametrize("damage", ["weights", "words"])
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    first, _ = run_to_the_end(tmp_path)
    suffix = "safetensors" if damage == "weights" else "json"
    path = tmp_path / f"step-000000009.{suffix}"
    path.write_bytes(path.read_bytes()[:-20])
    module, curve = run_to_the_end(tmp_path)
    assert torch.equal(module.weight, first.weight)
    assert path.name in curve.notes[0]
    assert "damaged" in curve.notes[0]
    assert "going on from step 6" in curve.notes[1]


def test_all_checkpoints_damaged_begins_anew(tmp_path: Path) -> None:
    first, _ = run_to_the_end(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"")
    module, curve = run_to_the_end(tmp_path)
    assert torch.equal(module.weight, first.weight)
    assert "beginning anew" in curve.notes[-1]


def test_other_configuration_is_refused_by_its_difference(tmp_path: Path) -> None:
    run_to_the_end(tmp_path, header={"seed": 1, "data": {"train": "abc"}})
    with pytest.raises(CheckpointError, match=r"seed is 1 there and 2 here; ") as caught:
        run_to_the_end(tmp_path, header={"seed": 2, "data": {"train": "abc"}})
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"data.train is 'abc' there and 'xyz' here, and 1 more differ"):
        run_to_the_end(tmp_path, lr=0.2, header={"seed": 1, "data": {"train": "xyz"}})
    with pytest.raises(CheckpointError, match=r"loop.lr is 0.1 there and 0.2 here"):
        run_to_the_end(tmp_path, lr=0.2, header={"seed": 1, "data": {"train": "abc"}})
    run_to_the_end(tmp_path, every=4, header={"seed": 1, "data": {"train": "abc"}})


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with Shelf(tmp_path, {}).opened(), pytest.raises(CheckpointError, match="another run is at work"):
        run_to_the_end(tmp_path)


def test_step_that_is_not_finite_is_skipped_and_counted() -> None:
    module, loss, _ = line()
    before: list[Tensor] = []

    def poisoned(number: int) -> Tensor:
        if number in (3, 4):
            before.append(module.weight.detach().clone())
            return loss(number) * float("nan")
        if number == 5:
            before.append(module.weight.detach().clone())
        return loss(number)

    curve = Loop(steps=10, lr=0.1).run(module, poisoned, header={})
    assert curve.skipped == 2
    assert curve.step == [1, 2, 3, 6, 7, 8, 9, 10]
    assert all(torch.equal(before[0], weight) for weight in before)
    assert all(math.isfinite(value) for value in curve.loss)


def test_infinite_gradient_of_a_finite_loss_is_skipped() -> None:
    module = nn.Linear(1, 1, bias=False)
    start = module.weight.detach().clone()
    # The root has no finite slope at 0, where its value is fine.
    curve = Loop(steps=2, lr=0.1).run(module, lambda n: (module.weight * 0.0).sqrt().sum(), header={})
    assert curve.skipped == 2
    assert torch.equal(module.weight, start)


def test_several_in_a_row_end_the_run_in_one_line(tmp_path: Path) -> None:
    module, loss, drawn = line()
    with pytest.raises(
        TrainingError, match=r"the loss was not finite in 5 steps in a row, up to step 9 of 50"
    ) as caught:
        Loop(steps=50, lr=0.1, every=2).run(
            module, lambda n: loss(n) if n < 4 else loss(n) / 0, folder=tmp_path, header={}
        )
    assert "\n" not in str(caught.value)
    assert drawn[-1] == 8
    # The last checkpoint holds the weights of the last step that counted.
    kept = Shelf(tmp_path, _header(tmp_path)).latest()[0]
    assert kept is not None
    assert kept.step == 8
    assert torch.equal(kept.tensors["weight/weight"], module.weight)
    assert torch.isfinite(module.weight).all()


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("lr", 0.0), ("lr", float("nan")), ("accumulate", 0)])
def test_numbers_that_make_no_sense_are_refused(field: str, value: float) -> None:
    module, loss, _ = line()
    with pytest.raises(TrainingError, match=field):
        Loop(**{"steps": 3, "lr": 0.1, field: value}).run(module, loss, header={})  # type: ignore[arg-type]


def test_nothing_to_train_is_refused() -> None:
    module, loss, _ = line()
    with pytest.raises(TrainingError, match="nothing to train"):
        Loop(steps=1, lr=0.1).run(module.requires_grad_(False), loss, header={})


def test_half_precision_on_a_cpu_is_refused() -> None:
    module, loss, _ = line()
    with pytest.raises(TrainingError, match="fp16 training needs a GPU"):
        Loop(steps=1, lr=0.1, precision="fp16").run(module, loss, header={})


def test_random_state_of_the_caller_is_neither_read_nor_moved() -> None:
    def trained(seed: int) -> Tensor:
        torch.manual_seed(seed)
        module = nn.Linear(3, 1)
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
        before = torch.get_rng_state()
        Loop(steps=3, lr=0.1).run(
            module, lambda n: nn.functional.dropout(module(torch.ones(8, 3)), 0.5).mean(), header={}
        )
        assert torch.equal(before, torch.get_rng_state())
        return module.weight.detach()

    assert torch.equal(trained(1), trained(2))


TORCHRUN = """
import os, sys
from pathlib import Path
import torch
from torch import nn
from safetensors.torch import save_file
from seepage.attacks.loop import Loop

rank = os.environ.get("RANK", "0")
rows = torch.randn(12, 4, 3, generator=torch.Generator().manual_seed(0))
torch.manual_seed(int(rank))  # the first process's weights are to count
module = nn.Linear(3, 1)

def loss(n):
    return (module(rows[n]) - rows[n].sum(1, True)).square().mean()

loop = Loop(steps=6, lr=0.01, accumulate=int(sys.argv[3]), every=2)
curve = loop.run(module, loss, folder=Path(sys.argv[1]), header={})
save_file({"weight": module.weight.detach(), "loss": torch.tensor(curve.loss)}, sys.argv[2] + rank)
"""


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batches(tmp_path: Path) -> None:
    """Under torchrun each process draws batches of its own: together those that one draws alone, accumulating two."""
    script = tmp_path / "train.py"
    script.write_text(TORCHRUN)
    arguments = [str(script), str(tmp_path / "two"), str(tmp_path / "two-"), "1"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = _environment() | {"ACCELERATE_USE_CPU": "1"}
    for _ in range(2):  # the second time goes on from the end
        done = subprocess.run([*launch, *arguments], env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr[-2000:]
    alone = [sys.executable, str(script), str(tmp_path / "one"), str(tmp_path / "one-"), "2"]
    done = subprocess.run(alone, env=_environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second, single = (load_file(tmp_path / name) for name in ("two-0", "two-1", "one-0"))
    assert torch.equal(first["weight"], second["weight"])
    assert torch.allclose(first["weight"], single["weight"], atol=1e-6)
    assert torch.allclose(first["loss"], single["loss"], atol=1e-5)
    assert json.loads(next((tmp_path / "two").glob("*.json")).read_text())["header"]["processes"] == 2
