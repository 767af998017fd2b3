"""What was computed once is read again: small JSON files under the cache, named by what determines them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import pydantic

from .. import assets
from ..files import OutputError, replacing
from .estimate import Estimate
from .jacobian import Spectrum

VERSION = 1
"""Of the computation: another number, and nothing that is kept is read again."""

T = TypeVar("T", Estimate, Spectrum)


def kept(kind: type[T], facts: Mapping[str, object], compute: Callable[[], T]) -> T:
    """Return the value that these facts determine, computing it where it is not on disk or its file is damaged.

    A cache that cannot be written costs the computation again, and nothing else.
    """
    path = place(kind, facts)
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["sha256"] == _digest(said["value"]):
            return pydantic.TypeAdapter(kind).validate_python(said["value"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass  # not there, or damaged: it is written anew
    found = compute()
    value = json.loads(json.dumps(asdict(found)))
    with suppress(OutputError), replacing(path) as part:
        part.write_text(json.dumps({"value": value, "sha256": _digest(value)}), encoding="utf-8")
    return found


def place(kind: type[Estimate] | type[Spectrum], facts: Mapping[str, object]) -> Path:
    """Return the file of what these facts determine, whether it is there or not."""
    named = json.dumps({"version": VERSION, "kind": kind.__name__, **facts}, sort_keys=True)
    return assets.home() / "bounds" / f"{hashlib.sha256(named.encode()).hexdigest()[:32]}.json"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
