"""Features on disk: one pass a picture, exact up to the format, whole after any kill or damage, flat in memory."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from seepage.data import claims, open_source
from seepage.data.feature_cache import CachedFeatures, FeatureCacheError, Stored, cache_features, marks_of
from seepage.data.shown import MIRRORED, PLAIN, shown
from seepage.data.source import PictureSource
from seepage.pictures import read_picture
from seepage.types import LeakHeader, PictureFile, SeepageError

HEADER = LeakHeader("tiny", "0" * 64, "map", "none")
OTHER = dataclasses.replace(HEADER, layer="vector")
SIZE = (6, 4)


def load(file: PictureFile) -> Tensor:
    return torch.from_numpy(np.array(read_picture(file))).permute(2, 0, 1).float() / 255


class Victim:
    """Two layers with answers that are easily told, and what it was asked."""

    def __init__(self, factor: float = 1.0) -> None:
        self.seen = 0
        self.asked: list[tuple[str, ...]] = []
        self.factor = factor

    def __call__(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        if images.shape[2:] == SIZE:  # none of the pictures is the one that tells victims apart
            self.seen += len(images)
            self.asked.append(tuple(layers))
        answers = {"map": self.factor * (images - 0.5), "vector": 10 * images.mean((2, 3))}
        return {layer: answers[layer] for layer in layers}


@pytest.fixture
def source(tmp_path: Path) -> PictureSource:
    """Ten pictures of noise, 6x4."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(10):
        Image.fromarray(random.integers(0, 256, (6, 4, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return open_source(folder)


def pixels(source: PictureSource) -> Tensor:
    return torch.stack([load(entry.path) for entry in source.entries])


def cached(
    source: PictureSource,
    victim: Victim,
    home: Path,
    *headers: LeakHeader,
    stored: Stored = "fp16",
    flips: bool = False,
    crops: int = 0,
) -> tuple[CachedFeatures, ...]:
    return cache_features(
        source, load, victim, headers or (HEADER,), home, stored=stored, flips=flips, crops=crops, rows=4
    )


class Slow(Victim):
    """One that waits for another to be at work as well, and notes which pictures it was shown."""

    def __init__(self, meeting: threading.Barrier) -> None:
        super().__init__()
        self.meeting = meeting

    def __call__(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        if images.shape[2:] == SIZE and not self.seen:
            self.meeting.wait(timeout=30)
        return super().__call__(images, layers)


def test_several_that_ask_for_the_same_share_the_work(source: PictureSource, tmp_path: Path) -> None:
    meeting = threading.Barrier(2)
    workers = [Slow(meeting), Slow(meeting)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda one: cached(source, one, tmp_path / "cache", HEADER, OTHER), workers))
    assert all(worker.seen for worker in workers)
    assert sum(worker.seen for worker in workers) == 10
    expected = cached(source, Victim(), tmp_path / "alone", HEADER, OTHER)
    for own in found:
        for one, other in zip(own, expected, strict=True):
            assert one.indices == other.indices
            assert torch.equal(one.read(range(10)), other.read(range(10)))
    assert not list((tmp_path / "cache").rglob("*.lock"))


def test_another_function_of_the_same_weights_is_another_victim(source: PictureSource, tmp_path: Path) -> None:
    """Code has no hash: what it makes of a picture tells."""
    (plain,) = cached(source, Victim(), tmp_path / "cache")
    other = Victim(1.01)
    (changed,) = cached(source, other, tmp_path / "cache")
    assert other.seen == 10
    assert torch.allclose(changed.read(range(10)), 1.01 * plain.read(range(10)), atol=1e-3)
    rounded = Victim(1 + 1e-7)
    cached(source, rounded, tmp_path / "cache")
    assert rounded.seen == 0


def test_a_picture_that_could_not_be_read_is_tried_again(source: PictureSource, tmp_path: Path) -> None:
    """A share that was away for a moment: the files' hashes are remembered, and the manifest is the same."""
    away, victim = {source.entries[6].path}, Victim()

    def unsteady(file: PictureFile) -> Tensor:
        if any(file == path for path in away):
            raise SeepageError("gone for a moment")
        return load(file)

    def kept() -> CachedFeatures:
        (found,) = cache_features(source, unsteady, victim, (HEADER,), tmp_path / "cache", rows=4)
        return found

    assert list(kept().failed) == [6]
    assert victim.seen == 9
    assert list(kept().failed) == [6]
    assert victim.seen == 9
    away.clear()
    found = kept()
    assert not found.failed
    assert found.indices == tuple(range(10))
    assert victim.seen == 9 + 4  # its shard alone


@pytest.mark.parametrize(
    "change",
    [lambda z: -z, lambda z: z.flip(-1), lambda z: z.flip(1), lambda z: z.roll(1, -2)],
    ids=["sign", "mirrored", "colours", "order"],
)
def test_a_victim_of_the_same_sizes_is_told_apart(change: Callable[[Tensor], Tensor]) -> None:
    """Another sign, a mirrored map, other colours or another order are other features, whatever their sizes."""

    def other(images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        return {layer: change(found) for layer, found in Victim()(images, layers).items()}

    def read(file: PictureFile) -> Tensor:
        return load(file)[:, :64, :64]

    assert marks_of(read, Victim(), ["map"]) == marks_of(read, Victim(), ["map"])
    assert marks_of(read, Victim(), ["map"]) != marks_of(read, other, ["map"])


def test_rows_stay_their_pictures_when_another_process_mends_a_shard(source: PictureSource, tmp_path: Path) -> None:
    away = {source.entries[5].path}

    def unsteady(file: PictureFile) -> Tensor:
        if any(file == path for path in away):
            raise SeepageError("gone for a moment")
        return load(file)

    (early,) = cache_features(source, unsteady, Victim(), (HEADER,), tmp_path / "cache", stored="fp32", rows=4)
    away.clear()
    (late,) = cache_features(source, unsteady, Victim(), (HEADER,), tmp_path / "cache", stored="fp32", rows=4)
    kept = [index for index in range(10) if index != 5]
    assert early.indices == tuple(kept)
    assert torch.equal(early.read(kept), pixels(source)[kept] - 0.5)  # from the very file that was written anew
    assert torch.equal(late.read(range(10)), pixels(source) - 0.5)


def test_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_PATIENCE", 0.2)
    with claims.claimed([tmp_path / "a.lock"], wait=False) as first, ThreadPoolExecutor(1) as pool:

        def other(wait: bool) -> bool:
            with claims.claimed([tmp_path / "a.lock"], wait=wait) as ours:
                return ours

        assert first
        assert not pool.submit(other, False).result()
        assert pool.submit(other, True).result()


def test_single_precision_keeps_every_bit(source: PictureSource, tmp_path: Path) -> None:
    (kept,) = cached(source, Victim(1e6 / 3), tmp_path / "cache", stored="fp32")
    assert torch.equal(kept.read(range(10)), 1e6 / 3 * (pixels(source) - 0.5))


def test_victim_runs_once_a_picture_for_all_layers_and_never_again(source: PictureSource, tmp_path: Path) -> None:
    victim = Victim()
    first = cached(source, victim, tmp_path / "cache", HEADER, OTHER)
    assert victim.seen == 10
    assert set(victim.asked) == {("map", "vector")}
    again = cached(source, victim, tmp_path / "cache", HEADER, OTHER)
    assert victim.seen == 10
    assert torch.equal(first[0].read(range(10)), again[0].read(range(10)))
    assert again[1].shape == (3,)


def test_rows_are_read_by_index_in_any_order_within_half_precision(source: PictureSource, tmp_path: Path) -> None:
    (features,) = cached(source, Victim(), tmp_path / "cache")
    order = [7, 0, 7, 9, 4]
    expected = (pixels(source) - 0.5)[order]
    assert torch.equal(features.read(order), expected.half().float())
    assert features.leak(order).header == HEADER
    assert features.indices == tuple(range(10))


@pytest.mark.parametrize("layer", ["map", "vector"])
def test_eight_bits_are_off_by_half_a_level_of_the_channel_at_most(
    source: PictureSource, tmp_path: Path, layer: str
) -> None:
    victim = Victim(torch.tensor([1.0, 100.0, 0.01]).view(3, 1, 1))  # type: ignore[arg-type]  # a factor a channel
    (features,) = cached(
        source, victim, tmp_path / "cache", HEADER if layer == "map" else OTHER, stored="int8", flips=True
    )
    exact = victim(pixels(source), [layer])[layer]
    for start in range(0, 10, 4):
        part = exact[start : start + 4]
        level = part.transpose(0, 1).flatten(1).abs().amax(1) / 127
        off = (features.read(range(start, min(start + 4, 10))) - part).transpose(0, 1).flatten(1).abs().amax(1)
        assert (off <= 0.51 * level).all()
        assert (off > 0).all()
    weight = sum(path.stat().st_size for path in features.folders[PLAIN].glob("*.safetensors"))
    assert weight < exact.numel() + 3 * 600


def test_tokens_have_a_scale_for_each_of_their_channels(source: PictureSource, tmp_path: Path) -> None:
    sizes = torch.tensor([1e-3, 1.0, 1e3])

    def tokens(images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        return {"map": images.flatten(2).transpose(1, 2) * sizes}

    (features,) = cache_features(source, load, tokens, [HEADER], tmp_path / "cache", stored="int8", rows=4)
    exact = tokens(pixels(source), ["map"])["map"]
    assert features.shape == (24, 3)
    assert ((features.read(range(10)) - exact).abs().amax((0, 1)) < sizes / 127).all()


def test_mirror_image_is_a_second_view(source: PictureSource, tmp_path: Path) -> None:
    victim = Victim()
    (features,) = cached(source, victim, tmp_path / "cache", flips=True)
    assert victim.seen == 20
    both = features.read([3, 3], features.ways([0.7, 0.2]))
    assert torch.equal(both[0].flip(-1), both[1])
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize("first", [False, True])
def test_who_wants_no_mirror_images_shares_the_rest(source: PictureSource, tmp_path: Path, first: bool) -> None:
    victim = Victim()
    (plain,) = cached(source, victim, tmp_path / "cache", flips=first)
    assert victim.seen == (20 if first else 10)
    (other,) = cached(source, victim, tmp_path / "cache", flips=not first)
    assert victim.seen == 20
    assert torch.equal(plain.read(range(10)), other.read(range(10)))
    with pytest.raises(FeatureCacheError, match="no mirror images"):
        (other if first else plain).read([3], [MIRRORED])


def test_crops_are_views_of_their_own(source: PictureSource, tmp_path: Path) -> None:
    victim = Victim()
    (features,) = cached(source, victim, tmp_path / "cache", crops=2)
    assert victim.seen == 30
    assert set(features.ways([0.1, 0.5, 0.9])) == {0, 2, 3}
    first, second = features.read([3, 3], [2, 3])
    assert not torch.equal(first, second)
    expected = shown(load(source.entries[3].path), 2, source.entries[3].file_sha256) - 0.5
    assert torch.equal(first, expected.half().float())
    (fewer,) = cached(source, victim, tmp_path / "cache", flips=True, crops=1)
    assert victim.seen == 40  # the mirror images alone are new
    assert torch.equal(fewer.read([3], [2])[0], first)
    with pytest.raises(FeatureCacheError, match="no crop 2 beside it"):
        fewer.read([3], [3])


def test_picture_whose_mirror_image_is_not_finite_has_no_features(source: PictureSource, tmp_path: Path) -> None:
    mirrored = load(source.entries[5].path).flip(-1)

    class Bursting(Victim):
        def __call__(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
            found = super().__call__(images, layers)
            if images.shape[2:] == SIZE:
                found["map"][(images == mirrored).flatten(1).all(1)] = float("inf")
            return found

    (both,) = cached(source, Bursting(), tmp_path / "cache", flips=True)
    assert set(both.failed) == {5}
    assert both.indices == (0, 1, 2, 3, 4, 6, 7, 8, 9)
    (plain,) = cached(source, Bursting(), tmp_path / "cache")
    assert plain.indices == tuple(range(10))


def test_stopped_in_the_middle_it_goes_on_by_the_shard(source: PictureSource, tmp_path: Path) -> None:
    class Dying(Victim):
        def __call__(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
            if self.seen >= 4:
                raise KeyboardInterrupt
            return super().__call__(images, layers)

    with pytest.raises(KeyboardInterrupt):
        cached(source, Dying(), tmp_path / "cache")
    victim = Victim()
    (features,) = cached(source, victim, tmp_path / "cache")
    assert victim.seen == 6
    assert torch.allclose(features.read(range(10)), pixels(source) - 0.5, atol=1e-3)
    assert features.notes == ()


def test_damaged_shard_is_named_and_computed_anew(source: PictureSource, tmp_path: Path) -> None:
    (features,) = cached(source, Victim(), tmp_path / "cache")
    expected = features.read(range(10))
    path = features.folders[PLAIN] / "shard-000001.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    victim = Victim()
    (mended,) = cached(source, victim, tmp_path / "cache")
    assert victim.seen == 4
    assert "shard-000001.safetensors is damaged" in mended.notes[0]
    assert torch.equal(mended.read(range(10)), expected)
    path.write_bytes(bytes(content)[:40])
    path.with_suffix(".json").write_text("{")
    assert "shard-000001" in cached(source, victim, tmp_path / "cache")[0].notes[0]
    assert cached(source, victim, tmp_path / "cache")[0].notes == ()


@pytest.mark.parametrize("change", ["victim", "weights_sha256", "layer", "preprocessing"])
def test_another_victim_layer_or_preprocessing_has_features_of_its_own(
    source: PictureSource, tmp_path: Path, change: str
) -> None:
    (first,) = cached(source, Victim(), tmp_path / "cache")
    other = dataclasses.replace(HEADER, **{change: "vector"})  # type: ignore[arg-type]
    victim = Victim()
    (second,) = cached(source, victim, tmp_path / "cache", other)
    assert victim.seen == 10
    assert first.folders != second.folders


def test_other_pictures_have_features_of_their_own(source: PictureSource, tmp_path: Path) -> None:
    cached(source, Victim(), tmp_path / "cache")
    Image.new("RGB", (4, 6)).save(source.entries[2].path)
    victim = Victim()
    (features,) = cached(open_source(source.root), victim, tmp_path / "cache")
    assert victim.seen == 10
    assert torch.equal(features.read([2]), torch.full((1, 3, 6, 4), -0.5))


def test_unreadable_picture_and_features_that_are_not_finite_are_named(source: PictureSource, tmp_path: Path) -> None:
    source.entries[1].path.write_bytes(b"no picture")
    broken = open_source(source.root)

    class Bursting(Victim):
        def __call__(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
            found = super().__call__(images, layers)
            if images.shape[2:] != SIZE:
                return found
            mine = (images == load(broken.entries[5].path)).flatten(1).all(1)
            found["map"] = torch.where(mine.view(-1, 1, 1, 1), float("nan"), found["map"])
            return found

    (features,) = cached(broken, Bursting(), tmp_path / "cache")
    assert features.indices == (0, 2, 3, 4, 6, 7, 8, 9)
    assert set(features.failed) == {1, 5}
    assert "finite" in features.failed[5]
    assert torch.allclose(features.read([6]), load(broken.entries[6].path) - 0.5, atol=1e-3)
    with pytest.raises(FeatureCacheError, match="picture 5 has no features at map: its features are not finite"):
        features.read([5])


def test_no_readable_picture_is_refused(source: PictureSource, tmp_path: Path) -> None:
    for entry in source.entries:
        entry.path.write_bytes(b"no picture")
    with pytest.raises(FeatureCacheError, match="no picture of pictures gave features"):
        cached(open_source(source.root), Victim(), tmp_path / "cache")


def test_feature_beyond_half_precision_is_refused_and_fits_eight_bits(source: PictureSource, tmp_path: Path) -> None:
    with pytest.raises(FeatureCacheError, match="fp16 cannot hold; int8 can"):
        cached(source, Victim(1e6), tmp_path / "cache")
    (features,) = cached(source, Victim(1e6), tmp_path / "cache", stored="int8")
    assert torch.allclose(features.read(range(10)), 1e6 * (pixels(source) - 0.5), atol=1e6 / 127)


MEMORY = '''
import sys, threading, time
from pathlib import Path
import torch
from seepage.data.feature_cache import cache_features
from seepage.data.source import Entry, PictureSource
from seepage.types import LeakHeader

def held():
    """Megabytes of its own: the pages of mapped files, which the system takes back as it likes, are left out."""
    (line,) = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024

root = Path(sys.argv[1])

def run(count):
    entries = tuple(Entry(str(n), root / "0.png") for n in range(count))
    source = PictureSource(f"of {count}", entries, None, root)
    load = lambda file: torch.zeros(3, 8, 8)
    extract = lambda images, layers: {"a": torch.randn(len(images), 64, 32, 32)}
    most, done = [0.0], threading.Event()
    def watch():
        while not done.wait(0.002):
            most[0] = max(most[0], held())
    watching = threading.Thread(target=watch)
    watching.start()
    (found,) = cache_features(source, load, extract, [LeakHeader("v", "0", "a", "")], root / "cache", rows=16)
    for index in range(count):
        found.read([index])
    done.set()
    watching.join()
    return most[0]

small = run(64)
print(run(1024) - small)
'''


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_pictures(source: PictureSource, tmp_path: Path) -> None:
    """1,024 pictures whose features weigh 268 MB as float32, against 64."""
    command = [sys.executable, "-c", MEMORY, str(source.root)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 60
