"""Versioned result records: one JSON line a cell. No torch in here, so that a report can be made anywhere."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

CellStatus = Literal["done", "failed", "not_run"]
SampleStatus = Literal["converged", "stopped", "failed"]


class Record(BaseModel):
    """Base of all records: immutable, unknown keys refused, non-finite floats written as strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Judge(Record):
    """A model that judges recoveries: its victim name and the SHA-256 of its weights."""

    name: str
    sha256: str


class Spec(Record):
    """What determines a cell's result. Its hash, with assets and versions, is the cell's key."""

    victim: str
    weights_sha256: str
    layer: str
    size: int | None = None
    defenses: tuple[str, ...] = ()
    wire: str = "fp32"
    attack: str
    adapter_sha256: str | None = None
    attacker: str = "none"
    effort: str = "standard"
    sends: int = 1
    access: str = "white-box"
    auxiliary: str = "none"
    data: str
    manifest_sha256: str
    public: str | None = None
    public_sha256: str | None = None
    gallery: str | None = None
    gallery_sha256: str | None = None
    metrics: tuple[str, ...] = ()
    judges: dict[str, Judge] = Field(default_factory=dict)
    seed: int = 0

    @property
    def learned_undefended(self) -> bool:
        """Whether an attack on a defended leak came trained on leaks without the defense.

        What it gets is a lower bound on what one that learns on defended leaks would.
        """
        # Only an adapter learned on leaks: the generator of gan, whose hash a record holds as well, did not.
        return bool(self.defenses) and self.adapter_sha256 is not None and "adapter=" in self.attack


class Cut(Record):
    """Where the model was cut: position among the cuts, shape of one leak, multiply-adds before and after."""

    index: int
    shape: tuple[int, ...]
    macs_before: int
    macs_after: int


LARGEST_EPSILON = 500.0
"""Beyond it no epsilon is computed, and an infinite one stands: it would promise nothing."""


class Protection(Record):
    """What one defense of the pipeline claims: who holds its secret, whom it helps against, its (epsilon, delta)."""

    name: str
    holder: str
    protects_from: tuple[str, ...]
    epsilon: float | None = None
    delta: float | None = None


class Environment(Record):
    """Where a cell ran."""

    version: str
    git: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    device: str


class Shown(Record):
    """What there is to show of a recovery or of the truth. `image` is a path relative to the output folder.

    A label that was read from words has them as its `caption`.
    """

    image: str | None = None
    caption: str | None = None
    label: str | None = None


class Sample(Record):
    """One picture of a cell: what came back and how well. A failed sample keeps its line and its message."""

    id: str
    image_sha256: str
    status: SampleStatus
    message: str = ""
    residual: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    recovered: Shown | None = None
    truth: Shown | None = None
    seconds: float = 0.0


class Stats(Record):
    """Statistics of one metric over samples.

    `worst` is the mean of the most-leaking decile (at least one sample), `ci_low, ci_high` the 95 % bootstrap interval
    of the mean, `recovery` 0 at the strongest null control and 1 at the truth, or at the ceiling where no value is
    perfect, with its own interval, `corpus` the value where it is not the mean, with its own where it comes from sums.
    `n` counts the samples that have a value, `n_failed` those that failed.
    """

    mean: float
    median: float
    min: float
    max: float
    worst: float
    ci_low: float
    ci_high: float
    n: int
    n_failed: int = 0
    recovery: float | None = None
    recovery_low: float | None = None
    recovery_high: float | None = None
    corpus: float | None = None
    corpus_low: float | None = None
    corpus_high: float | None = None


class Scale(Record):
    """How a metric is read: its unit, and which way more leakage lies."""

    unit: str = ""
    higher_means_more_leakage: bool = True


class Interval(Record):
    """A number with its 95 % interval; of width 0 where it is exact."""

    value: float
    low: float
    high: float


