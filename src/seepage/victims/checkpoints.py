"""transformers' checkpoints: the vision tower out of whole ones, sharded ones and those of earlier versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .hub import hugging_face_file
from .victim import WeightsError
from .weights import mismatch, read_state

_INDEX = "model.safetensors.index.json"
_FILES = ("model.safetensors", _INDEX, "pytorch_model.bin")
# Where models that read more than pictures keep their vision tower, the longer prefixes first.
_TOWERS = ("model.vision_tower.", "vision_tower.", "model.vision_model.", "vision_model.", "model.visual.", "visual.")


def folder_state(folder: Path) -> dict[str, Tensor]:
    """Read the weights in a folder as transformers saves them.

    Raises:
        WeightsError: it holds none.
    """
    for name in _FILES:
        if (folder / name).is_file():
            return _read(folder / name, lambda shard: folder / shard)
    raise WeightsError(f"{folder} holds none of {', '.join(_FILES)}; type @random or @path/file.safetensors")


def hub_state(hub: str, revision: str | None, instead: str) -> dict[str, Tensor]:
    """Read the weights of a hub id, fetched where they are not in the cache.

    Raises:
        WeightsError: they cannot be had.
    """
    path = hugging_face_file(hub, _FILES, instead, revision)
    return _read(path, lambda shard: hugging_face_file(hub, (shard,), instead, revision))


def load_tower(model_class: Any, config: Any, state: dict[str, Tensor], origin: str) -> nn.Module:
    """Load a state, its vision tower if it has one, through transformers: it knows what modules were called before.

    Raises:
        WeightsError: names or shapes differ.
    """
    prefix = _tower_prefix(state)
    tower = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    model, report = model_class.from_pretrained(
        None,
        config=config,
        state_dict=tower,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        local_files_only=True,
    )
    own = list(model.state_dict())
    missing = sorted(report["missing_keys"], key=own.index)
    if missing and all(name.startswith("pooler.") for name in missing) and getattr(model, "pooler", None) is not None:
        # A checkpoint of a classifier has no pooler: its bare model is the one without.
        model.pooler = None
        missing = []
    # Heads and other towers are no part of this model; more layers than it has are.
    parts, base = dict(model.named_children()), f"{model_class.base_model_prefix}."
    unexpected = sorted(report["unexpected_keys"])
    extra = [name for name in unexpected if name.removeprefix(base).partition(".")[0] in parts]
    shapes = {name: (tuple(found), tuple(wanted)) for name, found, wanted in sorted(report["mismatched_keys"])}
    fault = mismatch(len(own), missing, extra, shapes)
    if fault:
        raise WeightsError(f"{origin} does not fit this network: {fault}")
    loaded: nn.Module = model
    return loaded


def _read(path: Path, shard_path: Callable[[str], Path]) -> dict[str, Tensor]:
    """Read one file; of an index, the shards that hold the vision tower."""
    if path.name != _INDEX:
        return read_state(path)
    shards: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    prefix = _tower_prefix(shards)
    state: dict[str, Tensor] = {}
    for shard in sorted({shard for name, shard in shards.items() if name.startswith(prefix)}):
        state |= read_state(shard_path(shard))
    return state


def _tower_prefix(names: Iterable[str]) -> str:
    known = list(names)
    return next((prefix for prefix in _TOWERS if any(name.startswith(prefix) for name in known)), "")
