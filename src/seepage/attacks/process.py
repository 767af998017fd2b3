"""What a training run has of its process: its device and precision, its random state, its Ctrl-C."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from .learning import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

Precision = Literal["fp32", "bf16", "fp16"]

_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def prepared(precision: Precision, module: nn.Module) -> Accelerator:
    """Return accelerate's hand on this process: where the module lies, or this process's own device among several.

    Raises:
        TrainingError: accelerate is not installed, or this device has no such precision.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise TrainingError(
            "training needs the `caption` extra, which is not installed: pip install 'seepage[caption]'"
        )
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    device = next(module.parameters()).device
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # It remembers the first precision a process asked for; the group of processes has to stay.
    AcceleratorState._reset_state(reset_partial_state=not several)
    require_precision(precision, device)
    try:
        return Accelerator(mixed_precision=_MIXED[precision], cpu=device.type == "cpu" and not several)
    except (ValueError, RuntimeError) as error:
        raise TrainingError(f"{precision} training cannot run here: {str(error).splitlines()[0]}") from error


def require_precision(precision: Precision, device: torch.device) -> None:
    """Refuse a precision that no training has on this device.

    Raises:
        TrainingError: it is fp16, and there is no GPU.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if precision == "fp16" and device.type == "cpu" and not (several and torch.cuda.is_available()):
        raise TrainingError("fp16 training needs a GPU: bf16 and fp32 run on a CPU")


def broadcast(accelerator: Accelerator, weights: Iterable[Tensor]) -> None:
    """Give every process the first one's weights."""
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast as sent

        with torch.no_grad():
            for weight in weights:
                weight.copy_(sent(weight.detach().clone()))


def gathered(accelerator: Accelerator, value: Any) -> list[Any]:
    """Return what every process has of this, by the processes' numbers."""
    if accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    found: list[Any] = gather_object([value])
    return found


@contextmanager
def seeded(header: Mapping[str, Any], process: int, device: torch.device) -> Iterator[None]:
    """Seed what dropout draws from by the header and the process; leave the caller's random state as it was."""
    text = json.dumps([header, process], sort_keys=True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)
        yield


def random_state(device: torch.device) -> dict[str, str]:
    """Return the state of what dropout draws from, fit for JSON."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in states.items()}


def set_random_state(states: Mapping[str, str], device: torch.device) -> None:
    """Take up what `random_state` returned."""
    bits = {name: torch.frombuffer(bytearray(base64.b64decode(s)), dtype=torch.uint8) for name, s in states.items()}
    torch.set_rng_state(bits["cpu"])
    if device.type == "cuda" and "cuda" in bits:
        torch.cuda.set_rng_state(bits["cuda"], device)


@contextmanager
def interruptible(alone: bool) -> Iterator[Callable[[], bool]]:
    """Let a first Ctrl-C wait for the end of a step: in the middle of one, weights are neither old nor new."""
    pressed: list[int] = []
    own = threading.current_thread() is threading.main_thread()
    if not (alone and own and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield lambda: False
        return

    def press(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
