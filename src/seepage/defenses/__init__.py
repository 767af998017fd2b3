"""Defenses: what is done to a leak before it is sent, undone by whoever holds its secret, and known by its law."""

from .base import DefenseError, Payload, SecretError
from .keeping import digests, read_secret, spend_secret, write_secret
from .pipeline import Pipeline, pipeline

__all__ = [
    "DefenseError",
    "Payload",
    "Pipeline",
    "SecretError",
    "digests",
    "pipeline",
    "read_secret",
    "spend_secret",
    "write_secret",
]
