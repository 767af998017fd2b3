"""Where an audit's results live: content-addressed cells, appended durably, resumable after any kill."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import Field

from . import __version__
from .schema import SCHEMA_VERSION, Cell, Record, Sample, Spec
from .types import SeepageError

RESULTS = "results.jsonl"
IMAGES = "images"
_PARTIAL = "partial"
_LOCK = ".lock"


class StoreError(SeepageError):
    """The output folder cannot be read or written; the message says where and why."""


class SampleLine(Record):
    """A finished sample of an unfinished cell: the sample and what the null controls scored on its picture."""

    index: int
    sample: Sample
    controls: dict[str, dict[str, float]] = Field(default_factory=dict)
    passes: int = 0


def cell_key(spec: Spec) -> str:
    """Return the hash of what determines a cell's result: its spec, the schema and the package version."""
    return _key(spec.model_dump(mode="json"), SCHEMA_VERSION)


def _key(spec: object, schema: int) -> str:
    content = {"spec": spec, "schema": schema, "version": __version__}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _changed(cell: Cell) -> bool:
    """Return whether a record's spec is not the one its key was made of; what another version keyed is not known.

    Only fields that the line holds count: a record written before a spec had a field more keeps its key.
    """
    if cell.environment is None or cell.environment.version != __version__:
        return False
    return cell.key != _key(cell.spec.model_dump(mode="json", exclude_unset=True), cell.schema_version)


class Store:
    """The results of one output folder. One process at a time may write to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / RESULTS

    @contextmanager
    def opened(self) -> Iterator[Store]:
        """Create the folder, take its lock and repair a torn last line.

        Raises:
            StoreError: the folder cannot be written, or another audit is writing to it.
        """
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle, self.folder)
            with _explained(self.folder):
                _repair(self.results)
            yield self
        finally:
            os.close(handle)

    def cells(self) -> dict[str, Cell]:
        """Return the recorded cells by key, in the order they were written; a later line replaces an earlier one.

        Raises:
            StoreError: a line that is not the last cannot be read, or its spec was changed after it was written.
        """
        if not self.results.exists():
            return {}
        found: dict[str, Cell] = {}
        with _explained(self.folder), self.results.open(encoding="utf-8", errors="backslashreplace") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith("\n"):
                    continue
                try:
                    cell = Cell.parse(line)
                except (ValueError, RecursionError) as error:
                    reason = str(error).splitlines()[0]
                    raise StoreError(
                        f"{self.results}, line {number}: {reason}; without that line its cell is computed anew"
                    ) from error
                if _changed(cell):
                    raise StoreError(
                        f"{self.results}, line {number}: its spec is not the one that its key stands for, so it was "
                        "changed by hand; without that line its cell is computed anew"
                    )
                found.pop(cell.key, None)
                found[cell.key] = cell
        return found

    def append(self, cell: Cell) -> None:
        """Write one finished cell durably, then drop its samples' journal and its attack's unfinished work."""
        with _explained(self.folder):
            _append(self.results, cell.line())
            self._journal(cell.key).unlink(missing_ok=True)
            shutil.rmtree(self.workdir(cell.key), ignore_errors=True)

    def finished(self, key: str) -> dict[int, SampleLine]:
        """Return the finished samples of an unfinished cell, by their index in the data; a damaged line is none."""
        journal = self._journal(key)
        if not journal.exists():
            return {}
        with _explained(self.folder):
            _repair(journal)
            text = journal.read_text(encoding="utf-8", errors="backslashreplace")
        found: dict[int, SampleLine] = {}
        for text_line in text.split("\n"):
            with suppress(ValueError):  # what cannot be read is computed anew
                line = SampleLine.model_validate_json(text_line)
                found[line.index] = line
        return found

    def finish(self, key: str, line: SampleLine) -> None:
        """Write one finished sample durably: it survives a kill of the cell it belongs to."""
        with _explained(self.folder):
            journal = self._journal(key)
            journal.parent.mkdir(parents=True, exist_ok=True)
            _append(journal, line.model_dump_json())

    def workdir(self, key: str) -> Path:
        """Return where a cell's attack may keep what it needs to go on; it need not be there."""
        return self.folder / _PARTIAL / key

    def close_journals(self, known: Iterable[str] = ()) -> None:
        """Remove what a kill left of cells on record, and the journals' folder where nothing else is in it."""
        folder = self.folder / _PARTIAL
        for key in known:
            shutil.rmtree(self.workdir(key), ignore_errors=True)
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()

    def _journal(self, key: str) -> Path:
        return self.folder / _PARTIAL / f"{key}.jsonl"


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"cannot write to {folder}: {reason}; choose another folder with -o") from error


def _lock(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such locks on this system; two audits in one folder are then the user's to avoid
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StoreError(f"another audit is writing to {folder}; wait for it, or choose another with -o") from error


def _append(path: Path, line: str) -> None:
    """Append a line by one write and flush it to the disk; a write cut short by a full disk is taken back."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        data = (line + "\n").encode()
        try:
            if os.write(handle, data) != len(data):
                raise OSError("no space left: the line was not written")
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def _repair(path: Path) -> None:
    """Cut off a last line that a kill left without its end."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            start = max(0, position - 65536)
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            position = start
        file.truncate(0)
