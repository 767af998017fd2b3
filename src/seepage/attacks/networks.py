"""Networks that attacks train: drawn from a generator alone, kept as one safetensors file with its JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..files import printable, write_tensors
from ..types import SeepageError

N = TypeVar("N", bound=nn.Module)

SLOPE = 0.1
_KEY = "seepage-attack"


class SavedAttackError(SeepageError):
    """A file that holds no attack, or one that was fitted to something else."""


def drawn(make: Callable[[], N], generator: torch.Generator, device: torch.device) -> N:
    """Return what `make` builds, its weights drawn from `generator` and not from global state.

    Convolutions and linear maps start as He et al. (2015) for a leaky ReLU of `SLOPE`, their biases and all else at
    zero, norms at one. Buffers must be set by the caller, and nothing else may be computed in `make`.
    """
    with torch.device("meta"):
        network = make()
    network.to_empty(device="cpu")
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            if name == "weight" and weight.ndim > 1:
                nn.init.kaiming_uniform_(weight, a=SLOPE, generator=generator)
            else:
                nn.init.constant_(weight, 1.0 if name == "weight" else 0.0)
    return network.to(device)


def write(path: Path, tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> None:
    """Write tensors and what is said of them; `path` is either whole or absent."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_tensors(path, plain, {_KEY: json.dumps(said)})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `write` wrote.

    Raises:
        SavedAttackError: the file is not one of these.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, said  # noqa: SIM118  no mapping
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise SavedAttackError(f"{printable(path)} holds no attack: {type(error).__name__}: {error}") from error
