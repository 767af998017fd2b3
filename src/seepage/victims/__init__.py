"""Victims by name: `load("SOURCE/NAME[@WEIGHTS]")`."""

from __future__ import annotations

from .load import known, load
from .victim import UnknownVictimError, Victim, WeightsError

__all__ = ["UnknownVictimError", "Victim", "WeightsError", "known", "load"]
