"""Which pictures a report shows, and how they get into its one file."""

from __future__ import annotations

import base64
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..schema import Cell, Sample, Shown
from .findings import KINDS, Kind, findings, kind, leading
from .glossary import measure
from .verdict import LayerVerdict, Verdict

MOST_PICTURES = 24
BUDGET = 10_000_000
"""Bytes of pictures in one file; base64 adds a third."""

_SIDE = 512
_THUMBNAIL = 176
_QUALITY = 90
_MAGIC = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"))
_UNDECODABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError)


@dataclass(frozen=True)
class Embedded:
    """One picture in the page: a data URI, or why there is none."""

    uri: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Said:
    """A sentence, or a label, that was recovered of a picture."""

    kind: Kind
    words: str


@dataclass(frozen=True)
class Recovered:
    """What one attack got back of one picture: a picture and its `label`, or what is `said` of it."""

    attack: str
    best: bool
    picture: Embedded
    score: str
    label: str = ""
    said: Said | None = None


@dataclass(frozen=True)
class Place:
    """A column of the gallery: a layer of a setting."""

    verdict: Verdict
    layer: LayerVerdict
    setting: str


@dataclass(frozen=True)
class Row:
    """One picture: what it was and what came back, one group of recoveries a column.

    `label` is the judge's, `true` the data's, which is known where labels were recovered.
    """

    id: str
    label: str
    caption: str
    true: str
    original: Embedded
    recovered: tuple[tuple[Recovered, ...], ...]


