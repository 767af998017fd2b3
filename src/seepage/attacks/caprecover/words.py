"""From what a caption says to a class: names found in it, word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+")


def synonyms(name: str) -> tuple[str, ...]:
    """Return the names that a class goes by: `tench, Tinca tinca` are two."""
    return tuple(part.strip() for part in name.split(",") if part.strip()) or (name,)


def prompt(name: str) -> str:
    """Return a sentence that names a class, by its first name."""
    return f"a photo of {' '.join(_WORD.findall(synonyms(name)[0])) or name}"


def matches(caption: str, classes: Sequence[str]) -> list[int]:
    """Return how many letters of each class's longest name the caption says, in whole words; 0 for none.

    Case, punctuation and underscores are no matter; a name within a longer one that is said too counts for itself.
    """
    said = _spaced(caption)
    return [max((len(name) - 2 for name in map(_spaced, synonyms(own)) if name in said), default=0) for own in classes]


def _spaced(text: str) -> str:
    """Words with one space before, between and after; no words, a text that is found nowhere."""
    found = _WORD.findall(text.casefold())
    return f" {' '.join(found)} " if found else "\0"
