"""Leaks as files: what the client sent, and the raw arrays that feature stores hold."""

from __future__ import annotations

import itertools
import json
import math
import tokenize
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import printable
from ..types import Leak, LeakHeader, SeepageError, Shape, SplitModel
from ..wire import DTYPES, MASKED

VERSION = 1
# One key for all: safetensors keeps several in no fixed order, and the same leak is to give the same bytes.
KEY = "seepage-leak"
FEATURES = "features"
SCALE = "scale"
_ROWS_AT_ONCE = 64
_LARGEST_SCALE = torch.finfo(torch.float32).max / 128
_NO_NUMPY = (ValueError, OSError, EOFError, OverflowError, SyntaxError, TypeError, tokenize.TokenError, RecursionError)
_NUMPY = b"\x93NUMPY"
_ARCHIVES = {b"PK\x03\x04": "an archive (.npz, or torch's .pt)", b"\x80\x02": "a pickle", b"\x80\x04": "a pickle"}


class LeakFileError(SeepageError):
    """A file that is no leak, is damaged, or was not made at this cut of this victim."""


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    version: int
    victim: str
    weights_sha256: str
    layer: str
    preprocessing: str
    wire: Literal["fp32", "fp16", "bf16", "int8"]
    defenses: tuple[str, ...] = ()
    ids: tuple[str, ...] | None = None


def read_header(path: str | Path) -> LeakHeader | None:
    """Return what a leak file says of itself, without its scales; None for a raw array.

    Raises:
        LeakFileError: the file is neither, or is damaged.
    """
    if _is_numpy(path):
        return None
    with _opened(path) as file:
        fields = _fields(file, path)
    return None if fields is None else _header(fields, None)


def read_leak(path: str | Path) -> Leak:
    """Read what `write_leak` wrote: features as they travelled, so `wire.decode` comes next. Rows are read as used.

    Raises:
        LeakFileError: the file is damaged, truncated, no leak, of a newer version, or holds what is not finite.
    """
    if _is_numpy(path):
        raise LeakFileError(_headless(path))
    with _opened(path) as file:
        fields = _fields(file, path)
        if fields is None:
            raise LeakFileError(_headless(path))
        names = set(file.keys())
        if FEATURES not in names:
            raise LeakFileError(f"{printable(path)} holds no tensor {FEATURES!r}, only: {', '.join(sorted(names))}")
        features = file.get_tensor(FEATURES)
        scale = tuple(file.get_tensor(SCALE).float().flatten().tolist()) if SCALE in names else None
    leak = Leak(features, _header(fields, scale), fields.ids)
    require_sound(leak, f"{printable(path)}: ")
    return leak


def check_leak(leak: Leak, split: SplitModel) -> None:
    """Refuse a leak that was not made at this cut of this victim.

    Raises:
        LeakFileError: layer, weights, preprocessing or shape differ; the message names both sides.
    """
    header = leak.header
    if header.weights_sha256 != split.weights_sha256:
        made, here = header.weights_sha256[:12], split.weights_sha256[:12]
        raise LeakFileError(
            f"the leak is of {printable(header.victim)} (weights {made}), "
            f"not of {split.name} (weights {here}): name its own victim"
        )
    if header.layer != split.layer:
        raise LeakFileError(f"the leak was cut at {header.layer!r}, not at {split.layer!r}: name its own layer")
    if header.preprocessing != split.preprocessing:
        raise LeakFileError(
            f"the leak is of pictures prepared by {header.preprocessing!r}, the victim here prepares them by "
            f"{split.preprocessing!r}: name the same size"
        )
    given, expected = tuple(leak.features.shape[1:]), leak_shape(split)
    if given != expected:
        raise LeakFileError(f"a row of the leak has shape {given}, {split.layer} of {split.name} gives {expected}")


