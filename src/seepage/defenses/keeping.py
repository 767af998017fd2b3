"""Secrets as files that only their owner can read; a secret that was used leaves an empty file behind."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ..files import printable, write_tensors
from ..types import Leak, Secret
from .base import SecretError

_KEY, _LEAK = "seepage-secret", "seepage-leak-sha256"


def digests(leak: Leak) -> list[bytes]:
    """Return the SHA-256 of each row that is sent: a secret is of one leak, and noise alone cannot say of which."""
    rows = leak.features.detach().cpu().contiguous()
    return [hashlib.sha256(row.view(-1).view(torch.uint8).numpy().tobytes()).digest() for row in rows]


def write_secret(secrets: Sequence[Secret], path: Path, sent: Sequence[bytes] = ()) -> None:
    """Write the secrets of a leak's rows, in order, for their owner's eyes alone (mode 0600).

    With the `digests` of what was sent the file restores that and nothing else.

    Raises:
        OutputError: the file cannot be written.
    """
    names = secrets[0].tensors if secrets else {}
    tensors = {name: torch.cat([secret.tensors[name].cpu() for secret in secrets]) for name in names}
    _write(tensors, path, {_KEY: "whole", _LEAK: _all(sent)})


def read_secret(path: Path, leak: Leak | None = None) -> Secret:
    """Read what `write_secret` wrote, for this leak where one is given. Whoever uses it calls `spend_secret` then.

    Raises:
        SecretError: the file is no secret, was used, or is of another leak.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        said, known = metadata.get(_KEY), metadata.get(_LEAK)
        tensors = load_file(path) if said == "whole" else {}
    except (SafetensorError, OSError) as error:
        raise SecretError(f"{printable(path)} cannot be read as a secret: {' '.join(str(error).split())}") from error
    if said == "used":
        raise SecretError(f"{printable(path)} was used already: a secret restores one leak, once")
    if said != "whole":
        raise SecretError(f"{printable(path)} is no secret; expected what `seepage leak --secret` wrote")
    if leak is not None and known and known != _all(digests(leak)):
        raise SecretError(f"{printable(path)} is of another leak: what was sent with it is not what lies here")
    return Secret(tensors)


def spend_secret(path: Path) -> None:
    """Leave nothing of a secret in its file but that it was used."""
    _write({}, path, {_KEY: "used"})


def _all(rows: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(rows)).hexdigest() if rows else ""


def _write(tensors: dict[str, torch.Tensor], path: Path, said: dict[str, str]) -> None:
    write_tensors(path, {name: value.contiguous() for name, value in tensors.items()}, said, mode=0o600)
