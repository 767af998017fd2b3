"""COCO, Flickr8k, ImageNet and TinyImageNet, on tiny trees of the layouts they are published in."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import dataset_trees as trees
import pytest
from dataset_trees import BIRD, MACHINE, NUMBER, TENCH, red

from seepage import assets, data, registry
from seepage.types import SeepageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def ids(source: data.PictureSource) -> list[str]:
    return [entry.id for entry in source.entries]


def packed(folder: Path, archive: Path) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as out:
            for path in sorted(folder.rglob("*")):
                out.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix in (".tgz", ".gz") else "w") as out:
            for path in sorted(folder.iterdir()):
                out.add(path, path.name)
    return archive


def test_they_are_listed() -> None:
    assert {"coco", "flickr8k", "imagenet", "tiny_imagenet", "cifar10", "folder"} <= set(registry.names("dataset"))


def test_flickr8k_as_published(tmp_path: Path) -> None:
    root = trees.flickr_published(tmp_path / "f")
    for split, names in trees.FLICKR.items():
        source = data.open_source(f"flickr8k/{split}@{root}")
        assert (source.name, source.classes, source.root) == (f"flickr8k/{split}", None, root / "Flicker8k_Dataset")
        assert ids(source) == sorted(names)
        assert source.known == {"captions"}
        for entry in source.entries:
            assert entry.captions == tuple(trees.sentence(entry.id, number) for number in range(trees.CAPTIONS))
            assert red(entry.path) == int(entry.id[0])
    # The picture in no split is there, the one that was described and never published is not.
    assert ids(data.open_source(f"flickr8k/all@{root}")) == trees.flickr_names()


def layouts(root: Path) -> dict[str, Path]:
    """Write Flickr8k in every layout that is read."""
    published = trees.flickr_published(root / "published")
    packs = root / "packs"
    packs.mkdir()
    trees.flickr_pictures(root / "a" / "Flicker8k_Dataset")
    (root / "a" / "__MACOSX" / "Flicker8k_Dataset").mkdir(parents=True)
    (root / "a" / "__MACOSX" / "Flicker8k_Dataset" / "._11_a.jpg").write_bytes(b"fork")
    packed(root / "a", packs / "Flickr8k_Dataset.zip")
    trees.flickr_token(root / "b")
    trees.flickr_lists(root / "b")
    packed(root / "b", packs / "Flickr8k_text.zip")
    research = root / "research"
    research.mkdir()
    packed(trees.flickr_pictures(root / "c"), research / "flickr8k_images.tar")
    trees.flickr_table(root / "d" / "captions.csv")
    trees.flickr_lists(root / "d", "splits/{}.txt")
    packed(root / "d", research / "flickr8k_text.tgz")
    (research / "other.tar").write_bytes(b"something else")
    trees.flickr_table(trees.flickr_pictures(root / "flat") / "captions.csv")
    trees.flickr_lists(root / "flat", "splits/{}.txt")
    kaggle = root / "kaggle"
    trees.flickr_pictures(kaggle / "Images")
    trees.flickr_table(kaggle / "captions.txt")
    trees.flickr_lists(kaggle / "Flickr8k_text")
    whole = packed(kaggle, root / "whole.zip")
    windows = root / "windows"
    trees.flickr_pictures(windows / "Flickr8k_Dataset")
    text = trees.flickr_token(windows / "Flickr8k_text", end="\r\n")
    text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes())
    trees.flickr_lists(windows / "Flickr8k_text", end="\r\n\r\n")
    return {
        "published": published,
        "packed": packs,
        "research": research,
        "flat": root / "flat",
        "kaggle": kaggle,
        "whole": whole,
        "windows": windows,
    }


def test_flickr8k_is_the_same_in_every_layout(tmp_path: Path) -> None:
    found = layouts(tmp_path)
    for split in ("train", "dev", "test", "all"):
        manifests = {
            kind: data.open_source(f"flickr8k/{split}@{path}").manifest_sha256() for kind, path in found.items()
        }
        assert len(set(manifests.values())) == 1, manifests


def test_kaggles_copy_without_lists_opens_as_a_whole(tmp_path: Path) -> None:
    trees.flickr_pictures(tmp_path / "Images")
    trees.flickr_table(tmp_path / "captions.txt")
    assert len(data.open_source(f"flickr8k/all@{tmp_path}")) == 7
    with pytest.raises(SeepageError, match=r"put Flickr_8k.testImages.txt, out of .*, or write flickr8k/all"):
        data.open_source(f"flickr8k/test@{tmp_path}")


@pytest.mark.parametrize("images", ["", "images"])
def test_coco_as_published(tmp_path: Path, images: str) -> None:
    root = trees.coco(tmp_path)
    if images:
        (root / images).mkdir()
        for split in ("train2017", "val2017"):
            (root / split).rename(root / images / split)
    train, val = (data.open_source(f"coco/{split}@{root}") for split in ("train2017", "val2017"))
    assert ids(train) == ["000000000009.jpg", "000000000025.jpg", "000000000030.jpg"]
    assert ids(val) == ["000000000017.jpg", "000000000139.jpg"]
    assert (val.name, val.classes, val.known) == ("coco/val2017", None, {"captions"})
    for entry in (*train.entries, *val.entries):
        number = int(entry.id.removesuffix(".jpg"))
        assert entry.captions == tuple(f"Photo {number}, number {k}." for k in range(trees.CAPTIONS))
        assert red(entry.path) == number % 25


def test_imagenet_is_labelled_as_its_classifiers_number_it(tmp_path: Path) -> None:
    root = trees.imagenet(tmp_path)
    train = data.open_source(f"imagenet/train@{root}")
    assert train.classes is not None
    assert len(train.classes) == len(set(train.classes)) == 1000
    assert [train.classes[NUMBER[wnid]] for wnid in (TENCH, BIRD, MACHINE)] == ["tench", "crane bird", "crane"]
    assert ids(train)[:2] == [f"{TENCH}/{TENCH}_10026.JPEG", f"{TENCH}/{TENCH}_7.JPEG"]
    for entry in train.entries:
        wnid = entry.id.partition("/")[0]
        assert entry.label == NUMBER[wnid]
        assert red(entry.path) == 6 * (BIRD, MACHINE, TENCH).index(wnid) + entry.id.endswith("_7.JPEG")


def test_imagenet_val_is_labelled_by_the_devkit_or_by_folders(tmp_path: Path) -> None:
    root = trees.imagenet(tmp_path)
    expected = {f"ILSVRC2012_val_{number:08d}.JPEG": NUMBER[wnid] for number, wnid in trees.VALIDATION.items()}
    flat = data.open_source(f"imagenet/val@{root}")
    assert {entry.id: entry.label for entry in flat.entries} == expected
    inside = tmp_path / "inside"
    shutil.move(root / "ILSVRC2012_devkit_t12", inside / "ILSVRC2012_devkit_t12")
    packed(inside, root / "ILSVRC2012_devkit_t12.tar.gz")
    assert data.open_source(f"imagenet/val@{root}").manifest_sha256() == flat.manifest_sha256()
    # A part of the pictures keeps its labels: they go by the number in the name.
    (root / "val" / "ILSVRC2012_val_00000001.JPEG").unlink()
    part = data.open_source(f"imagenet/val@{root}")
    assert {entry.id: entry.label for entry in part.entries} == {k: v for k, v in expected.items() if "01.J" not in k}
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(SeepageError, match=r"no folders of classes.* put the devkit beside it"):
        data.open_source(f"imagenet/val@{root}")
    for number, wnid in trees.VALIDATION.items():
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        (root / "val" / wnid).mkdir(exist_ok=True)
        if number > 1:
            (root / "val" / name).rename(root / "val" / wnid / name)
    folders = data.open_source(f"imagenet/val@{root}")
    assert Counter(entry.label for entry in folders.entries) == {NUMBER[BIRD]: 2, NUMBER[MACHINE]: 1}


@pytest.mark.parametrize("pack", [False, True])
def test_tiny_imagenet_as_published(tmp_path: Path, pack: bool) -> None:
    folder = trees.tiny_imagenet(tmp_path / "t")
    place = packed(folder.parent, tmp_path / "tiny-imagenet-200.zip") if pack else folder.parent
    train, val = (data.open_source(f"tiny_imagenet/{split}@{place}") for split in ("train", "val"))
    # Two classes begin with the same word, so both go by all of theirs.
    assert train.classes == val.classes == ("tench", "crane", "crane, lifting gear")
    assert [sorted((TENCH, BIRD, MACHINE)).index(entry.id.partition("/")[0]) for entry in train.entries] == [
        entry.label for entry in train.entries
    ]
    assert ids(train)[:2] == [f"{TENCH}/{TENCH}_0.JPEG", f"{TENCH}/{TENCH}_1.JPEG"]
    assert [red(entry.path) for entry in train.entries] == [12, 13, 0, 1, 6, 7]
    assert {entry.id: entry.label for entry in val.entries} == {"val_0.JPEG": 0, "val_1.JPEG": 2, "val_2.JPEG": 1}
    assert [red(entry.path) for entry in val.entries] == [0, 1, 2]
    assert data.open_source(f"tiny_imagenet/val@{folder}").manifest_sha256() == val.manifest_sha256()


def test_tiny_imagenet_is_read_where_pull_puts_it(tmp_path: Path) -> None:
    folder = trees.tiny_imagenet(tmp_path / "t")
    asset = assets.DATA["tiny_imagenet"]
    assert asset.filename == "tiny-imagenet-200.zip"
    asset.path.parent.mkdir(parents=True)
    packed(folder.parent, asset.path)
    for split in ("train", "val"):
        named = data.open_source(f"tiny_imagenet/{split}@{folder}")
        assert data.open_source(f"tiny_imagenet/{split}").manifest_sha256() == named.manifest_sha256()


@pytest.mark.research_data
@pytest.mark.slow
def test_the_research_flickr8k(research_data: Path) -> None:
    counts = {"train": 6000, "dev": 1000, "test": 1000, "all": 8091}
    sources = {split: data.open_source(f"flickr8k/{split}@{research_data}") for split in counts}
    assert {split: len(source) for split, source in sources.items()} == counts
    assert {len(entry.captions) for entry in sources["all"].entries} == {5}
    first = sources["all"].entries[0]
    assert first.id == "1000268201_693b08cb0e.jpg"
    assert first.captions[1] == "A girl going into a wooden building ."
    splits = [sources[split] for split in ("train", "dev", "test")]
    assert sum(map(len, splits)) == len(set().union(*(ids(source) for source in splits)))
    data.require_disjoint(*splits)
