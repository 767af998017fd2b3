"""Checkpoints of a training run: the last two, each whole or absent, and only ever another step of the same run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import OutputError, printable, replacing, require_writable, write_tensors
from ..types import SeepageError

VERSION = 1
_KEPT = 2
_LOCK = ".lock"


class CheckpointError(SeepageError):
    """A checkpoint of another configuration, or a folder in which another run is at work."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after `step` steps: its tensors by name, and its state as JSON has it."""

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Shelf:
    """The checkpoints of one run in one folder; `header` is what makes it this run and no other.

    A checkpoint is `step-N.safetensors` and `step-N.json`. The JSON is written last and holds the hash of the other, so
    that a checkpoint without it, or with another hash, is none.
    """

    folder: Path
    header: Mapping[str, Any]

    @contextmanager
    def opened(self) -> Iterator[Shelf]:
        """Make the folder, keep other runs out of it and sweep up what a killed run left half-written.

        Raises:
            CheckpointError: another run is at work here.
            OutputError: the folder cannot be written.
        """
        require_writable(self.folder)
        try:
            handle = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputError(f"cannot write to {printable(self.folder)}: {error.strerror or error}") from error
        try:
            _lock(handle, self.folder)
            for part in self.folder.glob(".*.part"):
                part.unlink(missing_ok=True)
            yield self
        finally:
            os.close(handle)

    def write(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove all but the last two.

        Raises:
            OutputError: the folder cannot be written.
        """
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        weights, words = self._paths(step)
        write_tensors(weights, plain)
        said = {"version": VERSION, "step": step, "sha256": _sha256(weights), "header": self.header, "state": state}
        with replacing(words) as part:
            part.write_text(json.dumps(said), encoding="utf-8")
        kept = self._steps()[:_KEPT]
        for path in self.folder.glob("step-*.*"):
            if path.suffix in (".json", ".safetensors") and _step(path) not in kept:
                path.unlink(missing_ok=True)

    def latest(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """Return the newest checkpoint that is whole, and a line on each newer one that is damaged.

        Raises:
            CheckpointError: it is of another configuration; the message names the difference.
        """
        notes: list[str] = []
        for step in self._steps():
            weights, words = self._paths(step)
            try:
                said = json.loads(words.read_text(encoding="utf-8"))
                if said["version"] > VERSION:
                    raise CheckpointError(f"{printable(words)} was written by a newer seepage: upgrade this one")
                header, state, digest = said["header"], said["state"], said["sha256"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                notes.append(
                    f"{printable(words)} is damaged ({type(error).__name__}); the checkpoint before it is used"
                )
                continue
            self._require_same(words, header)
            try:
                if _sha256(weights) != digest:
                    raise ValueError("other bytes than were written")
                with safe_open(weights, framework="pt") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            except (OSError, ValueError, SafetensorError) as error:
                reason = getattr(error, "strerror", None) or error
                notes.append(f"{printable(weights)} is damaged ({reason}); the checkpoint before it is used")
                continue
            return Checkpoint(step, tensors, state), tuple(notes)
        if notes:
            notes.append(f"no checkpoint in {printable(self.folder)} is whole: beginning anew")
        return None, tuple(notes)

    def _require_same(self, path: Path, header: Mapping[str, Any]) -> None:
        found, wanted = _flat(header), _flat(json.loads(json.dumps(self.header)))
        different = [key for key in (*wanted, *found) if found.get(key, _ABSENT) != wanted.get(key, _ABSENT)]
        if different:
            key, others = different[0], len(set(different)) - 1
            raise CheckpointError(
                f"{printable(path)} is of another configuration: {key} is {_short(found.get(key, _ABSENT))} there and "
                f"{_short(wanted.get(key, _ABSENT))} here{f', and {others} more differ' if others else ''}; "
                "go on with that one, or remove the folder to begin anew"
            )

    def _steps(self) -> list[int]:
        """Return the steps that have a finished checkpoint, the newest first."""
        steps = (_step(path) for path in self.folder.glob("step-*.json"))
        return sorted((step for step in steps if step is not None), reverse=True)

    def _paths(self, step: int) -> tuple[Path, Path]:
        name = f"step-{step:09d}"
        return self.folder / f"{name}.safetensors", self.folder / f"{name}.json"


def seconds_spent(folder: Path) -> float:
    """Return the seconds that runs below a folder took up to their newest checkpoints; 0 where there is none."""
    newest: dict[Path, Path] = {}
    for path in sorted(folder.rglob("step-*.json")):
        newest[path.parent] = path
    return sum(map(_seconds, newest.values()))


def _seconds(path: Path) -> float:
    try:
        seconds = json.loads(path.read_text(encoding="utf-8"))["state"]["curve"]["seconds"]
        return float(seconds[-1]) if seconds else 0.0
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0.0


class _Absent:
    def __repr__(self) -> str:
        return "not set"


_ABSENT = _Absent()


def _step(path: Path) -> int | None:
    number = path.stem.removeprefix("step-")
    return int(number) if number.isdecimal() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested JSON by their dotted names."""
    if isinstance(value, Mapping):
        leaves: dict[str, Any] = {}
        for key, item in value.items():
            leaves |= _flat(item, f"{name}.{key}" if name else str(key))
        return leaves
    return {name or "it": value}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _lock(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such locks on this system; two runs in one folder are then the user's to avoid
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise CheckpointError(f"another run is at work in {printable(folder)}: wait for it, or stop it") from error
