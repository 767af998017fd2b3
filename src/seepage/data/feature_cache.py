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
from .source import PictureSource, load_batch

Stored = Literal["fp32", "fp16", "int8"]
Extract = Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]]
"""Maps pictures "b 3 h w" in [0, 1] and names of layers to each one's features "b ...", by one pass for all."""

VERSION = 2
ROWS = 128
"""Pictures a shard, unless told otherwise."""
_BATCH = 16
_OPEN = 64
_LEVELS = 127
_PROBES = 8
_STALE_SECONDS = 600
_FP16 = torch.finfo(torch.float16).max
_PICTURES = "pictures"
_NOT_FINITE = "its features are not finite"


class FeatureCacheError(SeepageError):
    """Features that cannot be kept as asked, or that are not there."""


class NoFeaturesError(FeatureCacheError):
    """None of the pictures gave features."""


@dataclass(frozen=True)
class CachedFeatures:
    """The features of a source's pictures at one layer, on disk, read as they are asked for.

    `indices` are the pictures that have features, in the source's order; `failed` says why the others have none.
    `notes` are lines on what was damaged and computed anew.
    """

    folder: Path
    header: LeakHeader
    shape: Shape
    flips: bool
    indices: tuple[int, ...]
    failed: Mapping[int, str]
    notes: tuple[str, ...]
    _shards: Mapping[int, int] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Sequence[int], flipped: Sequence[bool] | None = None) -> Float[Tensor, "b ..."]:
        """Return the features of pictures by their index in the source; of their mirror images where `flipped` says so.

        Raises:
            FeatureCacheError: a picture has no features, or no flipped ones were kept.
        """
        if flipped is not None and any(flipped) and not self.flips:
            raise FeatureCacheError(f"{printable(self.folder)} holds no flipped views: they were not asked for")
        rows = torch.empty(len(indices), *self.shape)
        for place, index in enumerate(indices):
            if index not in self._shards:
                reason = self.failed.get(index, "it is not in the source")
                raise FeatureCacheError(f"picture {index} has no features at {self.header.layer}: {reason}")
            view = "flipped" if flipped is not None and flipped[place] else "features"
            rows[place] = _row(*_file(self.folder, self._shards[index]), view, index)
        return rows

    def leak(self, indices: Sequence[int], flipped: Sequence[bool] | None = None) -> Leak:
        """Return the same as a leak."""
        return Leak(self.read(indices, flipped), self.header)


