"""Attacks that come out of a file: for which leaks they were trained, and from which pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import printable
from ..pictures import file_sha256, recalled, remembered
from ..types import LeakHeader, SeepageError
from .networks import SavedAttackError, read

_KEY = "origin"


class OriginError(SeepageError):
    """A trained attack is asked about a leak of another victim or layer than it was trained on."""


@dataclass(frozen=True)
class Origin:
    """The victim and layer that an attack was trained on; `seen` are the beginnings of its pictures' SHA-256."""

    victim: str
    weights_sha256: str
    layer: str
    seen: tuple[str, ...]

    @staticmethod
    def of(leak: LeakHeader, hashes: Iterable[str]) -> Origin:
        """Remember the pictures by their hashes."""
        return Origin(leak.victim, leak.weights_sha256, leak.layer, tuple(sorted(remembered(hashes))))

    def require(self, leak: LeakHeader) -> None:
        """Refuse a leak of anything else.

        Raises:
            OriginError: it is of another victim, of other weights or another layer.
        """
        if (leak.victim, leak.weights_sha256, leak.layer) != (self.victim, self.weights_sha256, self.layer):
            raise OriginError(
                f"the attack was trained on {self.victim} at {self.layer} (weights {self.weights_sha256[:12]}), the "
                f"leak is of {leak.victim} at {leak.layer} (weights {leak.weights_sha256[:12]})"
            )


def said_of(origin: Origin | None) -> dict[str, Any]:
    """Return what a file says of an origin."""
    return {} if origin is None else {_KEY: asdict(origin)}


def origin_of(said: Mapping[str, Any]) -> Origin | None:
    """Return the origin that a file tells of, None where it tells of none.

    Raises:
        TypeError: it tells of something else.
    """
    found = said.get(_KEY)
    return None if found is None else Origin(**{**found, "seen": tuple(found["seen"])})


class FromFile:
    """What an attack answers of the file that its `adapter` names, if it names one."""

    adapter: Path | None

    def equipment_sha256(self) -> str | None:
        """Return the hash of the file.

        Raises:
            SavedAttackError: there is none.
        """
        if self.adapter is None:
            return None
        if not self.adapter.is_file():
            raise SavedAttackError(f"no file {printable(self.adapter)}; seepage train makes one")
        return file_sha256(self.adapter)

    def learned_from(self, hashes: Sequence[str]) -> tuple[str, ...]:
        """Return those SHA-256 of picture files that it was trained or selected on.

        Raises:
            SavedAttackError: the file cannot be read.
        """
        origin = self._origin()
        return recalled(hashes, frozenset(() if origin is None else origin.seen))

    def places(self) -> tuple[str, ...] | None:
        """Return the layer that it was trained at, None where that is not known.

        Raises:
            SavedAttackError: the file cannot be read.
        """
        origin = self._origin()
        return None if origin is None else (origin.layer,)

    def _origin(self) -> Origin | None:
        if self.adapter is None:
            return None
        try:
            return origin_of(read(self.adapter)[1])
        except (KeyError, TypeError) as error:
            raise SavedAttackError(f"{printable(self.adapter)} does not say what it was trained on: {error}") from error