@dataclass(frozen=True)
class Gallery:
    """The pictures shown, best recovered first by `ranked`, out of `total`; the others are of the middle one."""

    places: tuple[Place, ...] = ()
    attacks: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    total: int = 0
    recoded: bool = False
    ranked: str = "PSNR"
    original: Embedded | None = None
    thumbnails: dict[tuple[int, str], Embedded] = field(default_factory=dict)
    said: dict[tuple[int, str], Said] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether recoveries carry labels."""
        return any(item.label for row in self.rows for group in row.recovered for item in group)


def gallery(judged: Sequence[Verdict], settings: Sequence[str], folder: Path) -> Gallery:
    """Choose, read and embed pictures.

    Pictures are ranked by PSNR under each layer's strongest attack, averaged over the layers, or where no picture was
    recovered by the metric that decides on captions, else on labels; at most `MOST_PICTURES`
    at equal steps from the best recovered to the worst are shown, fewer where they would not fit `BUDGET`.
    """
    places = tuple(
        Place(verdict, layer, name)
        for verdict, name in zip(judged, settings, strict=True)
        for layer in verdict.layers
        if any(cell.samples for cell in layer.cells)
    )
    known = _Known(places)
    ranked = known.ranked()
    if not known.pictured:
        return Gallery(total=len(ranked))
    shown = _spread(ranked, MOST_PICTURES)
    files = _Files(folder, recode=False)
    if sum(files.bytes_of(known.paths(id)) for id in shown) > BUDGET:
        files = _Files(folder, recode=True)
        sizes = {id: files.bytes_of(known.paths(id)) for id in shown}
        while len(shown) > 1 and sum(sizes[id] for id in shown) > BUDGET:
            shown = [shown[index] for index in _steps(len(shown), len(shown) - 1)]
    rows = tuple(known.row(id, files) for id in shown)
    attacks = tuple(sorted({item.attack for row in rows for group in row.recovered for item in group}))
    middle = ranked[len(ranked) // 2]
    original, thumbnails = known.thumbnails(middle, judged, _Files(folder, recode=True, side=_THUMBNAIL))
    said = {
        (number, layer.layer): words
        for number, verdict in enumerate(judged)
        for layer in verdict.layers
        if (words := known.said(verdict, layer, middle))
    }
    name = measure(known.key).label
    return Gallery(places, attacks, rows, len(ranked), files.recode, name, original, thumbnails, said)


def _spread(ranked: Sequence[str], most: int) -> list[str]:
    return [ranked[index] for index in _steps(len(ranked), min(most, len(ranked)))]


def _steps(length: int, count: int) -> list[int]:
    """`count` places at equal steps in a sequence, first and last among them."""
    if count < 2:
        return list(range(count))
    return [round(step * (length - 1) / (count - 1)) for step in range(count)]


class _Known:
    """What the records hold of each picture."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._samples: dict[tuple[str, str], Sample] = {}
        self._truths: dict[str, Shown] = {}
        self._captions: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._true: dict[str, str] = {}
        self._files: dict[str, list[str]] = {}
        self._leading = frozenset(key for place in places for key in leading(place.verdict))
        self._kinds: dict[str, Kind] = {}
        for cell in (cell for place in places for cell in place.layer.cells):
            recovers = self._kinds[cell.key] = kind(cell)
            for sample in cell.samples:
                self._samples[cell.key, sample.id] = sample
                files = self._files.setdefault(sample.id, [])
                if sample.truth is not None:
                    self._told(sample.id, sample.truth, recovers)
                if sample.truth is not None and sample.truth.image and sample.id not in self._truths:
                    self._truths[sample.id] = sample.truth
                    files.append(sample.truth.image)
                if sample.recovered is not None and sample.recovered.image:
                    files.append(sample.recovered.image)

    def _told(self, id: str, truth: Shown, recovers: Kind) -> None:
        """Keep a reference caption and the true label, whichever cell has them; a judge's label is no true one."""
        if truth.caption:
            self._captions.setdefault(id, truth.caption)
        if truth.label:
            known = self._true if recovers == "labels" else self._labels
            known.setdefault(id, truth.label)

    @property
    def key(self) -> str:
        """The metric that pictures are ranked by."""
        scored = any("psnr" in sample.metrics for sample in self._samples.values())
        deciding = [finding.key for place in self._places for finding in findings(place.verdict) if finding.layers]
        return "psnr" if scored or not deciding else deciding[0]

    @property
    def pictured(self) -> bool:
        """Whether there is any picture to show."""
        return any(self._files.values())

    def paths(self, id: str) -> list[str]:
        """Every file that a picture's row needs."""
        return self._files[id]

    def ranked(self) -> list[str]:
        """Every picture's id, best recovered first; those that nothing came back of last."""
        key = self.key
        scores: dict[str, list[float]] = {id: [] for id in self._files}
        for cell in (cell for place in self._places for cell in place.layer.cells if cell.key in self._leading):
            for sample in cell.samples if key in cell.summary else ():
                if math.isfinite(sample.metrics.get(key, math.nan)):
                    scores[sample.id].append(sample.metrics[key])
        return sorted(scores, key=lambda id: -statistics.fmean(scores[id]) if scores[id] else math.inf)

    def row(self, id: str, files: _Files) -> Row:
        """One picture's row of the gallery."""
        truth = self._truths.get(id)
        original = Embedded(missing="no picture on record")
        if truth is not None and truth.image:
            original = files.embed(truth.image)
        return Row(
            id,
            self._labels.get(id, ""),
            self._captions.get(id, ""),
            self._true.get(id, ""),
            original,
            tuple(tuple(self._group(place, id, files)) for place in self._places),
        )

    def thumbnails(
        self, id: str, judged: Sequence[Verdict], files: _Files
    ) -> tuple[Embedded | None, dict[tuple[int, str], Embedded]]:
        """Small pictures of one original and of each layer's best recovery of it, by verdict and layer."""
        found: dict[tuple[int, str], Embedded] = {}
        for number, verdict in enumerate(judged):
            for layer in verdict.layers:
                sample = None if layer.best is None else self._samples.get((layer.best.key, id))
                if sample is not None and sample.recovered is not None and sample.recovered.image:
                    found[number, layer.layer] = files.embed(sample.recovered.image)
        truth = self._truths.get(id)
        return (files.embed(truth.image) if truth is not None and truth.image else None), found

    def said(self, verdict: Verdict, layer: LayerVerdict, id: str) -> Said | None:
        """What the layer's strongest attack on captions says of a picture, else that on labels."""
        for finding in findings(verdict):
            found = finding.at(layer.layer)
            sample = None if found is None else self._samples.get((found.best.key, id))
            if sample is not None and sample.recovered is not None:
                return Said(finding.kind, _words(sample.recovered))
        return None

    def _order(self, cell: Cell) -> tuple[int, bool]:
        return KINDS.index(self._kinds[cell.key]), cell.key not in self._leading

    def _group(self, place: Place, id: str, files: _Files) -> Iterable[Recovered]:
        """What each attack got back at one layer: pictures, captions, then labels, the layer's strongest first."""
        for cell in sorted(place.layer.cells, key=self._order):
            sample = self._samples.get((cell.key, id))
            if sample is None:
                continue
            name, best, recovers = place.verdict.attacker(cell), cell.key in self._leading, self._kinds[cell.key]
            if sample.status == "failed":
                yield Recovered(name, best, Embedded(missing=f"failed: {sample.message}"), "")
                continue
            shown = sample.recovered
            if shown is not None and recovers != "images":
                yield Recovered(name, best, Embedded(), _score(sample), said=Said(recovers, _words(shown)))
                continue
            path = None if shown is None else shown.image
            picture = files.embed(path) if path else Embedded(missing="no picture on record")
            yield Recovered(name, best, picture, _score(sample), (shown.label or "") if shown is not None else "")