def read_features(path: str | Path, split: SplitModel) -> Leak:
    """Read a raw .npy or .safetensors array as the leak of `split`; its rows are read as they are used.

    The array is "b ..." or a single row, in float16, bfloat16, float32 or float64 (which becomes float32). Of several
    tensors the one called `features` counts.

    Raises:
        LeakFileError: the file is damaged, holds something else, or its shape or values are not those of a leak.
    """
    features = _numpy_array(path) if _is_numpy(path) else _bare_tensor(path)
    expected = leak_shape(split)
    if tuple(features.shape) == expected:
        features = features[None]
    if features.ndim == 0 or tuple(features.shape[1:]) != expected:
        where = f"{split.layer} of {split.name} gives {expected} a picture, so (rows, {str(expected)[1:]}"
        raise LeakFileError(f"{printable(path)} has shape {_shape(features)}; {where}{_fitting(features, expected)}")
    if features.dtype == torch.float64:
        features = features.float()
    wires = {DTYPES[wire]: wire for wire in ("fp32", "fp16", "bf16")}
    if features.dtype not in wires:
        raise LeakFileError(
            f"{printable(path)} holds {_dtype(features)} values; a raw array is float16, bfloat16, float32 or float64"
        )
    header = LeakHeader(split.name, split.weights_sha256, split.layer, split.preprocessing, wires[features.dtype])
    leak = Leak(features, header)
    require_sound(leak, f"{printable(path)}: ")
    return leak


def open_leak(path: str | Path, split: SplitModel) -> Leak:
    """Read a leak or a raw array, whichever the file is, and hold it against `split`.

    Raises:
        LeakFileError: as `read_leak`, `check_leak` and `read_features` do.
    """
    if read_header(path) is None:
        return read_features(path, split)
    leak = read_leak(path)
    check_leak(leak, split)
    return leak


def leak_shape(split: SplitModel) -> Shape:
    """Return the shape of one row of the split's leak."""
    return tuple(split.leak(torch.zeros(1, *split.image_shape)).features.shape[1:])


def header_json(header: LeakHeader, ids: tuple[str, ...] | None) -> str:
    """Return what a leak file says of itself beside its tensors."""
    return _Fields(
        version=VERSION,
        victim=header.victim,
        weights_sha256=header.weights_sha256,
        layer=header.layer,
        preprocessing=header.preprocessing,
        wire=header.wire,  # type: ignore[arg-type]  # require_sound has checked it
        defenses=header.defenses,
        ids=ids,
    ).model_dump_json()


def require_sound(leak: Leak, where: str, first: int = 0) -> None:
    """Refuse features and header that do not fit each other, or a value that is not finite.

    `where` begins the message, `first` is the number of the first row.

    Raises:
        LeakFileError: what does not fit, by name.
    """
    features, header = leak.features, leak.header
    rows = features.shape[0] if features.ndim else 0
    if features.ndim < 2 or features.numel() == 0:
        raise LeakFileError(f"{where}a leak has at least one row of features, this has shape {_shape(features)}")
    masked = features.dtype == MASKED and header.wire == "fp32" and bool(header.defenses)
    if features.dtype != DTYPES.get(header.wire) and not masked:
        raise LeakFileError(f"{where}the header says {header.wire!r}, the features are {_dtype(features)}")
    if leak.ids is not None and len(leak.ids) != rows:
        raise LeakFileError(f"{where}{rows} rows of features have {len(leak.ids)} ids")
    scale = header.scale
    if (scale is not None) != (header.wire == "int8"):
        raise LeakFileError(f"{where}{header.wire} features come with{'out' if scale is None else ''} scales")
    if scale is not None and len(scale) != rows:
        raise LeakFileError(f"{where}{rows} rows of features have {len(scale)} scales")
    if scale is not None and not all(0 < value <= _LARGEST_SCALE for value in scale):
        raise LeakFileError(f"{where}a scale is not a positive number whose features fit a float")
    bad = _first_bad_row(features)
    if bad is not None:
        name = f" ({leak.ids[bad]})" if leak.ids is not None else ""
        raise LeakFileError(f"{where}row {first + bad}{name} of {first + rows} holds NaN or infinite features")


