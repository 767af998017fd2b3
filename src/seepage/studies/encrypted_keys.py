"""Keys for features on the way: made in two files, read back, and refused where they are in the wrong hands."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from ..files import printable, replacing
from ..types import SeepageError

SECRET, PUBLIC = "secret.tenseal", "public.tenseal"
DEGREES = (4096, 8192, 16384)
DEGREE, BITS, SCALE = 8192, (60, 40, 60), 40
_SECURE = {4096: 109, 8192: 218, 16384: 438}
"""Bits that all primes may have together at 128-bit security (HomomorphicEncryption.org's standard)."""
_LARGEST = 2**30


class KeyFileError(SeepageError):
    """Keys that cannot be made, read or used: the message says which and what to do instead."""


def require_tenseal() -> tuple[ModuleType, ModuleType]:
    """Import TenSEAL and its face of SEAL.

    Raises:
        KeyFileError: it is not installed.
    """
    try:
        import tenseal
        import tenseal.sealapi
    except ImportError as error:
        raise KeyFileError("computing on ciphertexts needs the `he` extra: pip install 'seepage[he]'") from error
    return tenseal, tenseal.sealapi


@dataclass(frozen=True)
class Keys:
    """A TenSEAL context with its keys. `secret` says whether the one to decrypt is among them; it is never printed."""

    path: Path
    context: Any
    secret: bool

    def __repr__(self) -> str:
        return f"Keys({printable(self.path)!r}, degree={self.degree}, bits={self.bits}, secret={self.secret})"

    @property
    def seal(self) -> Any:
        """What SEAL's objects are made from."""
        return self.context.seal_context().data

    @property
    def slots(self) -> int:
        """How many numbers a ciphertext holds."""
        return self.degree // 2

    @property
    def scale(self) -> float:
        """What numbers are multiplied by before they are rounded."""
        return float(self.context.global_scale)

    @cached_property
    def degree(self) -> int:
        """Of the polynomials."""
        return int(self.seal.key_context_data().parms().poly_modulus_degree())

    @cached_property
    def primes(self) -> tuple[int, ...]:
        """Those that a fresh ciphertext is counted modulo; the one for switching keys left out."""
        return tuple(int(prime.value()) for prime in self.seal.first_context_data().parms().coeff_modulus())

    @cached_property
    def bits(self) -> tuple[int, ...]:
        """Of every prime, that for switching keys last."""
        return tuple(int(prime.bit_count()) for prime in self.seal.key_context_data().parms().coeff_modulus())

    @property
    def largest_ciphertext(self) -> int:
        """Bytes that one may have on the wire: two polynomials, uncompressed, and a little for their names."""
        return 2 * self.degree * len(self.primes) * 8 + 1024

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the public key, by which both sides know that their files are of one pair."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "key")
            self.context.public_key().data.save(str(path))
            return hashlib.sha256(path.read_bytes()).hexdigest()


def make_keys(folder: Path, degree: int = DEGREE, bits: Sequence[int] = BITS, scale: int = SCALE) -> tuple[Path, Path]:
    """Write a pair of new contexts, the client's with the secret key (mode 0600) and the server's; return the paths.

    `bits` are the sizes of the primes: the first holds the answer, the last switches keys, each between is one product.
    `scale` is the bits that a number gets after the point.

    Raises:
        KeyFileError: no such keys at 128-bit security, or the folder holds keys already.
    """
    if degree not in DEGREES:
        raise KeyFileError(f"--degree is one of {', '.join(map(str, DEGREES))}, got {degree}")
    if len(bits) < 2 or not all(20 <= size <= 60 for size in bits):
        raise KeyFileError(f"--bits are two primes or more of 20 to 60 bits, as 60,40,60; got {_listed(bits)}")
    if sum(bits) > _SECURE[degree]:
        larger = next((size for size in DEGREES if _SECURE[size] >= sum(bits)), None)
        near = f"; --degree {larger} allows {_SECURE[larger]}" if larger else ""
        raise KeyFileError(
            f"--bits {_listed(bits)} are {sum(bits)} together: degree {degree} is secure to 128 bits with "
            f"{_SECURE[degree]} at most{near}"
        )
    if not 10 <= scale <= max(bits):
        raise KeyFileError(f"--scale is from 10 to {max(bits)}, the bits of the largest prime; got {scale}")
    tenseal, _ = require_tenseal()
    paths = folder / SECRET, folder / PUBLIC
    for path in paths:
        if path.exists():
            raise KeyFileError(f"{printable(path)} is there already: name another folder, or remove the pair")
    try:
        context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=list(bits))
        context.global_scale = 2**scale
        context.generate_galois_keys()
    except (ValueError, RuntimeError) as error:
        raise KeyFileError(
            f"SEAL has no keys of degree {degree} with primes of {_listed(bits)} bits: {error}"
        ) from error
    with replacing(paths[0], 0o600) as part:
        part.write_bytes(context.serialize(save_secret_key=True))
    with replacing(paths[1]) as part:
        part.write_bytes(context.serialize(save_galois_keys=True))
    return paths


def read_keys(path: Path, *, secret: bool) -> Keys:
    """Read the client's file where `secret`, else the server's.

    Raises:
        KeyFileError: it cannot be read, is none for CKKS, lacks what its side needs, or is the secret one on a server.
    """
    tenseal, _ = require_tenseal()
    shown = printable(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise KeyFileError(f"{shown} is larger than any keys; give what `seepage encrypt keys` wrote")
        context = tenseal.context_from(path.read_bytes())
    except OSError as error:
        raise KeyFileError(f"cannot read {shown}: {error.strerror or error}") from error
    except (ValueError, RuntimeError) as error:
        raise KeyFileError(f"{shown} holds no TenSEAL context ({error}); `seepage encrypt keys` writes one") from error
    if context.is_private() and not secret:
        raise KeyFileError(
            f"{shown} holds the secret key, which a server must not have: give it {PUBLIC}, written beside it"
        )
    if secret and not context.is_private():
        raise KeyFileError(f"{shown} holds no secret key, so no answer could be read: give {SECRET}")
    keys = Keys(path, context, secret)
    if keys.seal.first_context_data().parms().scheme().name != "CKKS":
        raise KeyFileError(f"{shown} is not for CKKS, which counts with reals; `seepage encrypt keys` writes such keys")
    try:
        known = keys.scale > 0
    except ValueError:
        known = False
    if not known or not context.has_public_key() or not (secret or context.has_galois_keys()):
        raise KeyFileError(f"{shown} lacks a scale, the public key or, for a server, the keys that rotate")
    return keys


def _listed(bits: Sequence[int]) -> str:
    return ",".join(map(str, bits))
