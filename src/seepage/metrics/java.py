"""METEOR and SPICE: programs in Java that the package pycocoevalcap brings, where Java is on the machine."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..registry import register
from ..types import NotRunError, Shape
from .encoder import EXTRA
from .sentences import CaptionMetric, Documents, Pair

_PATIENCE = 600.0
"""Seconds without an answer after which a program is ended; it starts in about ten on one busy core."""


@register("metric", "meteor")
@dataclass(frozen=True)
class Meteor(CaptionMetric):
    """METEOR 1.5 for English: words aligned by form, stem, synonym and paraphrase, F-mean less a penalty for order.

    The corpus value pools the alignments' counts and is no mean. Needs Java and the extra `caption`, whose program and
    paraphrase table run in a process of their own until this one ends.

    Source: Denkowski & Lavie 2014.
    """

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return why not: no Java, no program, or one that does not start."""
        reason = _absent("METEOR", "meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz")
        if reason is None:
            try:
                _meteor()
            except NotRunError as error:
                return str(error)
        return reason

    def scores(self, pairs: Sequence[Pair], documents: Documents) -> list[float]:
        """Score each pair.

        Raises:
            NotRunError: the program ends or does not answer.
        """
        return _meteor().evaluate(pairs)[:-1]

    def pooled(self, pairs: Sequence[Pair]) -> float:
        """Return METEOR over the corpus.

        Raises:
            NotRunError: as `scores` does.
        """
        return _meteor().evaluate(pairs)[-1]


@register("metric", "spice")
@dataclass(frozen=True)
class Spice(CaptionMetric):
    """SPICE: F-measure of the objects, attributes and relations that a parser reads from caption and references.

    Needs Java, the extra `caption`, and Stanford CoreNLP 3.6.0 with its models, which nothing here brings or downloads:
    both jars belong into pycocoevalcap's folder spice/lib. The program is started anew at each call.

    Source: Anderson, Fernando, Johnson & Gould 2016.
    """

    corenlp: ClassVar[str] = "stanford-corenlp-3.6.0"

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return why not: no Java, no program, or no models."""
        jars = (f"spice/lib/{self.corenlp}.jar", f"spice/lib/{self.corenlp}-models.jar")
        return _absent("SPICE", "spice/spice-1.0.jar", *jars)

    def scores(self, pairs: Sequence[Pair], documents: Documents) -> list[float]:
        """Score each pair.

        Raises:
            NotRunError: the program fails or does not end.
        """
        rows = [
            {"image_id": row, "test": " ".join(pair.candidate), "refs": [" ".join(truth) for truth in pair.truths]}
            for row, pair in enumerate(pairs)
        ]
        with tempfile.TemporaryDirectory(prefix="seepage-") as folder:
            asked, answered = Path(folder, "asked.json"), Path(folder, "answered.json")
            asked.write_text(json.dumps(rows), encoding="utf-8")
            command = [
                "java",
                "-Xmx8G",
                "-jar",
                "spice-1.0.jar",
                str(asked),
                "-out",
                str(answered),
                "-subset",
                "-silent",
            ]
            try:
                done = subprocess.run(
                    command, cwd=_folder() / "spice", capture_output=True, text=True, timeout=_PATIENCE + len(pairs)
                )
            except subprocess.TimeoutExpired as error:
                raise NotRunError(f"SPICE did not end within {error.timeout:g} s") from error
            if done.returncode != 0 or not answered.exists():
                raise NotRunError(f"SPICE failed: {_last_line(done.stderr)}")
            found = {row["image_id"]: row["scores"]["All"]["f"] for row in json.loads(answered.read_text("utf-8"))}
        return [float(found[row]) for row in range(len(pairs))]


class _Meteor:
    """The METEOR program, asked line by line."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (as long as it)
        # UTF-8 by its own option: the program reads and writes in the locale's encoding.
        command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-jar", "meteor-1.5.jar"]
        self._process = subprocess.Popen(
            [*command, "-", "-", "-stdio", "-l", "en", "-norm"],
            cwd=_folder() / "meteor",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
        )
        self._lock = threading.Lock()
        atexit.register(self.close)
        self._ask("SCORE ||| a dog ||| a dog")

    def evaluate(self, pairs: Sequence[Pair]) -> list[float]:
        """Return the score of each pair, and that of all of them.

        Raises:
            NotRunError: the program ends or does not answer.
        """
        with self._lock:
            counts = []
            for pair in pairs:
                sentences = (*map(" ".join, pair.truths), " ".join(pair.candidate))
                counts.append(self._ask(" ||| ".join(("SCORE", *sentences))))
            first = self._ask(" ||| ".join(("EVAL", *counts)))
            return [float(first), *(float(self._answer()) for _ in pairs)]

    @property
    def runs(self) -> bool:
        """Whether the program still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _ask(self, line: str) -> str:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(line + "\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise NotRunError(f"METEOR ended: {self._reason()}") from error
        return self._answer()

    def _answer(self) -> str:
        stdout = self._process.stdout
        assert stdout is not None
        watch = threading.Timer(_PATIENCE, self._process.kill)
        watch.start()
        try:
            answer = stdout.readline().strip()
        finally:
            watch.cancel()
        if not answer:
            raise NotRunError(f"METEOR ended or gave no answer: {self._reason()}")
        return answer

    def _reason(self) -> str:
        self._errors.seek(0)
        return _last_line(self._errors.read())


def _meteor() -> _Meteor:
    if not started().runs:
        started.cache_clear()
    return started()


@functools.lru_cache(maxsize=1)
def started() -> _Meteor:
    """Return the running program.

    Raises:
        NotRunError: it does not start.
    """
    return _Meteor()


def _absent(name: str, *files: str) -> str | None:
    """Return what of a program is not on this machine."""
    if shutil.which("java") is None:
        return f"{name} is a program in Java, and there is no java on the PATH"
    if importlib.util.find_spec("pycocoevalcap") is None:
        return f"{name} needs {EXTRA}"
    missing = next((file for file in files if not (_folder() / file).is_file()), None)
    return None if missing is None else f"{name} needs {Path(missing).name} in {(_folder() / missing).parent}"


def _folder() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "it does not say why")
