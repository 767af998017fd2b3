"""Attacks that bring weights from elsewhere: what these are is part of what determines a result."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Equipped(Protocol):
    """An attack whose configuration names weights that lie outside the package."""

    def equipment_sha256(self) -> str | None:
        """Return the SHA-256 of weights and code that are loaded, None where nothing is named.

        Raises:
            SeepageError: what is named cannot be loaded.
        """
        ...