class Bound(Record):
    """A lower bound on any attacker's mean squared error, or the reason there is none; and what it rests on.

    `mse` is the lower end of `estimate`, van Trees' bound: the mean over pictures of `prior`. `at_pictures` is the same
    formula at the pictures under audit, and `dfil` what is known there of a pixel; it, `rank`, `energy`, `condition`
    and `spectrum`, the Jacobian's singular values at the shares `levels` of its directions, are means over
    `pictures` of them, `spectrum_low` and `spectrum_high` the ends of its intervals. `exact` says that these are no
    Lanczos estimates; the condition then is the largest singular value over the smallest, else a lower bound on it.
    """

    mse: float | None = None
    reason: str = ""
    noise: str = ""
    prior: str = ""
    estimate: Interval | None = None
    at_pictures: Interval | None = None
    dfil: Interval | None = None
    pictures: int = 0
    inputs: int | None = None
    outputs: int | None = None
    exact: bool | None = None
    levels: tuple[float, ...] = ()
    spectrum: tuple[float, ...] = ()
    spectrum_low: tuple[float, ...] = ()
    spectrum_high: tuple[float, ...] = ()
    rank: Interval | None = None
    energy: Interval | None = None
    condition: float | None = None


class Check(Record):
    """A warning that a result is not to be trusted, or a note on how to read it."""

    name: str
    level: Literal["info", "warning", "error"]
    message: str


class Cost(Record):
    """What a cell cost: seconds (fitting apart), passes through the prefix, peak bytes.

    A fit that several cells share is the first one's, and features of the attacker's own pictures that an earlier audit
    kept cost nothing more. `defense_seconds` is no attack's: what protecting one picture and
    undoing it for the next stage takes, the median over the pictures; 0 where there is no defense.
    """

    fit_seconds: float = 0.0
    seconds: float = 0.0
    passes: int = 0
    peak_bytes: int = 0
    defense_seconds: float = 0.0


class Cell(Record):
    """One line of `results.jsonl`. A `not_run` line holds spec, status and message alone."""

    schema_version: int = SCHEMA_VERSION
    key: str
    status: CellStatus
    message: str = ""
    unavailable: dict[str, str] = Field(default_factory=dict)
    spec: Spec
    cut: Cut | None = None
    protection: tuple[Protection, ...] = ()
    environment: Environment | None = None
    samples: tuple[Sample, ...] = ()
    summary: dict[str, Stats] = Field(default_factory=dict)
    scales: dict[str, Scale] = Field(default_factory=dict)
    controls: dict[str, dict[str, Stats]] = Field(default_factory=dict)
    ceilings: dict[str, dict[str, Stats]] = Field(default_factory=dict)
    utility: dict[str, float] = Field(default_factory=dict)
    bytes_per_image: int | None = None
    bound: Bound | None = None
    checks: tuple[Check, ...] = ()
    cost: Cost | None = None

    def line(self) -> str:
        """Return the record as one JSON line, without the newline."""
        return self.model_dump_json()

    @classmethod
    def parse(cls, line: str) -> Cell:
        """Read one line.

        Raises:
            ValueError: it is no record, or of a newer schema than this version reads.
        """
        raw = json.loads(line)
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if not isinstance(version, int):
            raise ValueError("not a seepage record: it has no schema_version")
        if version > SCHEMA_VERSION:
            raise ValueError(f"record of schema {version}; this version reads up to {SCHEMA_VERSION}: upgrade seepage")
        return cls.model_validate(raw)


class RecoveredRow(Record):
    """One row of a leak as an attacker without the truth has it: how the recovery ended and where it lies."""

    name: str
    status: SampleStatus
    message: str = ""
    residual: float | None = None
    passes: int = 0
    image: str | None = None
    caption: str | None = None
    label: str | None = None


class RecoveryRecord(Record):
    """What `seepage recover` writes: the leak it read, the attack it ran, one row a row of the leak.

    `defenses` are those that the leak carries and `attacker` what was made of them, `none` where there are none.
    """

    schema_version: int = SCHEMA_VERSION
    leak_sha256: str
    victim: str
    weights_sha256: str
    layer: str
    wire: str
    defenses: tuple[str, ...] = ()
    attacker: str = "none"
    attack: str
    effort: str
    access: str
    auxiliary: str
    seed: int
    environment: Environment
    rows: tuple[RecoveredRow, ...]
    cost: Cost
