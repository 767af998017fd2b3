"""Pictures in more than one source, and hashes that are remembered."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import dataset_trees as trees
import pytest
from PIL import Image

from seepage import data, pictures
from seepage.data import hashes
from seepage.data.hashes import remembered_sha256
from seepage.pictures import UnreadablePictureError

OLD = 1_600_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour has passed since any file was written."""
    now = hashes.time.time_ns
    monkeypatch.setattr(hashes.time, "time_ns", lambda: now() + 3600 * 10**9)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose bytes were read for a hash."""
    found: list[Path] = []

    def counted(path: Path) -> str:
        found.append(path)
        return pictures.file_sha256(path)

    monkeypatch.setattr(hashes, "file_sha256", counted)
    return found


def folder(root: Path, shades: str) -> data.PictureSource:
    for name in shades:
        trees.picture(root / f"{name}.png", 10 * (ord(name) - ord("a")))
    return data.open_source(root)


def test_sources_without_a_common_picture_are_disjoint(tmp_path: Path) -> None:
    sources = [folder(tmp_path / str(number), names) for number, names in enumerate(("ab", "cd", "ef"))]
    assert data.shared(*sources) == data.shared(*sources, pixels=True) == ()
    data.require_disjoint(*sources)
    # Twice in one source is none of its business.
    shutil.copy(tmp_path / "0" / "a.png", tmp_path / "0" / "again.png")
    data.require_disjoint(data.open_source(tmp_path / "0"), *sources[1:])


def test_the_first_common_picture_is_named_and_all_are_counted(tmp_path: Path) -> None:
    train, val, test = (folder(tmp_path / name, names) for name, names in (("tr", "abc"), ("va", "de"), ("te", "fg")))
    shutil.copy(tmp_path / "tr" / "b.png", tmp_path / "te" / "copy.png")
    shutil.copy(tmp_path / "tr" / "b.png", tmp_path / "va" / "other.png")
    shutil.copy(tmp_path / "va" / "e.png", tmp_path / "te" / "e.png")
    sources = [data.open_source(tmp_path / name) for name in ("tr", "va", "te")]
    found = data.shared(*sources)
    digest = hashlib.sha256((tmp_path / "tr" / "b.png").read_bytes()).hexdigest()
    assert found[0] == data.Shared(digest, ((0, "b.png"), (1, "other.png"), (2, "copy.png")))
    assert [one.places for one in found[1:]] == [((1, "e.png"), (2, "e.png"))]
    with pytest.raises(data.OverlapError) as caught:
        data.require_disjoint(*sources)
    assert str(caught.value) == (
        "2 pictures are in more than one of tr, va, te: 'b.png' of tr and 'other.png' of va have the same SHA-256 "
        f"({digest[:12]}...); leave it out of one of them"
    )
    with pytest.raises(data.OverlapError, match=r"a picture is in more than one of va, te: 'e.png' of va and 'e.png'"):
        data.require_disjoint(sources[1].subset([1]), sources[2])
    data.require_disjoint(train, val, test)


def test_equal_pixels_in_another_file_format(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", "abc"), folder(tmp_path / "two", "d")
    with Image.open(tmp_path / "one" / "c.png") as image:
        image.save(tmp_path / "two" / "c.bmp")
        image.resize((4, 16)).save(tmp_path / "two" / "reshaped.bmp")
    (tmp_path / "two" / "torn.png").write_bytes(b"\x89PNG")
    (tmp_path / "one" / "torn.png").write_bytes(b"\x89PNG cut elsewhere")
    one, other = data.open_source(tmp_path / "one"), data.open_source(tmp_path / "two")
    data.require_disjoint(one, other)
    (found,) = data.shared(one, other, pixels=True)
    assert found.places == ((0, "c.png"), (1, "c.bmp"))
    with pytest.raises(data.OverlapError, match="have the same pixels"):
        data.require_disjoint(one, other, pixels=True)


def test_unreadable_files_equal_none(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "x" / "n", "a"), folder(tmp_path / "y" / "n", "b")
    for source in (one, other):
        source.entries[0].path.unlink()
    data.require_disjoint(one, other)


def test_sources_of_one_name_go_by_their_folders(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "x" / "n", "a"), folder(tmp_path / "y" / "n", "a")
    with pytest.raises(data.OverlapError, match=rf"'a.png' of {tmp_path}/x/n and 'a.png' of {tmp_path}/y/n"):
        data.require_disjoint(one, other)


def test_a_picture_copied_between_published_splits_is_found(tmp_path: Path) -> None:
    root = trees.flickr_published(tmp_path)
    shutil.copy(root / "Flicker8k_Dataset" / "11_a.jpg", root / "Flicker8k_Dataset" / "44_d.jpg")
    splits = [data.open_source(f"flickr8k/{split}@{root}") for split in ("train", "dev", "test")]
    with pytest.raises(data.OverlapError, match=r"'11_a.jpg' of flickr8k/train and '44_d.jpg' of flickr8k/test"):
        data.require_disjoint(*splits)


def test_nothing_is_hashed_to_open_a_data_set(tmp_path: Path, read: list[Path]) -> None:
    trees.coco(tmp_path / "c")
    trees.imagenet(tmp_path / "i")
    trees.tiny_imagenet(tmp_path / "t")
    trees.flickr_published(tmp_path / "f")
    for name in ("coco/val2017@c", "imagenet/val@i", "tiny_imagenet/train@t", "flickr8k/train@f"):
        data.open_source(name.replace("@", f"@{tmp_path}/"))
    assert read == []


@pytest.mark.usefixtures("settled")
def test_a_file_is_hashed_once_over_processes(tmp_path: Path, read: list[Path], cache: Path) -> None:
    folder(tmp_path / "p", "abc")
    names = "späß\n.png", os.fsdecode(b"caf\xe9.png")
    for name in names:
        shutil.copy(tmp_path / "p" / "a.png", tmp_path / "p" / name)
    first = data.open_source(tmp_path / "p").manifest_sha256()
    assert len(read) == 5
    # Another process has the cache alone, in part cut short or mangled.
    hashes._load.cache_clear()
    (kept,) = (cache / "hashes").iterdir()
    with kept.open("ab") as out:
        out.write(b"\xff\x00 nonsense\n12 34 56 78 " + b"a" * 64 + b' "un\nterm')
    assert data.open_source(tmp_path / "p").manifest_sha256() == first
    assert len(read) == 5
    for name in (*names, "b.png"):
        path = tmp_path / "p" / name
        assert remembered_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", ["size", "mtime", "same size and times", "another inode"])
def test_a_changed_file_is_hashed_anew(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    os.utime(path, (OLD, OLD))
    assert remembered_sha256(path) == hashlib.sha256(b"one").hexdigest()
    content = b"longer" if change == "size" else b"two"
    if change == "another inode":
        (tmp_path / "b.png").write_bytes(content)
        os.replace(tmp_path / "b.png", path)
    else:
        path.write_bytes(content)
    if change != "mtime":
        os.utime(path, (OLD, OLD))
    assert remembered_sha256(path) == hashlib.sha256(content).hexdigest()


def test_a_fresh_file_is_not_remembered(tmp_path: Path, read: list[Path], cache: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    assert remembered_sha256(path) == remembered_sha256(path)
    assert len(read) == 2
    assert not cache.exists()


@pytest.mark.usefixtures("settled")
def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[Path]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "file"))
    path = trees.picture(tmp_path / "a.png", 10)
    assert remembered_sha256(path) == remembered_sha256(path) == pictures.file_sha256(path)
    assert read == [path]
    with pytest.raises(UnreadablePictureError, match="cannot be read: No such file"):
        remembered_sha256(tmp_path / "none.png")
