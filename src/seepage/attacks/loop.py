"""Training by steps: mixed precision, accumulation and several processes, resumed after a kill bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..types import Progress
from .checkpoints import Checkpoint, Shelf
from .learning import TrainingError
from .process import Precision, broadcast, gathered, interruptible, prepared, random_state, seeded, set_random_state

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

_IN_A_ROW = 5
# fp16's loss scale begins at 2^16 and is halved by every step that overflows.
_IN_A_ROW_SCALED = 16


@dataclass
class Curve:
    """How a run went, one number a step that counted; `asdict` of it is JSON.

    `loss` is the mean over the step's batches, `rate` the learning rate, `seconds` the time since the beginning, pauses
    left out. `skipped` counts the steps whose loss or gradient was not finite. `notes` are lines for whoever started
    the run: a damaged checkpoint, where it went on.
    """

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    skipped: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Loop:
    """`steps` steps of AdamW, the rate rising to `lr` over `warmup` steps, then falling to zero along a cosine.

    A step takes the mean loss of `accumulate` batches in each process; gradients longer than `clip` are shortened to
    it, 0 leaves them. `every` so many steps a checkpoint is written. Needs the extra `caption` (accelerate); run under
    torchrun, each process draws batches of its own and the gradients are averaged.
    """

    steps: int
    lr: float
    warmup: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    accumulate: int = 1
    precision: Precision = "fp32"
    every: int = 100
    clip: float = 1.0
    decay: float = 0.0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(self.steps - self.warmup, 1)))

    def run(
        self,
        module: nn.Module,
        loss: Callable[[int], Tensor],
        *,
        folder: Path | None = None,
        header: Mapping[str, Any],
        progress: Progress | None = None,
    ) -> Curve:
        """Train what of `module` requires a gradient, in place; go on where a run of this header in `folder` stopped.

        `loss(n)` is the loss of batch n on the device where the module lies: it draws the batch from a generator that
        (seed, n) seeds, so that nothing depends on what ran before. Modes (train, eval) are the caller's. Ctrl-C ends
        the run after the step it meets, checkpoint written; a second one does not wait for that.

        Raises:
            TrainingError: accelerate is not installed or knows no such precision here, a number makes no sense, nothing
                is to be trained, or the loss was not finite several steps in a row.
            CheckpointError: `folder` holds a run of another configuration, or one that is still at work.
            KeyboardInterrupt: the run was interrupted.
        """
        self.require_sensible()
        if not any(weight.requires_grad for weight in module.parameters()):
            raise TrainingError("there is nothing to train: no weight of the module requires a gradient")
        accelerator = prepared(self.precision, module)
        if accelerator.num_processes > 1:
            module.to(accelerator.device)
        said = self._header(module, header, accelerator.num_processes)
        shelf = None if folder is None else Shelf(folder, said)
        run = _Run(self, module, loss, accelerator, shelf, progress or (lambda done, what: None))
        with (
            seeded(said, accelerator.process_index, run.device),
            shelf.opened() if shelf and accelerator.is_main_process else nullcontext(),
        ):
            return run.go()

    def require_sensible(self) -> None:
        """Refuse numbers that no run can have.

        Raises:
            TrainingError: the first of them, and what it may be.
        """
        for name, least in (("steps", 1), ("accumulate", 1), ("every", 1), ("warmup", 0), ("clip", 0), ("decay", 0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise TrainingError(f"{name} is a number of at least {least}, got {value}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise TrainingError(f"lr is a number above 0, got {self.lr}")

    def _header(self, module: nn.Module, header: Mapping[str, Any], processes: int) -> dict[str, Any]:
        shapes = {name: list(weight.shape) for name, weight in module.named_parameters() if weight.requires_grad}
        # How often it is written changes nothing of what is written.
        loop = {key: value for key, value in asdict(self).items() if key != "every"}
        return {**header, "loop": loop, "processes": processes, "weights": shapes}


class _Run:
    """One run of a loop: what its steps share."""

    def __init__(
        self,
        loop: Loop,
        module: nn.Module,
        loss: Callable[[int], Tensor],
        accelerator: Accelerator,
        shelf: Shelf | None,
        tell: Progress,
    ) -> None:
        self.loop, self.module, self.loss, self.accelerator = loop, module, loss, accelerator
        self.shelf, self.tell = shelf, tell
        self.weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.adam = torch.optim.AdamW(self.weights.values(), lr=loop.lr, weight_decay=loop.decay)
        self.optimiser: AcceleratedOptimizer = accelerator.prepare_optimizer(self.adam)
        self.device = next(iter(self.weights.values())).device
        self.curve = Curve()
        self.in_a_row = 0

    def go(self) -> Curve:
        """Run the steps that are left."""
        first = self._resume()
        broadcast(self.accelerator, self.weights.values())
        alone = self.accelerator.num_processes == 1
        began = time.perf_counter() - (self.curve.seconds[-1] if self.curve.seconds else 0.0)
        with interruptible(alone) as pressed:
            for step in range(first, self.loop.steps):
                value, sound = self._step(step)
                self._count(step, value, sound, time.perf_counter() - began)
                done, stop = step + 1, pressed()
                if done % self.loop.every == 0 or done == self.loop.steps or stop:
                    self._write(done)
                self.tell(done / self.loop.steps, f"step {done} of {self.loop.steps}, loss {value:.3f}")
                if stop:
                    raise KeyboardInterrupt
            if pressed():  # after the last step
                raise KeyboardInterrupt
        return self.curve

    def _step(self, step: int) -> tuple[float, bool]:
        """Make one step; return its loss, and whether loss and gradient were finite."""
        loop, accelerator = self.loop, self.accelerator
        for group in self.adam.param_groups:
            group["lr"] = loop.rate(step)
        self.optimiser.zero_grad()
        total = torch.zeros((), device=self.device)
        for part in range(loop.accumulate):
            number = (step * loop.accumulate + part) * accelerator.num_processes + accelerator.process_index
            with torch.enable_grad(), accelerator.autocast():
                value = self.loss(number) / loop.accumulate
            accelerator.backward(value)
            total += value.detach().float()
        mean = self._averaged(total)
        accelerator.unscale_gradients(self.optimiser)
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        sound = math.isfinite(mean) and bool(torch.isfinite(norm))
        if sound and loop.clip:
            torch.nn.utils.clip_grads_with_norm_(self.weights.values(), loop.clip, norm)
        # With a scale of the loss the step finds out for itself that it is not to be made, and lowers the scale.
        if sound or accelerator.scaler is not None:
            self.optimiser.step()
        return mean, sound

    def _averaged(self, total: Tensor) -> float:
        """Average loss and gradients over the processes, by one message."""
        if self.accelerator.num_processes > 1:
            for weight in self.weights.values():
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            parts = [total.view(1), *(w.grad.flatten() for w in self.weights.values() if w.grad is not None)]
            mean = self.accelerator.reduce(torch.cat(parts), reduction="mean")
            places = torch.split(mean, [part.numel() for part in parts])
            for weight, place in zip(self.weights.values(), places[1:], strict=True):
                weight.grad = place.view_as(weight).clone()
            total = places[0]
        return float(total)

    def _count(self, step: int, value: float, sound: bool, seconds: float) -> None:
        if sound:
            self.in_a_row = 0
            self.curve.step.append(step + 1)
            self.curve.loss.append(value)
            self.curve.rate.append(self.loop.rate(step))
            self.curve.seconds.append(seconds)
            return
        self.curve.skipped += 1
        self.in_a_row += 1
        most = _IN_A_ROW if self.accelerator.scaler is None else _IN_A_ROW_SCALED
        if self.in_a_row >= most:
            what = "gradient" if math.isfinite(value) else "loss"
            raise TrainingError(
                f"the {what} was not finite in {most} steps in a row, up to step {step + 1} of {self.loop.steps}: "
                f"try a lower rate than {self.loop.lr:g}{', or fp32' if self.loop.precision != 'fp32' else ''}"
            )

    def _write(self, step: int) -> None:
        if self.shelf is None:
            return
        random = gathered(self.accelerator, random_state(self.device))
        if self.accelerator.is_main_process:
            curve = asdict(self.curve)
            curve.pop("notes")
            scaler = None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()
            state = {"random": random, "curve": curve, "scaler": scaler, "in_a_row": self.in_a_row}
            self.shelf.write(step, self._tensors(), state)
        self.accelerator.wait_for_everyone()

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"weight/{name}": weight for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            for key, value in self.adam.state.get(weight, {}).items():
                tensors[f"{key}/{name}"] = value
        return tensors | {f"buffer/{name}": buffer for name, buffer in _buffers(self.module)}

    def _resume(self) -> int:
        """Take up the newest whole checkpoint; return how many steps are done."""
        if self.shelf is None:
            return 0
        self.accelerator.wait_for_everyone()
        found, notes = self.shelf.latest()
        self.curve.notes += notes
        for note in notes:
            self.tell(0.0, note)
        if found is None:
            return 0
        self._take(found)
        if found.step < self.loop.steps:
            self.curve.notes.append(f"going on from step {found.step} of {self.loop.steps}")
        return found.step

    @torch.no_grad()
    def _take(self, found: Checkpoint) -> None:
        for name, weight in self.weights.items():
            weight.copy_(found.tensors[f"weight/{name}"])
            kept = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in found.tensors]
            if kept:
                # AdamW counts its steps on the CPU, whatever it steps.
                self.adam.state[weight] = {
                    key: found.tensors[f"{key}/{name}"].to("cpu" if key == "step" else weight.device) for key in kept
                }
        for name, buffer in _buffers(self.module):
            buffer.copy_(found.tensors[f"buffer/{name}"])
        self.curve = Curve(**found.state["curve"], notes=self.curve.notes)
        self.in_a_row = found.state["in_a_row"]
        if self.accelerator.scaler is not None and found.state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(found.state["scaler"])
        set_random_state(found.state["random"][self.accelerator.process_index], self.device)


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what training changes beside weights: the buffers of modules in training mode."""
    for name, part in module.named_modules():
        if part.training:
            yield from part.named_buffers(prefix=name, recurse=False)
