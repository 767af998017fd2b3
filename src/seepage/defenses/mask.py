"""A one-time mask on the bits of a leak: added modulo 2^32, taken away bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from jaxtyping import Int32
from torch import Tensor

from ..registry import register
from ..types import Generators, Law, Leak, Secret, Shape
from .base import EAVESDROPPER, STORAGE, BuiltIn, DefenseError, Payload, SecretError, applied, drawn, spend, undone

_KEY, _DIGEST = "key", "digest"
_KEY_BYTES, _NONCE_BYTES = 32, 12
_BITS = 32


@register("defense", "mask")
@dataclass(frozen=True)
class Mask(BuiltIn):
    """A one-time mask: 32 bits of ChaCha20's key stream added to each float's bits modulo 2^32.

    What CapRecover's noise is meant to be, made sound. Every row of every send has a key of its own, fresh from the
    operating system whatever generators are given; without the key what is sent is uniform and says nothing of the
    leak. With it every float comes back bit for bit, NaN included. A secret serves once. Masked leaks are int32.
    """

    holder: ClassVar[str] = "client and provider"
    protects_from: ClassVar[tuple[str, ...]] = (EAVESDROPPER, STORAGE)
    randomised: ClassVar[bool] = True
    keeps_secret: ClassVar[bool] = True

    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, Secret]:
        """Mask every row with a key of its own; the generators are not used: a key is no pseudo-random number.

        Raises:
            DefenseError: the features are not float32.
        """
        if leak.features.dtype != torch.float32:
            raise DefenseError(f"mask takes float32 features, got {leak.features.dtype}; it comes last of the defenses")
        keys = [secrets.token_bytes(_KEY_BYTES) for _ in range(len(leak))]
        rows = leak.features.detach().cpu().contiguous().view(torch.int32)
        masked = torch.stack([_shifted(row, key, 1) for row, key in zip(rows, keys, strict=True)])
        kept = {_KEY: _table(keys), _DIGEST: _table([_digest(row) for row in masked])}
        return applied(leak, self, masked.to(leak.features.device)), Secret(kept)

    def restore(self, leak: Leak, secret: Secret | None) -> Leak:
        """Take the mask away; the secret is spent by it.

        Raises:
            SecretError: there is no secret, it was used, or it is of another leak.
        """
        if leak.features.dtype != torch.int32:
            raise SecretError(f"a masked leak is int32, this one is {leak.features.dtype}")
        rows = leak.features.detach().cpu().contiguous()
        if secret is not None and _DIGEST in secret.tensors:
            known = secret.tensors[_DIGEST]
            if not torch.equal(known, _table([_digest(row) for row in rows])):
                raise SecretError(
                    f"the secret is of another leak: it was made with {len(known)} rows whose SHA-256 are not these"
                )
        keys = spend(secret, _KEY, "mask")
        clean = torch.stack([_shifted(row, bytes(key.tolist()), -1) for row, key in zip(rows, keys, strict=True)])
        return undone(leak, self, clean.view(torch.float32).to(leak.features.device))

    def law(self) -> Law:
        """Return that what is sent is uniform, whatever the leak."""
        return MaskLaw(self)

    def payload(self, payload: Payload, shape: Shape) -> Payload:
        """Return 32 bits for every number, whatever was saved before, and the key that the next stage needs."""
        return dataclasses.replace(payload.filled(), bits=_BITS).beside(_KEY_BYTES)


@dataclass(frozen=True)
class MaskLaw:
    """Uniform bits: all that can be known without the key."""

    defense: Mask

    def sample(self, clean: Leak, generators: Generators) -> Leak:
        """Return uniform bits."""
        low, high = -(2**31), 2**31
        bits = drawn(
            clean, generators, lambda shape, g: torch.randint(low, high, shape, generator=g, dtype=torch.int32)
        )
        return applied(clean, self.defense, bits)

    def expected(self, clean: Leak) -> None:
        """Return nothing: the mean does not depend on the leak."""
        return

    def estimate(self, sends: Sequence[Leak]) -> Leak:
        """Return the first send: no number of them says more."""
        return sends[0]

    def log_likelihood(self, sent: Leak, clean: Leak) -> None:
        """Return nothing: every leak is as likely as any other."""
        return


def keystream(key: bytes, count: int, *, nonce: bytes = bytes(_NONCE_BYTES), counter: int = 0) -> bytes:
    """Return `count` bytes of ChaCha20's key stream (RFC 8439). A key serves once, so that its nonce may be zero."""
    cipher = Cipher(ChaCha20(key, counter.to_bytes(4, "little") + nonce), mode=None)
    return cipher.encryptor().update(bytes(count))


def _shifted(row: Int32[Tensor, "..."], key: bytes, sign: int) -> Int32[Tensor, "..."]:
    """Add the key's stream to a row of bits, or take it away; unsigned, for there it is defined what overflows to."""
    stream = np.frombuffer(keystream(key, 4 * row.numel()), dtype="<u4").reshape(row.shape)
    bits = row.numpy().view(np.uint32)
    found = bits + stream if sign > 0 else bits - stream
    return torch.from_numpy(np.asarray(found).astype(np.uint32, copy=False).view(np.int32))


def _digest(row: Int32[Tensor, "..."]) -> bytes:
    return hashlib.sha256(row.contiguous().numpy().tobytes()).digest()


def _table(rows: Sequence[bytes]) -> Tensor:
    return torch.tensor([list(row) for row in rows], dtype=torch.uint8)