def _first_bad_row(features: Tensor) -> int | None:
    """Look at a few rows at a time: a dump may be larger than the memory."""
    if not features.is_floating_point():
        return None
    for start in range(0, features.shape[0], _ROWS_AT_ONCE):
        fine = torch.isfinite(features[start : start + _ROWS_AT_ONCE]).flatten(1).all(1)
        if not fine.all():
            return start + int(fine.int().argmin())
    return None


def _is_numpy(path: str | Path) -> bool:
    try:
        if not Path(path).is_file():
            raise LeakFileError(f"{printable(path)}: there is no such file")
        with open(path, "rb") as stream:
            start = stream.read(len(_NUMPY))
    except OSError as error:
        raise LeakFileError(f"cannot read {printable(path)}: {error.strerror or error}") from error
    for magic, what in _ARCHIVES.items():
        if start.startswith(magic):
            raise LeakFileError(
                f"{printable(path)} is {what}, which is not read; save one array as .npy or safetensors"
            )
    return start == _NUMPY


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise LeakFileError(
            f"{printable(path)} is no leak, or is damaged or truncated: {' '.join(str(error).split())}"
        ) from error


def _fields(file: Any, path: str | Path) -> _Fields | None:
    text = (file.metadata() or {}).get(KEY)
    if text is None:
        return None
    try:
        raw = json.loads(text)
        version = raw.get("version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > VERSION:
            raise LeakFileError(
                f"{printable(path)} is of version {version}; this seepage reads up to {VERSION}: upgrade it"
            )
        return _Fields.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise LeakFileError(f"{printable(path)} has a damaged header: {where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise LeakFileError(f"{printable(path)} has a damaged header, which is no JSON") from error


def _header(fields: _Fields, scale: tuple[float, ...] | None) -> LeakHeader:
    return LeakHeader(
        fields.victim,
        fields.weights_sha256,
        fields.layer,
        fields.preprocessing,
        fields.wire,
        scale,
        fields.defenses,
    )


def _headless(path: str | Path) -> str:
    return f"{printable(path)} is a raw array that does not say where it was cut: name its victim and layer"


def _bare_tensor(path: str | Path) -> Tensor:
    with _opened(path) as file:
        names = sorted(file.keys())
        name = names[0] if len(names) == 1 else FEATURES
        if name not in names:
            found = f"tensors {', '.join(names)}" if names else "no tensor"
            raise LeakFileError(f"{printable(path)} holds {found}; store one, or call one {FEATURES!r}")
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _numpy_array(path: str | Path) -> Tensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            # Copy on write: torch warns of memory it may not write to.
            array = np.lib.format.open_memmap(path, mode="c")
    except _NO_NUMPY as error:
        raise LeakFileError(
            f"{printable(path)} is no plain .npy array, or is damaged or truncated: {' '.join(str(error).split())}"
        ) from error
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        stored = (
            "raw bytes, as numpy stores bfloat16 (use safetensors)" if array.dtype.kind == "V" else array.dtype.name
        )
        raise LeakFileError(f"{printable(path)} holds {stored}; a raw .npy array is float16, float32 or float64")
    return torch.from_numpy(array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))


def _fitting(features: Tensor, expected: Shape) -> str:
    """Say which rearrangement would fit, channels-last first."""
    for batch in (1, 0):
        given = tuple(features.shape[batch:])
        if len(given) != len(expected):
            continue
        last = len(given) - 1
        for order in [(last, *range(last)), *itertools.permutations(range(len(given)))]:
            if tuple(given[axis] for axis in order) == expected:
                axes = (*range(batch), *(axis + batch for axis in order))
                return f"; its axes fit in another order: transpose by {axes}"
    if features.ndim > 1 and math.prod(features.shape[1:]) == math.prod(expected):
        return "; a row has as many numbers: reshape it"
    return ""


def _shape(tensor: Tensor) -> Shape:
    return tuple(tensor.shape)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
