"""Weights from disk: safe formats only, fitted onto a network name by name, refused in one line."""

from __future__ import annotations

import contextlib
import pickle
import random
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .victim import WeightsError

PICKLED = (".pt", ".pth", ".th", ".bin")
SUFFIXES = (".safetensors", *PICKLED)
CONNECT_SECONDS = 5.0
_WRAPPERS = ("state_dict", "model_state_dict", "model")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every global generator that a network's constructor may draw from, and put all back afterwards."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  a user's constructor may draw from it
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict; a wrapper such as `state_dict` and a `module.` before every name are taken off.

    Raises:
        WeightsError: there is no such file, its format is not known or not safe, or it holds no state dict.
    """
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"weights are read from {', '.join(SUFFIXES)}, got {path}")
    if not path.is_file():
        raise WeightsError(f"no weights file {path}; type @random for initial weights, or the path of a state dict")
    try:
        raw = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path} holds more than tensors and could run code; save model.state_dict() as .safetensors"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"{path} cannot be read as {path.suffix}: {reason}") from error
    for wrapper in _WRAPPERS:
        if isinstance(raw, Mapping) and isinstance(raw.get(wrapper), Mapping):
            raw = raw[wrapper]
    if not isinstance(raw, Mapping):
        raise WeightsError(f"{path} holds a {type(raw).__name__}; expected a state dict of names and tensors")
    state = {str(name): value for name, value in raw.items() if isinstance(value, Tensor)}
    if not state:
        raise WeightsError(f"{path} holds no tensors; expected a state dict of names and tensors")
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def fit(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a state into a model, every name and shape matching; types are converted to the model's.

    Raises:
        WeightsError: names or shapes differ; the message counts them and names the first.
    """
    own = model.state_dict()
    # Old files lack the counter of batches that batch norm has kept since 2018; it plays no part in evaluation.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in own]
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(own)} missing (first {missing[0]})")
    if extra:
        faults.append(f"{len(extra)} unexpected (first {extra[0]})")
    if shapes:
        first = shapes[0]
        found, wanted = tuple(state[first].shape), tuple(own[first].shape)
        faults.append(f"{len(shapes)} of another shape (first {first}: {found}, expected {wanted})")
    if faults:
        raise WeightsError(f"{origin} does not fit this network: {'; '.join(faults)}")
    model.load_state_dict(dict(state), strict=False)


def check_finite(model: nn.Module, name: str) -> None:
    """Refuse weights with NaN or infinities.

    Raises:
        WeightsError: a tensor has some; the message names the first and counts.
    """
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise WeightsError(f"{name}: weight {key} holds {bad} NaN or infinite values of {tensor.numel()}")


@contextlib.contextmanager
def short_timeouts() -> Iterator[None]:
    """Let connections of urllib, which takes no timeout from its callers' callers, fail after five seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def torch_hub_file(url: str, instead: str) -> Path:
    """Return the file that torch.hub keeps of a URL, fetched where it is not yet there.

    Raises:
        WeightsError: it is not on disk and cannot be fetched; `instead` is what to type.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    stem = path.stem.rsplit("-", 1)
    prefix = stem[1] if len(stem) == 2 and len(stem[1]) >= 8 and set(stem[1]) <= set("0123456789abcdef") else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with short_timeouts():
            torch.hub.download_url_to_file(url, str(path), prefix)
    except (OSError, RuntimeError) as error:
        reason = str(getattr(error, "reason", error)).partition("\n")[0]
        raise WeightsError(
            f"weights {path.name} are not in {folder} and {url} cannot be fetched ({reason}); type {instead}"
        ) from error
    return path
