"""Secrets as files that only their owner can read; a secret that was used leaves an empty file behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..files import printable, replacing
from ..types import Secret
from .base import SecretError

_KEY = "seepage-secret"


def write_secret(secrets: Sequence[Secret], path: Path) -> None:
    """Write the secrets of a leak's rows, in order, for their owner's eyes alone (mode 0600).

    Raises:
        OutputError: the file cannot be written.
    """
    names = secrets[0].tensors if secrets else {}
    tensors = {name: torch.cat([secret.tensors[name].cpu() for secret in secrets]) for name in names}
    _write(tensors, path, "whole")


def read_secret(path: Path) -> Secret:
    """Read what `write_secret` wrote. Whoever uses it calls `spend_secret` then.

    Raises:
        SecretError: the file is no secret, or was used.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = (file.metadata() or {}).get(_KEY)
        tensors = load_file(path) if said == "whole" else {}
    except (SafetensorError, OSError) as error:
        raise SecretError(f"{printable(path)} cannot be read as a secret: {' '.join(str(error).split())}") from error
    if said == "used":
        raise SecretError(f"{printable(path)} was used already: a secret restores one leak, once")
    if said != "whole":
        raise SecretError(f"{printable(path)} is no secret; expected what `seepage leak --secret` wrote")
    return Secret(tensors)


def spend_secret(path: Path) -> None:
    """Leave nothing of a secret in its file but that it was used."""
    _write({}, path, "used")


def _write(tensors: dict[str, torch.Tensor], path: Path, said: str) -> None:
    with replacing(path, mode=0o600) as part:
        save_file({name: value.contiguous() for name, value in tensors.items()}, part, metadata={_KEY: said})
