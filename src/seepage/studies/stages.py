"""One stage of a training: a loop, and beside it what held-out pictures say, kept through kills."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.loop import Curve, Loop
from ..files import replacing
from ..types import Progress

_TESTS = 10
_HELD = "held.json"

Test = Callable[[], Mapping[str, float]]
"""What held-out pictures score now, by name; the controls beside them."""


@dataclass(frozen=True)
class Stage:
    """How a stage went: the loss of every step and, at some steps, what held-out pictures scored. JSON by `asdict`."""

    name: str
    unit: str
    curve: Curve
    held: dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Watched:
    """A loop whose module is tested ten times on the way and at the end."""

    name: str
    unit: str
    loop: Loop
    folder: Path

    def run(
        self,
        module: nn.Module,
        loss: Callable[[int], Tensor],
        test: Test,
        header: Mapping[str, Any],
        progress: Progress | None,
    ) -> Stage:
        """Train the module, in training mode, and leave it in evaluation mode.

        Raises:
            TrainingError, CheckpointError: as `Loop.run` does.
        """
        each = self.loop.accumulate * processes()
        gap = max(self.loop.steps // _TESTS, 1)
        known = self._known()

        def watched(number: int) -> Tensor:
            if number % each == 0 and number // each % gap == 0:
                self._record(number // each, module, test, known)
            return loss(number)

        module.train()
        curve = self.loop.run(module, watched, folder=self.folder, header=header, progress=progress)
        if self.loop.steps not in known and first_process():
            self._record(self.loop.steps, module, test, known)
        module.eval()
        held: dict[str, list[tuple[int, float]]] = {}
        for step in sorted(known):
            for name, value in known[step].items():
                held.setdefault(name, []).append((step, value))
        return Stage(self.name, self.unit, curve, held)

    def _record(self, step: int, module: nn.Module, test: Test, known: dict[int, dict[str, float]]) -> None:
        module.eval()
        # On the way and at the end alike: a step's mixed precision is not the test's.
        kind = next(module.parameters()).device.type
        with torch.no_grad(), torch.autocast(kind, enabled=False):
            known[step] = dict(test())
        module.train()
        with replacing(self.folder / _HELD) as part:
            part.write_text(json.dumps(known), encoding="utf-8")

    def _known(self) -> dict[int, dict[str, float]]:
        """Return what an earlier run of the same stage measured; what cannot be read is measured anew."""
        with suppress(OSError, ValueError, AttributeError):
            return {int(step): values for step, values in json.loads((self.folder / _HELD).read_text()).items()}
        return {}


def processes() -> int:
    """Return how many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_process() -> bool:
    """Return whether this is the process that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def as_json(stage: Stage) -> dict[str, Any]:
    """Return a stage as JSON has it."""
    return asdict(stage)
