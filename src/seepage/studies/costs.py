"""What a candidate costs: bytes, multiply-adds, measured milliseconds and what is left of the model's answers."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__, wire
from ..audit.assemble import environment, utility
from ..audit.exposure import Exposure, sent
from ..files import replacing
from ..types import SplitModel
from ..victims.cut import HookedPrefix
from .sweep import Candidate, Sweep

KEPT = "costs.json"
_RUNS = 7
_GREY = 0.5


@dataclass(frozen=True)
class Milliseconds:
    """The median, least and most of several timed runs on one picture."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Costs:
    """What one picture takes: bytes on the wire, multiply-adds and milliseconds on either side, and the utility kept.

    The device's time is that of the prefix, the defenses and the wire's format; the server's that of undoing them and
    of the suffix. Neither holds the network's.
    """

    bytes: int
    macs_before: int
    macs_after: int
    utility: dict[str, float]
    device_ms: Milliseconds
    server_ms: Milliseconds


class Costing:
    """Costs of a sweep's candidates: measured once, then kept in the folder, so that the same sweep says the same."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self._sweep = sweep
        self._path = folder / KEPT
        self._kept: dict[str, Any] = _read(self._path)

    def bytes(self, candidate: Candidate) -> int:
        """Return what one picture weighs on the wire."""
        return self._sweep.exposure(candidate).bytes_per_image()

    def of(self, candidate: Candidate) -> Costs:
        """Return the costs of one candidate."""
        key = self._key(candidate)
        if key not in self._kept:
            exposure = self._sweep.exposure(candidate)
            device, server = milliseconds(exposure)
            measured = {"utility": utility(exposure), "device_ms": asdict(device), "server_ms": asdict(server)}
            self._kept[key] = {**measured, "bytes": exposure.bytes_per_image()}
            with replacing(self._path) as part:
                part.write_text(json.dumps(self._kept, indent=1) + "\n", encoding="utf-8")
        found, where = self._kept[key], self._sweep.base.cut(candidate.layer)
        return Costs(
            found["bytes"],
            where.macs_before,
            where.macs_after,
            dict(found["utility"]),
            Milliseconds(**found["device_ms"]),
            Milliseconds(**found["server_ms"]),
        )

    def _key(self, candidate: Candidate) -> str:
        bench, setting = self._sweep.base, candidate.setting
        asked = bench.request
        content = [
            *(__version__, bench.victim.name, bench.victim.weights_sha256, candidate.layer, setting.defenses),
            *(setting.wire, asked.size, asked.seed, bench.manifest, asked.public, environment(bench.device).device),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@torch.no_grad()
def milliseconds(exposure: Exposure) -> tuple[Milliseconds, Milliseconds]:
    """Time one picture on the device's side and on the server's, the first run left out."""
    bench, split, defense = exposure.bench, exposure.split, exposure.defense
    picture = torch.full(split.image_shape, _GREY, device=bench.device)
    device, server = [], []
    for turn in range(_RUNS + 1):
        began = _now(bench.device)
        if defense is None:
            leak, secret = wire.encode(split.leak(picture[None]), bench.request.wire), None
        else:
            leak, secret = sent(bench, split, defense, picture, "timed", turn)
        device.append(_now(bench.device) - began)
        began = _now(bench.device)
        received = leak if leak.features.dtype == wire.MASKED else wire.decode(leak)
        if defense is not None:
            received = defense.restore(received, secret)
        undone = _now(bench.device) - began
        server.append(undone + _suffix_seconds(split, lambda received=received: split.finish(received), bench.device))  # type: ignore[misc]
    return _summary(device[1:]), _summary(server[1:])


def _suffix_seconds(split: SplitModel, finish: Callable[[], object], device: torch.device) -> float:
    """Time the suffix from the cut on: it comes there by a run on grey pictures, which a server would not make."""
    if not isinstance(split.prefix, HookedPrefix):
        began = _now(device)
        finish()
        return _now(device) - began
    site, calls = split.prefix.site, list[float]()
    module = split.prefix.network.model.get_submodule(site.module)
    handle = module.register_forward_hook(lambda *_: calls.append(_now(device)))
    try:
        finish()
        return _now(device) - calls[site.call - 1]
    finally:
        handle.remove()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _summary(seconds: list[float]) -> Milliseconds:
    found = [1000 * value for value in seconds]
    return Milliseconds(statistics.median(found), min(found), max(found))


def _read(path: Path) -> dict[str, Any]:
    """What was kept; nothing where it cannot be read, since it can be measured again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
