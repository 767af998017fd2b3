"""NAME:key=value,... : settings of an architecture, read as JSON where they are JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..registry import suggest
from .victim import UnknownVictimError

# A comma inside brackets belongs to the value: hidden_sizes=[64,128].
_COMMA = re.compile(r",(?![^\[]*\])")


def split_settings(text: str) -> tuple[str, dict[str, Any]]:
    """Split `name:key=value,...` into the name and its settings.

    Raises:
        UnknownVictimError: a part is no `key=value`.
    """
    name, _, tail = text.partition(":")
    settings: dict[str, Any] = {}
    for part in filter(None, (item.strip() for item in _COMMA.split(tail))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UnknownVictimError(f"settings are NAME:key=value,...; got {part!r} in {text!r}")
        try:
            settings[key.strip()] = json.loads(value)
        except ValueError:
            settings[key.strip()] = value.strip()
    return name, settings


def check_settings(where: str, settings: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse a setting that the architecture does not have.

    Raises:
        UnknownVictimError: there is one; the message names the nearest.
    """
    names = set(known)
    for key in settings:
        if key not in names:
            raise UnknownVictimError(f"{where} has no setting {key!r}{suggest(key, names)}")


def join_settings(name: str, settings: Mapping[str, Any]) -> str:
    """Return the text that `split_settings` reads back."""
    pairs = [
        f"{key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"
        for key, value in settings.items()
    ]
    return f"{name}:{','.join(pairs)}" if pairs else name
