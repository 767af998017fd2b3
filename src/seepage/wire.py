"""Number formats on the way: what a leak loses and weighs when it is sent as fp32, fp16, bf16 or int8."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import torch
from torch import Tensor

from .types import Leak, SeepageError

WireFormat = Literal["fp32", "fp16", "bf16", "int8"]
FORMATS: tuple[str, ...] = get_args(WireFormat)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
MASKED = torch.int32
"""The type of a masked leak: float32's bits, the mask added modulo 2^32."""
_LEVELS = 127
_FLOAT = torch.finfo(torch.float32)
# A little below the largest float's own: multiplied back, a scale rounded up would overflow.
_SCALES = (_FLOAT.tiny, _FLOAT.max / _LEVELS * (1 - _FLOAT.eps))


def encode(leak: Leak, wire: str) -> Leak:
    """Return the leak in the format it travels in; int8 is symmetric with one scale a row.

    NaN and infinity travel as they are in the floating-point formats; int8 has no number for them.

    Raises:
        SeepageError: no such format, or values that the format cannot hold.
    """
    if wire not in DTYPES:
        raise SeepageError(f"no wire format is called {wire!r}; known: {', '.join(FORMATS)}")
    if leak.features.dtype == MASKED:
        if wire != "fp32":
            raise SeepageError(f"a masked leak is the bits of float32, which {wire} does not carry; --wire fp32 does")
        return leak
    features = decode(leak).features
    finite = bool(torch.isfinite(features).all())
    if wire != "int8":
        sent = features.to(DTYPES[wire])
        if finite and not torch.isfinite(sent).all():
            largest = float(features.abs().max())
            raise SeepageError(f"{wire} cannot hold a feature of {largest:.4g}; fp32 can")
        return dataclasses.replace(leak, features=sent, header=dataclasses.replace(leak.header, wire=wire, scale=None))
    if not finite:
        raise SeepageError("int8 cannot hold NaN or infinite features; fp32 can")
    rows = features.reshape(len(leak), -1)
    scale = (rows.abs().amax(1) / _LEVELS).clamp(*_SCALES)
    sent = (features / _by_row(scale, features)).round().clamp(-_LEVELS, _LEVELS).to(torch.int8)
    header = dataclasses.replace(leak.header, wire=wire, scale=tuple(scale.tolist()))
    return dataclasses.replace(leak, features=sent, header=header)


def decode(leak: Leak) -> Leak:
    """Return the leak as its reader sees it: float32, the scale multiplied in. The header keeps the format.

    Masked bits are read as numbers from -1 to 1, always finite.
    """
    if leak.features.dtype == MASKED:
        return leak.with_features((leak.features.double() / 2**31).float())
    features = leak.features.float()
    if leak.header.scale is not None and leak.features.dtype == torch.int8:
        scale = torch.tensor(leak.header.scale, device=features.device)
        features = features * _by_row(scale, features)
    return leak.with_features(features)


def bytes_per_image(leak: Leak) -> int:
    """Return what one row weighs on the wire, its scale included."""
    row = leak.features[0]
    return row.numel() * DTYPES[leak.header.wire].itemsize + (4 if leak.header.scale is not None else 0)


def _by_row(scale: Tensor, features: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (features.ndim - 1))
