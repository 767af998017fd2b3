"""Hashes of tensors, and generators that depend on what they serve, never on batch, order or worker."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

Role = Literal["defense", "law", "attack", "fit", "control", "metric"]


def generator(seed: int, role: Role, *parts: str | int) -> torch.Generator:
    """Return a CPU generator seeded by (seed, role, parts)."""
    text = "\0".join([str(seed), role, *map(str, parts)])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def generators(seed: int, role: Role, hashes: Sequence[str], turn: int = 0) -> tuple[torch.Generator, ...]:
    """Return one generator a sample, seeded by (seed, role, hash, send or pass)."""
    return tuple(generator(seed, role, item, turn) for item in hashes)


def row_hashes(features: torch.Tensor) -> tuple[str, ...]:
    """Return the SHA-256 of each row's bytes: what an attacker, who has no picture, seeds from."""
    rows = features.detach().cpu().contiguous().reshape(features.shape[0], -1)
    return tuple(hashlib.sha256(row.view(torch.uint8).numpy().tobytes()).hexdigest() for row in rows)


def state_sha256(model: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of a model's state, the same on every machine."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