def cache_features(
    source: PictureSource,
    load: Callable[[PictureFile], Tensor],
    extract: Extract,
    headers: Sequence[LeakHeader],
    home: Path,
    *,
    stored: Stored = "fp16",
    flips: bool = False,
    rows: int = ROWS,
    marks: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> tuple[CachedFeatures, ...]:
    """Return the features of `source` at each of `headers`' layers, computing those that `home` does not hold.

    All layers of a picture come from one pass. What is kept is keyed by victim, weights, layer, preprocessing, wire,
    defenses, the pictures' manifest, `stored`, `flips`, `rows` and the layer's mark in `marks` (`marks_of` the victim
    unless given). A kill costs the shard that was being computed, and several processes that ask for the same share the
    work. fp32 keeps each number, fp16 rounds it, int8 has one scale a channel and shard: the first axis of a map or
    vector, the last of tokens. With `flips` the picture's mirror image is a second view. Features that are not finite
    are a picture's failure. One that could not be read is tried again the next time.

    Raises:
        NoFeaturesError: no picture gave features.
        FeatureCacheError: a feature is beyond fp16.
        OutputError: `home` cannot be written.
    """
    manifest = source.manifest_sha256()
    marks = marks or marks_of(load, extract, [header.layer for header in headers])
    folders = {
        header.layer: home / _key(header, manifest, stored, flips, rows, marks[header.layer]) for header in headers
    }
    for folder in folders.values():
        require_writable(folder)
        for part in folder.glob(".*.part"):
            with suppress(FileNotFoundError):  # whoever writes it is done
                if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                    part.unlink()
    notes: dict[str, dict[str, None]] = {layer: {} for layer in folders}
    found: dict[str, dict[int, Mapping[str, Any]]] = {layer: {} for layer in folders}

    def missing(shard: int) -> list[str]:
        for layer, folder in folders.items():
            said, note = _check(folder, shard)
            said = None if said is not None and _mended(source, load, said) else said
            notes[layer] |= {note: None} if note else {}
            found[layer] |= {} if said is None else {shard: said}
        return [layer for layer in folders if shard not in found[layer]]

    count, busy = -(-len(source) // rows), list[int]()
    # What another process is computing comes last: by then it may be there.
    for wait, shards in ((False, range(count)), (True, busy)):
        for shard in shards:
            pictures = range(shard * rows, min((shard + 1) * rows, len(source)))
            lacking = missing(shard)
            if lacking:
                with claimed([folders[layer] / f"shard-{shard:06d}.lock" for layer in lacking], wait=wait) as ours:
                    if not ours:
                        busy.append(shard)
                        continue
                    lacking = missing(shard)
                    computed = _compute(source, load, extract, lacking, pictures, flips) if lacking else {}
                    for layer in lacking:
                        found[layer][shard] = _write(folders[layer], shard, layer, *computed[layer], stored)
            if progress is not None:
                done = min(len(own) for own in found.values())
                progress(done / count, f"features, {min(done * rows, len(source))} of {len(source)} pictures")
    return tuple(
        _opened(folders[header.layer], header, flips, found[header.layer], tuple(notes[header.layer]), source.name)
        for header in headers
    )


def holds(
    source: PictureSource, header: LeakHeader, home: Path, *, stored: Stored, mark: str, flips: bool = False, rows: int
) -> bool:
    """Return whether `home` has the features of a source's pictures at one layer, without a look at what they are."""
    folder = home / _key(header, source.manifest_sha256(), stored, flips, rows, mark)
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


def _key(header: LeakHeader, manifest: str, stored: str, flips: bool, rows: int, mark: str) -> str:
    content = [VERSION, dataclasses.asdict(header), manifest, stored, flips, rows, mark]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _opened(
    folder: Path,
    header: LeakHeader,
    flips: bool,
    shards: Mapping[int, Mapping[str, Any]],
    notes: tuple[str, ...],
    name: str,
) -> CachedFeatures:
    places: dict[int, int] = {}
    failed: dict[int, str] = {}
    for number, said in sorted(shards.items()):
        places |= dict.fromkeys(said["pictures"], number)
        failed |= {int(index): reason for index, reason in said["failed"].items()}
    if not places:
        first = next(iter(failed.values()), "there is none")
        raise NoFeaturesError(f"no picture of {name} gave features at {header.layer}; the first: {first}")
    shape = next(tuple(said["shape"]) for said in shards.values() if said["pictures"])
    _file.cache_clear()  # a shard may have been computed anew since it was opened
    return CachedFeatures(folder, header, shape, flips, tuple(places), failed, notes, places)


Computed = tuple[dict[str, list[Tensor]], list[int], dict[int, str]]
"""A shard's views, each a list of rows; the pictures they are of; why others have none."""


def _compute(
    source: PictureSource,
    load: Callable[[PictureFile], Tensor],
    extract: Extract,
    layers: Sequence[str],
    pictures: Sequence[int],
    flips: bool,
) -> dict[str, Computed]:
    """Run the victim on some pictures and keep the rows that are finite, a layer apart."""
    views = ("features", "flipped") if flips else ("features",)
    kept: dict[str, Computed] = {layer: ({view: [] for view in views}, [], {}) for layer in layers}
    for start in range(0, len(pictures), _BATCH):
        batch = load_batch(source, pictures[start : start + _BATCH], load)
        for _, _, failed in kept.values():
            failed |= batch.failed
        if batch.pictures is None:
            continue
        images = batch.pictures.images
        given = {view: extract(images.flip(-1) if view == "flipped" else images, layers) for view in views}
        for layer, (rows, indices, failed) in kept.items():
            features = [given[view][layer].detach().float().cpu() for view in views]
            finite = torch.stack([part.isfinite().flatten(1).all(1) for part in features]).all(0).tolist()
            for row, index in enumerate(batch.indices):
                if finite[row]:
                    indices.append(index)
                    for view, part in zip(views, features, strict=True):
                        rows[view].append(part[row])
                else:
                    failed[index] = _NOT_FINITE
    return kept


def _write(
    folder: Path,
    shard: int,
    layer: str,
    rows: Mapping[str, list[Tensor]],
    indices: list[int],
    failed: Mapping[int, str],
    stored: Stored,
) -> dict[str, Any]:
    """Write a shard: the features, then what vouches for them. A shard without that is none."""
    path, words = _paths(folder, shard)
    views = {view: torch.stack(parts) for view, parts in rows.items()} if indices else {}
    tensors: dict[str, Tensor] = {}
    if stored == "int8" and views:
        scale = _scale(views)
        tensors = {view: (part / scale).round().to(torch.int8) for view, part in views.items()} | {"scale": scale[0]}
    elif stored == "fp32":
        tensors = dict(views)
    else:
        largest = max((float(part.abs().max()) for part in views.values()), default=0.0)
        if largest > _FP16:
            raise FeatureCacheError(f"{layer} gives a feature of {largest:.4g}, which fp16 cannot hold; int8 can")
        tensors = {view: part.half() for view, part in views.items()}
    write_tensors(path, tensors | {_PICTURES: torch.tensor(indices, dtype=torch.long)})
    said = {
        "sha256": _sha256(path),
        "shape": list(next(iter(views.values())).shape[1:]) if views else [],
        "pictures": indices,
        "failed": {str(index): reason for index, reason in failed.items()},
    }
    with replacing(words) as part:
        part.write_text(json.dumps(said), encoding="utf-8")
    return said


def _scale(views: Mapping[str, Tensor]) -> Float[Tensor, "1 ..."]:
    """Return what one level of int8 is worth in each channel, shaped to divide rows."""
    largest = torch.stack([part.abs().amax(0) for part in views.values()]).amax(0)
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


def _row(file: Any, rows: Mapping[int, int], view: str, index: int) -> Tensor:
    """Return a picture's row of a mapped file, as float32."""
    if index not in rows:
        raise FeatureCacheError(f"picture {index} could not be read when its features were computed anew")
    values: Tensor = file.get_slice(view)[rows[index]].float()
    return values * file.get_tensor("scale") if "scale" in file.keys() else values  # noqa: SIM118  no mapping
