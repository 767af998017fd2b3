"""Features once: the victim runs a single time a picture, and every attack and epoch reads what it gave from disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import assets
from ..files import printable, replacing, require_writable, write_tensors
from ..types import Leak, LeakHeader, PictureFile, Progress, SeepageError, Shape
from .claims import claimed
from .shown import MIRRORED, PLAIN, pick, shown, ways
from .source import PictureSource, load_batch

Stored = Literal["fp32", "fp16", "int8"]
View = tuple[str, int]
"""A layer, and the way that pictures are shown."""
Extract = Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]]
"""Maps pictures "b 3 h w" in [0, 1] and names of layers to each one's features "b ...", by one pass for all."""

VERSION = 3
ROWS = 128
"""Pictures a shard, unless told otherwise."""
_BATCH = 16
_OPEN = 256
_LEVELS = 127
_PROBES = 8
_STALE_SECONDS = 600
_FP16 = torch.finfo(torch.float16).max
_PICTURES = "pictures"
_FEATURES = "features"
_NOT_FINITE = "its features are not finite"


class FeatureCacheError(SeepageError):
    """Features that cannot be kept as asked, or that are not there."""


class NoFeaturesError(FeatureCacheError):
    """None of the pictures gave features."""


@dataclass(frozen=True)
class CachedFeatures:
    """The features of a source's pictures at one layer, on disk, read as they are asked for.

    `indices` are the pictures that have features, in the source's order; `failed` says why the others have none.
    `notes` are lines on what was damaged and computed anew. `folders` has one for each way that pictures were shown.
    """

    folders: Mapping[int, Path]
    header: LeakHeader
    shape: Shape
    indices: tuple[int, ...]
    failed: Mapping[int, str]
    notes: tuple[str, ...]
    _shards: Mapping[int, int] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    def ways(self, shares: Sequence[float]) -> list[int]:
        """Return a way that pictures were shown for each number in [0, 1), every one as likely as any other."""
        return [pick(tuple(self.folders), share) for share in shares]

    def read(self, indices: Sequence[int], ways: Sequence[int] | None = None) -> Float[Tensor, "b ..."]:
        """Return the features of pictures by their index in the source, as they are or in the ways that are named.

        Raises:
            FeatureCacheError: a picture has no features, or none were kept of it shown that way.
        """
        rows = torch.empty(len(indices), *self.shape)
        for place, index in enumerate(indices):
            if index not in self._shards:
                reason = self.failed.get(index, "it is not in the source")
                raise FeatureCacheError(f"picture {index} has no features at {self.header.layer}: {reason}")
            way = PLAIN if ways is None else ways[place]
            if way not in self.folders:
                what = "no mirror images" if way == MIRRORED else f"no crop {way - MIRRORED}"
                raise FeatureCacheError(f"{printable(self.folders[PLAIN])} has {what} beside it: none were asked for")
            rows[place] = _row(*_file(self.folders[way], self._shards[index]), index)
        return rows

    def leak(self, indices: Sequence[int]) -> Leak:
        """Return the same as a leak."""
        return Leak(self.read(indices), self.header)


