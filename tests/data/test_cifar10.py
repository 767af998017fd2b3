"""CIFAR-10 by name: the publisher's batches, class folders and archives of either."""

from __future__ import annotations

import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seepage import assets, data
from seepage.data.cifar10 import CLASSES
from seepage.pictures import read_picture
from seepage.types import SeepageError

ROWS = 12
BATCHES = {"test": ["test_batch"], "train": [f"data_batch_{number}" for number in range(1, 6)]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (ROWS, 3072), dtype=np.uint8)


def published(root: Path) -> Path:
    """Write batches as they are published: under Python 2's protocol, text and arrays alone."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for seed, batch in enumerate(BATCHES["test"] + BATCHES["train"]):
        labels = [(seed + row) % 10 for row in range(ROWS)]
        held = {"data": pixels(seed), "labels": labels, "batch_label": batch, "filenames": ["x.png"] * ROWS}
        content = pickle.dumps(held, protocol=2)
        # NumPy 1 wrote what is published, under its own name for the module.
        (folder / batch).write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    return folder


def tarred(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as out:
        out.add(folder, folder.name)
    return archive


def pictures(root: Path) -> Path:
    for split in ("train", "test"):
        for shade, title in enumerate(CLASSES[:3]):
            (root / split / title).mkdir(parents=True)
            Image.new("RGB", (32, 32), (20 * shade, 0, 9)).save(root / split / title / "0007.png")
    return root


def test_batches_give_their_pictures_to_the_bit_and_their_labels(tmp_path: Path) -> None:
    folder = published(tmp_path / "a")
    for split, count, first in (("test", ROWS, 0), ("train", 5 * ROWS, 1)):
        source = data.open_source(f"cifar10/{split}@{tmp_path / 'a'}")
        assert (source.name, source.classes, len(source)) == (f"cifar10/{split}", CLASSES, count)
        numbers = []
        for entry in source.entries:
            title, number = Path(entry.id).parts
            batch, row = divmod(int(Path(number).stem), ROWS)
            assert entry.label == CLASSES.index(title) == (first + batch + row) % 10
            expected = pixels(first + batch)[row].reshape(3, 32, 32).transpose(1, 2, 0)
            assert np.array_equal(np.asarray(read_picture(entry.path)), expected)
            numbers.append(batch * ROWS + row)
        assert sorted(numbers) == list(range(count))
    own = data.open_source(f"cifar10/test@{folder}")
    assert own.manifest_sha256() == data.open_source(f"cifar10/test@{tmp_path / 'a'}").manifest_sha256()


def test_the_publishers_archive_is_read_where_pull_puts_it(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(
        SeepageError, match=r"type `seepage pull cifar10` \(170 MB from www.cs.toronto.edu\), put cifar"
    ):
        data.open_source("cifar10/test")
    asset = assets.DATA["cifar10"]
    asset.path.parent.mkdir(parents=True)
    tarred(published(tmp_path / "a"), asset.path)
    plain = data.open_source(f"cifar10/test@{tmp_path / 'a'}")
    assert data.open_source("cifar10/test").manifest_sha256() == plain.manifest_sha256()
    written = plain.entries[0].path.stat().st_mtime_ns
    assert data.open_source("cifar10/test").entries[0].path.stat().st_mtime_ns == written
    assert cache in plain.entries[0].path.parents


def test_a_pickle_that_names_anything_else_is_refused_unrun(tmp_path: Path) -> None:
    folder = published(tmp_path / "a")
    target = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(target),)

    (folder / "test_batch").write_bytes(pickle.dumps({"data": Evil(), "labels": []}, protocol=2))
    with pytest.raises(SeepageError, match=r"test_batch is no batch of CIFAR-10: it names posix\.mkdir"):
        data.open_source(f"cifar10/test@{folder}")
    assert not target.exists()
    assert len(data.open_source(f"cifar10/train@{folder}")) == 5 * ROWS


def test_class_folders_and_their_archive_are_the_same_pictures(tmp_path: Path) -> None:
    root = pictures(tmp_path / "test" / "files")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as out:
        for path in sorted(root.rglob("*.png")):
            out.write(path, path.relative_to(root))
    plain = data.open_source(f"cifar10/test@{root}")
    assert [entry.id for entry in plain.entries] == [f"{name}/0007.png" for name in CLASSES[:3]]
    assert [entry.label for entry in plain.entries] == [0, 1, 2]
    # The folder above is called test as well, and is none of the split.
    for other in (tmp_path / "x.zip", root / "test", root.parent):
        assert data.open_source(f"cifar10/test@{other}").manifest_sha256() == plain.manifest_sha256()
    assert len(data.open_source(f"cifar10/train@{root}")) == 3
    one = read_picture(plain.entries[2].path).getpixel((0, 0))
    assert one == (40, 0, 9)


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    folder = published(tmp_path / "a")
    good = (folder / "test_batch").read_bytes()
    root = pictures(tmp_path / "b")
    Image.new("RGB", (4, 4)).save(root / "test" / "stray.png")
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "cifar-10-batches-py").mkdir()
    (tmp_path / "few" / "cifar-10-batches-py" / "data_batch_1").write_bytes(good)
    few = tarred(tmp_path / "few" / "cifar-10-batches-py", tmp_path / "few.tgz")
    cut = tarred(folder, tmp_path / "cut.tgz")
    cut.write_bytes(cut.read_bytes()[:-2000])
    for name, words in {
        "cifar10/val": r"cifar10 has no split 'val'; known: test, train",
        f"cifar10/test@{tmp_path}/none": r"there is no .*none; expected cifar-10-python.tar.gz",
        f"cifar10/test@{root}": r"stray.png lies in no folder of a class under test/",
        f"cifar10/train@{root / 'test'}": r"no picture of .*test lies in a folder train",
        f"cifar10/train@{few}": r"few.tgz holds no cifar-10-batches-py/data_batch_2",
        f"cifar10/train@{tmp_path}/few": r"cannot read .*data_batch_2: No such file",
        f"cifar10/test@{cut}": r"cut.tgz is a damaged archive",
    }.items():
        with pytest.raises(SeepageError, match=words) as caught:
            data.open_source(name)
        assert "\n" not in str(caught.value)
    held = pickle.loads(good.replace(b"numpy.core", b"numpy._core"))
    for bad, words in (
        (good[: len(good) // 2], "test_batch is no batch of CIFAR-10"),
        (pickle.dumps(held | {"data": held["data"][:, :5]}, 2), "data is no array of bytes, 12 by 3072"),
        (pickle.dumps(held | {"labels": [10] * ROWS}, 2), "labels are not numbers from 0 to 9"),
    ):
        (folder / "test_batch").write_bytes(bad)
        with pytest.raises(SeepageError, match=words):
            data.open_source(f"cifar10/test@{folder}")
    assert not list((tmp_path / "home" / "pictures").glob("cifar10-*"))


@pytest.mark.research_data
@pytest.mark.slow
def test_the_research_data_is_read(research_data: Path) -> None:
    archive = research_data / "cifar10_jpeg.zip"
    assert len(data.open_source(f"cifar10/train@{archive}")) == 20_000
    source = data.open_source(f"cifar10/test@{archive}")
    assert len(source) == 10_000
    assert sorted(entry.label for entry in source.limit(20).entries) == sorted([*range(10), *range(10)])
    assert read_picture(source.entries[0].path).size == (32, 32)
