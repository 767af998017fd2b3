"""Attacks that bring weights from elsewhere: what these are is part of what determines a result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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


@runtime_checkable
class Learned(Protocol):
    """An attack that may bring what it learned from pictures of its own."""

    def learned_from(self, hashes: Sequence[str]) -> tuple[str, ...]:
        """Return those SHA-256 of picture files that it was trained or selected on.

        Raises:
            SeepageError: what it brings cannot be read.
        """
        ...


@runtime_checkable
class Placed(Protocol):
    """An attack that may bring what works at some cuts alone."""

    def places(self) -> tuple[str, ...] | None:
        """Return the layers that it was made for, None where any will do.

        Raises:
            SeepageError: what it brings cannot be read.
        """
        ...


@runtime_checkable
class Spoken(Protocol):
    """An attack whose captions a language model writes."""

    def writer(self) -> Path | None:
        """Return the folder that holds that model as transformers saves one, None where nobody else could read it.

        Raises:
            SeepageError: it cannot be had.
        """
        ...


@runtime_checkable
class Supplied(Protocol):
    """An attack that uses files which are fetched once."""

    def assets(self) -> tuple[str, ...]:
        """Return their names."""
        ...