def cache_features(
    source: PictureSource,
    load: Callable[[PictureFile], Tensor],
    extract: Extract,
    headers: Sequence[LeakHeader],
    home: Path,
    *,
    stored: Stored = "fp16",
    flips: bool = False,
    crops: int = 0,
    rows: int = ROWS,
    marks: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> tuple[CachedFeatures, ...]:
    """Return the features of `source` at each of `headers`' layers, computing those that `home` does not hold.

    All layers of a picture come from one pass. What is kept is keyed by victim, weights, layer, preprocessing, wire,
    defenses, the pictures' manifest, `stored`, `rows` and the layer's mark in `marks` (`marks_of` the victim unless
    given). A kill costs the shard that was being computed, and several processes that ask for the same share the work.
    fp32 keeps each number, fp16 rounds it, int8 has one scale a channel and shard: the first axis of a map or vector,
    the last of tokens. With `flips` the pictures' mirror images are kept too, and `crops` random parts of each, every
    way apart: who does without shares the rest.
    Features that are not finite are a picture's failure. One that could not be read is tried again the next time.

    Raises:
        NoFeaturesError: no picture gave features.
        FeatureCacheError: a feature is beyond fp16.
        OutputError: `home` cannot be written.
    """
    manifest = source.manifest_sha256()
    marks = marks or marks_of(load, extract, [header.layer for header in headers])
    folders = {
        (header.layer, way): home / _key(header, manifest, stored, way, rows, marks[header.layer])
        for header in headers
        for way in ways(flips=flips, crops=crops)
    }
    for folder in folders.values():
        require_writable(folder)
        for part in folder.glob(".*.part"):
            with suppress(FileNotFoundError):  # whoever writes it is done
                if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                    part.unlink()
    notes: dict[View, dict[str, None]] = {view: {} for view in folders}
    found: dict[View, dict[int, Mapping[str, Any]]] = {view: {} for view in folders}

    def missing(shard: int) -> list[View]:
        for view, folder in folders.items():
            said, note = _check(folder, shard)
            said = None if said is not None and _mended(source, load, said) else said
            notes[view] |= {note: None} if note else {}
            found[view] |= {} if said is None else {shard: said}
        return [view for view in folders if shard not in found[view]]

    count, busy = -(-len(source) // rows), list[int]()
    # What another process is computing comes last: by then it may be there.
    for wait, shards in ((False, range(count)), (True, busy)):
        for shard in shards:
            pictures = range(shard * rows, min((shard + 1) * rows, len(source)))
            lacking = missing(shard)
            if lacking:
                with claimed([folders[view] / f"shard-{shard:06d}.lock" for view in lacking], wait=wait) as ours:
                    if not ours:
                        busy.append(shard)
                        continue
                    lacking = missing(shard)
                    computed = _compute(source, load, extract, lacking, pictures) if lacking else {}
                    for view in lacking:
                        found[view][shard] = _write(folders[view], shard, view[0], *computed[view], stored)
            if progress is not None:
                done = min(len(own) for own in found.values())
                progress(done / count, f"features, {min(done * rows, len(source))} of {len(source)} pictures")
    opened = []
    for header in headers:
        mine = [view for view in folders if view[0] == header.layer]
        lines = tuple(note for view in mine for note in notes[view])
        places = {way: folders[layer, way] for layer, way in mine}
        opened.append(_opened(places, header, [found[view] for view in mine], lines, source))
    return tuple(opened)


def holds(source: PictureSource, header: LeakHeader, home: Path, *, stored: Stored, mark: str, rows: int) -> bool:
    """Return whether `home` has the features of a source's pictures at one layer, without a look at what they are."""
    folder = home / _key(header, source.manifest_sha256(), stored, PLAIN, rows, mark)
    return all(_paths(folder, shard)[1].exists() for shard in range(-(-len(source) // rows)))


def home() -> Path:
    """Return the folder that features are kept in, shared by all that learns from them."""
    return assets.home() / "features"


def marks_of(load: Callable[[PictureFile], Tensor], extract: Extract, layers: Sequence[str]) -> dict[str, str]:
    """Return what the victim makes of one drawn picture at each layer: its size, and its direction along a few others.

    Weights do not tell all of a victim: an activation, a stride or the way pictures are resized is code. What changes
    the features by less than about a hundredth of their size may pass for the same.
    """
    given = extract(load(_drawn())[None], layers)
    marks = {}
    for layer in layers:
        features = given[layer].detach().double().cpu().flatten()
        size = features.norm()
        others = torch.randn(_PROBES, len(features), generator=torch.Generator().manual_seed(0), dtype=torch.double)
        along = others @ (features / size.clamp_min(1e-300))
        marks[layer] = " ".join([f"{float(size):.2e}", *(f"{float(one):.2f}" for one in along)])
    return marks


def _drawn() -> Image.Image:
    """Return a picture of noise in four shades, another in each colour: how it is resized or its colours lie shows."""
    noise = torch.randint(0, 128, (261, 299, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise[:130] += torch.tensor([0, 32, 64], dtype=torch.uint8)
    noise[:, 150:] += torch.tensor([63, 31, 0], dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def _key(header: LeakHeader, manifest: str, stored: str, way: int, rows: int, mark: str) -> str:
    # The first two ways go by what they were called before there were crops.
    called = way if way > MIRRORED else way == MIRRORED
    content = [VERSION, dataclasses.asdict(header), manifest, stored, called, rows, mark]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _opened(
    folders: Mapping[int, Path],
    header: LeakHeader,
    views: Sequence[Mapping[int, Mapping[str, Any]]],
    notes: tuple[str, ...],
    source: PictureSource,
) -> CachedFeatures:
    """Return the pictures that have features in all views."""
    shards: dict[int, int] = {}
    failed: dict[int, str] = {}
    for shard in sorted(views[0]):
        said = [view[shard] for view in views]
        for one in said:
            failed |= {int(index): reason for index, reason in one["failed"].items()}
        shards |= dict.fromkeys((index for index in said[0]["pictures"] if index not in failed), shard)
    if not shards:
        first = next(iter(failed.values()), "there is none")
        raise NoFeaturesError(f"no picture of {source.name} gave features at {header.layer}; the first: {first}")
    shape = next(tuple(said["shape"]) for said in views[0].values() if said["pictures"])
    _file.cache_clear()  # a shard may have been computed anew since it was opened
    return CachedFeatures(folders, header, shape, tuple(shards), failed, notes, shards)


Computed = tuple[list[Tensor], list[int], dict[int, str]]
"""A shard's rows; the pictures they are of; why others have none."""


def _compute(
    source: PictureSource,
    load: Callable[[PictureFile], Tensor],
    extract: Extract,
    views: Sequence[View],
    pictures: Sequence[int],
) -> dict[View, Computed]:
    """Run the victim on some pictures, once for each way they are shown, and keep the rows that are finite."""
    kept: dict[View, Computed] = {view: ([], [], {}) for view in views}
    for start in range(0, len(pictures), _BATCH):
        batch = load_batch(source, pictures[start : start + _BATCH], load)
        for _, _, failed in kept.values():
            failed |= batch.failed
        if batch.pictures is None:
            continue
        files = [source.entries[index].file_sha256 for index in batch.indices]
        pairs = list(zip(batch.pictures.images, files, strict=True))
        for way in sorted({way for _, way in views}):
            layers = [layer for layer, how in views if how == way]
            given = extract(torch.stack([shown(image, way, sha256) for image, sha256 in pairs]), layers)
            for layer in layers:
                rows, indices, failed = kept[layer, way]
                features = given[layer].detach().float().cpu()
                finite = features.isfinite().flatten(1).all(1).tolist()
                for row, index in enumerate(batch.indices):
                    if finite[row]:
                        indices.append(index)
                        rows.append(features[row])
                    else:
                        failed[index] = _NOT_FINITE
    return kept


def _write(
    folder: Path,
    shard: int,
    layer: str,
    rows: list[Tensor],
    indices: list[int],
    failed: Mapping[int, str],
    stored: Stored,
) -> dict[str, Any]:
    """Write a shard: the features, then what vouches for them. A shard without that is none."""
    path, words = _paths(folder, shard)
    tensors: dict[str, Tensor] = {}
    if rows:
        features = torch.stack(rows)
        if stored == "int8":
            scale = _scale(features)
            tensors = {_FEATURES: (features / scale).round().to(torch.int8), "scale": scale[0]}
        elif stored == "fp32":
            tensors = {_FEATURES: features}
        else:
            largest = float(features.abs().max())
            if largest > _FP16:
                raise FeatureCacheError(f"{layer} gives a feature of {largest:.4g}, which fp16 cannot hold; int8 can")
            tensors = {_FEATURES: features.half()}
    write_tensors(path, tensors | {_PICTURES: torch.tensor(indices, dtype=torch.long)})
    said = {
        "sha256": _sha256(path),
        "shape": list(rows[0].shape) if rows else [],
        "pictures": indices,
        "failed": {str(index): reason for index, reason in failed.items()},
    }
    with replacing(words) as part:
        part.write_text(json.dumps(said), encoding="utf-8")
    return said


def _scale(features: Float[Tensor, "b ..."]) -> Float[Tensor, "1 ..."]:
    """Return what one level of int8 is worth in each channel, shaped to divide rows."""
    largest = features.abs().amax(0)
    channels = largest.ndim - 1 if largest.ndim == 2 else 0
    others = [axis for axis in range(largest.ndim) if axis != channels]
    peak = largest.amax(others, keepdim=True) if others else largest
    # A channel that is always 0 has no scale of its own.
    return torch.where(peak > 0, peak / _LEVELS, 1.0).clamp_min(torch.finfo(torch.float32).tiny)[None]


def _check(folder: Path, shard: int) -> tuple[dict[str, Any] | None, str]:
    """Return what a shard says of itself, None where it is not there or not whole; and a line where it is damaged."""
    path, words = _paths(folder, shard)
    if not words.exists():
        return None, ""
    try:
        said = json.loads(words.read_text(encoding="utf-8"))
        if {"sha256", "shape", "pictures", "failed"} - said.keys() or _sha256(path) != said["sha256"]:
            raise ValueError("other bytes than were written")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return None, f"{printable(path)} is damaged ({reason}) and was computed anew"
    return said, ""


def _mended(source: PictureSource, load: Callable[[PictureFile], Tensor], said: Mapping[str, Any]) -> bool:
    """Return whether one of a shard's pictures that could not be read now can."""
    lost = [int(index) for index, reason in said["failed"].items() if reason != _NOT_FINITE]
    return any(load_batch(source, [index], load).pictures is not None for index in lost)


def _paths(folder: Path, shard: int) -> tuple[Path, Path]:
    return folder / f"shard-{shard:06d}.safetensors", folder / f"shard-{shard:06d}.json"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=_OPEN)
def _file(folder: Path, shard: int) -> tuple[Any, Mapping[int, int]]:
    """Return a shard as a mapped file, and which of its rows is which picture's: it may have been computed anew."""
    path, _ = _paths(folder, shard)
    try:
        file: Any = safe_open(path, framework="pt")
        return file, {index: row for row, index in enumerate(file.get_tensor(_PICTURES).tolist())}
    except (OSError, SafetensorError) as error:
        raise FeatureCacheError(f"{printable(path)} cannot be read: {error}; the same command mends it") from error


def _row(file: Any, rows: Mapping[int, int], index: int) -> Tensor:
    """Return a picture's row of a mapped file, as float32."""
    if index not in rows:
        raise FeatureCacheError(f"picture {index} could not be read when its features were computed anew")
    values: Tensor = file.get_slice(_FEATURES)[rows[index]].float()
    return values * file.get_tensor("scale") if "scale" in file.keys() else values  # noqa: SIM118  no mapping