def _score(sample: Sample) -> str:
    parts = []
    if sample.recovered is not None and sample.recovered.image is None and "top1" in sample.metrics:
        return "right" if sample.metrics["top1"] == 1 else "wrong"
    keys = ("psnr", "ssim", "rouge_l") if {"psnr", "ssim", "rouge_l"} & set(sample.metrics) else ("nll_gap",)
    for key in keys:
        if key in sample.metrics:
            scale = measure(key)
            name = "" if key == "psnr" else f"{scale.label} "
            parts.append(name + scale.with_unit(sample.metrics[key]))
    return " · ".join(parts)


def _words(shown: Shown) -> str:
    """What was said of a picture: a label, the words it was read from; a caption without words shows as such."""
    words = None if shown.caption is None else shown.caption.strip() or "(no words)"
    return ": ".join(part for part in (shown.label, words) if part)


class _Files:
    """Pictures below one folder, as they are or recoded smaller. A path that leads out of it is not followed."""

    def __init__(self, folder: Path, *, recode: bool, side: int = _SIDE) -> None:
        self.recode = recode
        self._root = folder.resolve()
        self._side = side
        self._recoded: dict[str, tuple[bytes, str] | str] = {}

    def bytes_of(self, paths: Iterable[str]) -> int:
        """Return how many bytes embedding these files takes."""
        return sum(self._size(path) for path in paths)

    def embed(self, path: str) -> Embedded:
        """Return a picture as a data URI; a file that is missing or no picture is said to be."""
        found = self._content(path)
        if isinstance(found, str):
            return Embedded(missing=found)
        content, kind = found
        return Embedded(uri=f"data:{kind};base64,{base64.b64encode(content).decode()}")

    def _size(self, path: str) -> int:
        if not self.recode:
            file = self._file(path)
            return 0 if file is None else file.stat().st_size
        found = self._content(path)
        return 0 if isinstance(found, str) else len(found[0])

    def _content(self, path: str) -> tuple[bytes, str] | str:
        if not self.recode:
            return self._read(path)
        if path not in self._recoded:
            found = self._read(path)
            self._recoded[path] = found if isinstance(found, str) else _smaller(found[0], self._side)
        return self._recoded[path]

    def _read(self, path: str) -> tuple[bytes, str] | str:
        file = self._file(path)
        if file is None:
            return "picture file missing"
        try:
            content = file.read_bytes()
        except OSError:
            return "picture file unreadable"
        kind = next((kind for magic, kind in _MAGIC if content.startswith(magic)), None)
        return "no picture file" if kind is None else (content, kind)

    def _file(self, path: str) -> Path | None:
        # A record may come from elsewhere: it must not pull other files of this machine into a report.
        try:
            file = (self._root / path).resolve()
            return file if file.is_relative_to(self._root) and file.is_file() else None
        except (OSError, ValueError):
            return None


def _smaller(content: bytes, side: int) -> tuple[bytes, str] | str:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            picture = opened.convert("RGB")
    except _UNDECODABLE:
        return "damaged picture file"
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=_QUALITY, method=4)
    return stream.getvalue(), "image/webp"
