import dataclasses
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seepage import data, registry
from seepage.data.source import UNLABELLED, Entry, PictureSource
from seepage.pictures import UnreadablePictureError, read_picture
from seepage.types import SeepageError


def load(file: object) -> torch.Tensor:
    """A victim's loader that wants 2 x 2."""
    picture = read_picture(file).resize((2, 2))
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255


def source_of(folder: Path, names: str, **known: list[object]) -> PictureSource:
    entries = []
    for i, name in enumerate(names):
        Image.new("RGB", (3, 3), (i, 0, 0)).save(folder / f"{name}.png")
        entries.append(Entry(f"{name}.png", folder / f"{name}.png", **{key: each[i] for key, each in known.items()}))
    return PictureSource("toy", tuple(entries), None, folder)


def ids(source: PictureSource) -> list[str]:
    return [Path(entry.id).stem for entry in source.entries]


def test_the_default_is_four_photographs_on_disk(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    source = data.open_source(None)
    assert source.name == "samples/default"
    assert [entry.id for entry in source.entries] == ["astronaut.png", "chelsea.png", "china.jpg", "coffee.png"]
    sizes = [read_picture(entry.path).size for entry in source.entries]
    assert sizes == [(512, 512), (451, 300), (640, 427), (600, 400)]
    assert source.manifest_sha256() == data.open_source("samples/default").manifest_sha256()
    assert all(len(set(entry.captions)) == 5 for entry in source.entries)


def test_samples_refuse_what_they_lack():
    for text, words in {
        "samples/defalt": "samples has no split 'defalt'; did you mean 'default'",
        "samples": "names no split: write samples/SPLIT",
        "samples/": "names no split",
        "samples/default@/tmp": "leave out '@/tmp'",
        "sample/default": "did you mean 'samples/default'",
        "no-such-thing-anywhere": "data sets: chestxray, cifar10, coco, flickr8k, folder, imagenet, .*, as NAME/SPLIT",
        "": "no folder, picture or data set is called ''",
    }.items():
        with pytest.raises(SeepageError, match=words) as caught:
            data.open_source(text)
        assert "\n" not in str(caught.value)


def test_what_exists_goes_before_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("samples/default").mkdir(parents=True)
    Image.new("L", (1, 1)).save("samples/default/mine.png")
    assert ids(data.open_source("samples/default")) == ["mine"]
    assert len(data.open_source(None)) == 4
    Path("a@b").mkdir()
    Image.new("L", (1, 1)).save("a@b/c.png")
    assert ids(data.open_source("a@b")) == ["c"]
    with pytest.raises(SeepageError, match="did you mean 'samples'"):
        data.open_source("sampels")


def test_a_data_set_gets_its_split_and_path(monkeypatch):
    asked = []

    def toy(split: str, path: Path | None) -> PictureSource:
        asked.append((split, path))
        return PictureSource("toy", (), None, Path())

    registry.names("dataset")
    monkeypatch.setitem(registry._components["dataset"], "toy", toy)
    for text in ("toy/test", "toy/val2017@/x/y", "toy/a/b@c@d", "toy/test@~/x"):
        data.open_source(text)
    home = Path.home() / "x"
    assert asked == [("test", None), ("val2017", Path("/x/y")), ("a/b", Path("c@d")), ("test", home)]


def test_a_single_file_whatever_its_name(tmp_path):
    Image.new("RGB", (2, 2), "red").save(tmp_path / "photo", format="PNG")
    source = data.open_source(tmp_path / "photo")
    assert [(entry.id, entry.path) for entry in source.entries] == [("photo", tmp_path / "photo")]
    assert load(source.entries[0].path)[0].min() == 1


def test_the_manifest_covers_what_results_depend_on(tmp_path):
    base = source_of(tmp_path, "abc", label=[0, 1, None], captions=[("x",), (), ()], identity=["p", None, None])
    before = base.manifest_sha256()
    first, *rest = base.entries
    changes = {"id": "z.png", "label": 2, "captions": ("y",), "identity": "q"}
    others = [
        dataclasses.replace(base, entries=(dataclasses.replace(first, **{key: value}), *rest)).manifest_sha256()
        for key, value in changes.items()
    ]
    others += [base.subset([1, 0, 2]).manifest_sha256(), base.limit(2).manifest_sha256()]
    others += [dataclasses.replace(base, classes=("u", "v", "w")).manifest_sha256()]
    Image.new("RGB", (3, 3), (9, 0, 0)).save(tmp_path / "a.png")
    afresh = dataclasses.replace(base, entries=tuple(dataclasses.replace(entry) for entry in base.entries))
    others += [afresh.manifest_sha256()]
    assert len({before, *others}) == 1 + len(others)
    assert base.manifest_sha256() == before


def test_the_manifest_does_not_depend_on_the_place(tmp_path):
    (tmp_path / "one").mkdir()
    source_of(tmp_path / "one", "abc")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (data.open_source(tmp_path / name) for name in ("one", "two"))
    assert one.manifest_sha256() == two.manifest_sha256()


def test_a_limit_takes_labels_in_turn_and_nests(tmp_path):
    source = source_of(tmp_path, "abcdef", label=[0, 0, 0, 1, 1, 2])
    assert ids(source.limit(3)) == ["a", "d", "f"]
    assert ids(source.limit(4)) == ["a", "b", "d", "f"]
    assert ids(source.limit(5)) == ["a", "b", "d", "e", "f"]
    assert ids(source.limit(100)) == list("abcdef")
    assert ids(source_of(tmp_path, "abcdef").limit(2)) == ["a", "b"]
    for n in (0, -1):
        with pytest.raises(SeepageError, match="leaves no picture"):
            source.limit(n)


def test_a_subset_keeps_the_order_asked_for(tmp_path):
    assert ids(source_of(tmp_path, "abc").subset([2, 0])) == ["c", "a"]


def test_hashes_come_with_entries_even_of_files_that_are_gone(tmp_path):
    source = source_of(tmp_path, "ab")
    assert len(source.entries[0].file_sha256) == 64
    os.remove(source.entries[1].path)
    assert source.entries[1].file_sha256 == ""
    assert source.manifest_sha256()


def test_batches_hold_every_picture_once_in_order(tmp_path):
    source = source_of(tmp_path, "abcdefg", label=list(range(7)))
    seen = []
    for batch in data.batches(source, load, 3):
        assert batch.pictures is not None
        assert batch.pictures.images.shape == (len(batch.indices), 3, 2, 2)
        assert batch.pictures.images[:, 0, 0, 0].mul(255).round().tolist() == list(batch.indices)
        assert batch.pictures.labels is not None
        assert batch.pictures.labels.tolist() == list(batch.indices)
        assert batch.pictures.ids == tuple(source.entries[i].id for i in batch.indices)
        seen.append(batch.indices)
    assert seen == [(0, 1, 2), (3, 4, 5), (6,)]
    assert [batch.indices for batch in data.batches(source, load, 2, [5, 1, 5])] == [(5, 1), (5,)]
    with pytest.raises(ValueError, match="at least 1"):
        next(data.batches(source, load, 0))


def test_unreadable_pictures_are_failures_by_name(tmp_path):
    source = source_of(tmp_path, "abcd")
    (tmp_path / "b.png").write_text("no picture")
    (tmp_path / "d.png").unlink()
    first, second, third = data.batches(source, load, 1, [0, 1, 3])
    assert first.failed == {}
    assert second.pictures is None
    assert second.indices == ()
    assert "b.png is no picture" in second.failed[1]
    assert "d.png: there is no such file" in third.failed[3]
    whole = data.load_batch(source, range(4), load)
    assert whole.indices == (0, 2)
    assert whole.failed.keys() == {1, 3}
    assert whole.pictures is not None
    assert whole.pictures.ids == ("a.png", "c.png")


def test_an_error_in_the_loader_itself_is_not_swallowed(tmp_path):
    def broken(file: object) -> torch.Tensor:
        raise RuntimeError("loader")

    with pytest.raises(RuntimeError, match="loader"):
        data.load_batch(source_of(tmp_path, "a"), [0], broken)


def test_what_some_pictures_lack_is_filled_whatever_the_batch(tmp_path):
    source = source_of(
        tmp_path, "abc", label=[None, 4, None], captions=[(), (), ("one", "two")], identity=["p", None, None]
    )
    for batch in data.batches(source, load, 1):
        assert batch.pictures is not None
        (i,) = batch.indices
        assert batch.pictures.labels is not None
        assert batch.pictures.labels.tolist() == [[UNLABELLED], [4], [UNLABELLED]][i]
        assert batch.pictures.captions == [((),), ((),), (("one", "two"),)][i]
        assert batch.pictures.identities == [("p",), ("",), ("",)][i]
    bare = data.load_batch(source_of(tmp_path, "abc"), [0], load).pictures
    assert bare is not None
    assert (bare.labels, bare.captions, bare.identities, bare.classes) == (None, None, None, None)


def test_only_one_batch_is_read_at_a_time(tmp_path):
    source = source_of(tmp_path, "abcdef")
    read = []

    def watched(file: Path) -> torch.Tensor:
        read.append(file.stem)
        return load(file)

    stream = data.batches(source, watched, 2)
    assert read == []
    next(stream)
    assert read == ["a", "b"]


def test_an_unreadable_picture_error_says_which(tmp_path):
    with pytest.raises(UnreadablePictureError, match=r"gone\.png"):
        load(tmp_path / "gone.png")
