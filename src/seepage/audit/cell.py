"""One cell: every picture through prefix, wire, attack and metrics, with its null controls beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import data, pictures, seeding
from ..metrics.tokens import MOST_CHARACTERS
from ..schema import Sample, Shown
from ..store import IMAGES, SampleLine
from ..types import (
    Captions,
    Images,
    Labels,
    Leak,
    Pictures,
    Prefix,
    Progress,
    Recoverer,
    Recovery,
    Shape,
    SplitModel,
    Status,
)
from .exposure import Exposure
from .fits import fit
from .rows import take, take_recovery
from .scoring import Scorer
from .workbench import Workbench

Advance = Callable[[float], None]
Finish = Callable[[SampleLine], None]
_PIXELS_A_BATCH = 4 * 224 * 224
_NO_PASS_FACTOR = 4
_GPU_FACTOR = 8


@dataclass(frozen=True)
class CellRun:
    """How one cell is run: its parts, where pictures and unfinished work go, and whom to tell."""

    bench: Workbench
    key: str
    exposure: Exposure
    attack: str
    folder: Path
    workdir: Path
    finish: Finish
    advance: Advance
    learn: Progress

    @property
    def split(self) -> SplitModel:
        """The victim, cut."""
        return self.exposure.split

    def run(self, pending: Sequence[int]) -> float:
        """Recover the pending pictures, telling `finish` of each; return the seconds that fitting took.

        Raises:
            NotRunError: the attack lacks something that it needs.
            SeepageError: the attack refuses this leak.
        """
        attack = self.bench.attack(self.attack)
        self.exposure.require(attack, self.attack.partition(":")[0])
        recoverer, fit_seconds = fit(self.exposure, attack, self.attack, self.workdir, self.learn)
        scorer = Scorer(self.bench, self.exposure, recoverer, attack)
        size = batch_size(self.split.image_shape, self.bench.device, attack.budget)
        for start in range(0, len(pending), size):
            group = pending[start : start + size]
            self._group(group, recoverer, scorer, start / len(pending), len(group) / len(pending), attack.budget)
        return fit_seconds

    def _group(
        self,
        group: Sequence[int],
        recoverer: Recoverer,
        scorer: Scorer,
        done: float,
        share: float,
        budget: int,
    ) -> None:
        total = max(1, budget) * len(group)
        try:
            with counted(self.split.prefix, lambda passes: self.advance(done + share * min(passes / total, 1.0))):
                lines = self._recover(group, recoverer, scorer)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if self.bench.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(group) == 1:
                lines = [self._failed(group[0], f"out of memory on {self.bench.device}, for this one picture alone")]
            else:
                half = len(group) // 2
                self._group(group[:half], recoverer, scorer, done, share / 2, budget)
                self._group(group[half:], recoverer, scorer, done + share / 2, share / 2, budget)
                return
        for line in lines:
            self.finish(line)
        self.advance(done + share)

    def _recover(self, group: Sequence[int], recoverer: Recoverer, scorer: Scorer) -> list[SampleLine]:
        batch = data.load_batch(self.bench.source, group, self.split.load)
        lines = [self._failed(index, message) for index, message in batch.failed.items()]
        absent = [index for index in batch.indices if not self.bench.at_hand(index)]
        lines += [self._failed(index, "the stored dump has no row for it") for index in absent]
        here = [row for row, index in enumerate(batch.indices) if index not in absent]
        if batch.pictures is None or not here:
            return lines
        truth, indices = take(batch.pictures, here), [batch.indices[row] for row in here]
        leak, finite = self.exposure.received(indices, truth.images)
        bad = [row for row, fine in enumerate(finite) if not fine]
        message = f"NaN or infinity in the features at {self.split.layer}"
        lines += [self._failed(indices[row], message) for row in bad]
        rows = [row for row, fine in enumerate(finite) if fine]
        if not rows:
            return lines
        truth, leak = take(truth, rows), leak.with_features(leak.features[rows])
        indices = [indices[row] for row in rows]
        began = time.perf_counter()
        generators = seeding.generators(self.bench.request.seed, "attack", seeding.row_hashes(leak.features))
        recovery = recoverer.recover(leak, generators)
        seconds = (time.perf_counter() - began) / len(rows)
        return lines + self._lines(indices, truth, leak, recovery, scorer, seconds)

    def _lines(
        self,
        indices: Sequence[int],
        truth: Pictures,
        leak: Leak,
        recovery: Recovery,
        scorer: Scorer,
        seconds: float,
    ) -> list[SampleLine]:
        status = [_checked(item, recovery, row) for row, item in enumerate(recovery.status)]
        good = [row for row, item in enumerate(status) if item.kind != "failed"]
        lines = [
            self._failed(indices[row], status[row].message, seconds) for row in range(len(status)) if row not in good
        ]
        if not good:
            return lines
        kept = take_recovery(recovery, good)
        scored = scorer.score(
            [indices[row] for row in good], take(truth, good), leak.with_features(leak.features[good]), kept
        )
        for place, row in enumerate(good):
            index = indices[row]
            shown, original = self._show(index, truth.images[row], kept, place, scored.labels)
            sample = Sample(
                id=self.bench.source.entries[index].id,
                image_sha256=self.bench.hashes[index],
                status=status[row].kind,
                message=status[row].message,
                residual=scored.residual[place],
                metrics=scored.metrics[place],
                recovered=shown,
                truth=original,
                seconds=seconds,
            )
            passes = int(recovery.passes[row])
            lines.append(self._line(index, sample, scored.controls[place], passes))
        return lines

    def _show(
        self, index: int, truth: Tensor, recovery: Recovery, place: int, labels: tuple[list[str], list[str]] | None
    ) -> tuple[Shown | None, Shown | None]:
        value = recovery.value
        if self.bench.request.redact or not isinstance(value, Images | Captions | Labels):
            return None, None
        height, width = truth.shape[1:]
        original = f"{IMAGES}/truth/{self.bench.hashes[index][:16]}-{height}x{width}.png"
        if not (self.folder / original).exists():
            pictures.write_png(truth, self.folder / original)
        entry = self.bench.source.entries[index]
        if isinstance(value, Captions):
            first = writable(entry.captions[0]) if entry.captions else None
            return Shown(caption=writable(value.texts[place])), Shown(image=original, caption=first)
        if isinstance(value, Labels):
            best = class_name(int(value.scores[place].argmax()), value.classes or self.bench.source.classes)
            true = None if entry.label is None else class_name(entry.label, self.bench.source.classes)
            words = None if value.texts is None else writable(value.texts[place])
            return Shown(caption=words, label=best), Shown(image=original, label=true)
        recovered = f"{IMAGES}/{self.key[:16]}/{index}.png"
        pictures.write_png(value.images[place].clamp(0, 1), self.folder / recovered)
        said = (None, None) if labels is None else (labels[0][place], labels[1][place])
        return Shown(image=recovered, label=said[0]), Shown(image=original, label=said[1])

    def _failed(self, index: int, message: str, seconds: float = 0.0) -> SampleLine:
        entry = self.bench.source.entries[index]
        message = message.replace(entry.id, str(index + 1)) if self.bench.request.redact else message
        sample = Sample(
            id=entry.id, image_sha256=self.bench.hashes[index], status="failed", message=message, seconds=seconds
        )
        return self._line(index, sample, {}, 0)

    def _line(self, index: int, sample: Sample, controls: dict[str, dict[str, float]], passes: int) -> SampleLine:
        if self.bench.request.redact:
            sample = sample.model_copy(update={"id": str(index + 1), "recovered": None, "truth": None})
        return SampleLine(index=index, sample=sample, controls=controls, passes=passes)


def batch_size(image_shape: Shape, device: torch.device, budget: int) -> int:
    """Return how many pictures are recovered together; more where recovering asks for no pass through the prefix."""
    size = _PIXELS_A_BATCH // (image_shape[1] * image_shape[2]) * (1 if budget else _NO_PASS_FACTOR)
    return max(1, min(64, size)) * (_GPU_FACTOR if device.type == "cuda" else 1)


def writable(caption: str) -> str:
    """Return a caption as a record holds it: valid text, and no more of it than any score reads."""
    return caption[:MOST_CHARACTERS].encode("utf-8", "replace").decode()


def class_name(index: int, classes: Sequence[str] | None) -> str:
    """Return a class's name, its number where there are no names."""
    return str(index) if classes is None or index >= len(classes) else classes[index]


def _checked(status: Status, recovery: Recovery, row: int) -> Status:
    """A recovery that is not finite has failed, whatever its attack says."""
    value = recovery.value
    if status.kind == "failed":
        return status
    if isinstance(value, Images) and not torch.isfinite(value.images[row]).all():
        return Status("failed", "the recovered picture has NaN or infinite pixels")
    if isinstance(value, Labels) and not torch.isfinite(value.scores[row]).all():
        return Status("failed", "the scores of the recovered labels have NaN or infinity")
    return status


@contextmanager
def counted(prefix: Prefix, tell: Callable[[float], None]) -> Iterator[None]:
    """Tell of every pass through the prefix, or through one of its segments as its share, a picture."""
    passes = 0.0
    share = 1 / len(prefix.segments)

    def count(weight: float) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            nonlocal passes
            passes += weight * (inputs[0].shape[0] if inputs and inputs[0].ndim else 1)
            tell(passes)

        return hook

    hooks = [prefix.register_forward_hook(count(1.0))]
    hooks += [segment.module.register_forward_hook(count(share)) for segment in prefix.segments]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "defaultcpuallocator" in text
