"""Weights from disk: safe formats only, fitted onto a network name by name, refused in one line."""

from __future__ import annotations

import contextlib
import pickle
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..types import Shape
from .victim import WeightsError

PICKLED = (".pt", ".pth", ".th", ".bin")
SUFFIXES = (".safetensors", *PICKLED)
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of a pickle's protocol comes beside the refusal
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
    shapes = {
        name: (tuple(state[name].shape), tuple(own[name].shape))
        for name in own
        if name in state and own[name].shape != state[name].shape
    }
    fault = mismatch(len(own), missing, extra, shapes)
    if fault:
        raise WeightsError(f"{origin} does not fit this network: {fault}")
    model.load_state_dict(dict(state), strict=False)


def mismatch(
    count: int, missing: Sequence[str], extra: Sequence[str], shapes: Mapping[str, tuple[Shape, Shape]]
) -> str:
    """Say how a state differs from a model of `count` tensors; shapes are found and expected. Empty where it fits."""
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {count} tensors missing (first {missing[0]})")
    if extra:
        faults.append(f"{len(extra)} unexpected (first {extra[0]})")
    if shapes:
        first, (found, wanted) = next(iter(shapes.items()))
        faults.append(f"{len(shapes)} of another shape (first {first}: {found}, expected {wanted})")
    return "; ".join(faults)


class NonFiniteWeightsError(WeightsError):
    """Weights with NaN or infinities."""


def check_finite(model: nn.Module, name: str) -> None:
    """Refuse weights with NaN or infinities.

    Raises:
        NonFiniteWeightsError: a tensor has some; the message names the first and counts.
    """
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise NonFiniteWeightsError(f"{name}: weight {key} holds {bad} NaN or infinite values of {tensor.numel()}")
