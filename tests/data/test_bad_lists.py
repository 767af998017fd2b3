"""What is wrong with a published data set's files is said in one line that names the file and the place in it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import dataset_trees as trees
import pytest
from dataset_trees import BIRD, MACHINE, TENCH

from seepage import data
from seepage.data.published import LONGEST_CAPTION
from seepage.types import SeepageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))


def refused(name: str) -> str:
    with pytest.raises(SeepageError) as caught:
        data.open_source(name)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert message.startswith(name.partition("@")[0]) or "has no split" in message
    return message


MILLION = "word " * 1_000_000
TOKEN, TEST, CSV = "Flickr8k.token.txt", "Flickr_8k.testImages.txt", "captions.csv"
FIRST = "11_a.jpg#0\tA dog .\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (FIRST + "11_a.jpg#1\t \n", "line 2: the caption is empty"),
        (FIRST + "11_a.jpg#1\n", "line 2: the caption is empty"),
        (
            FIRST + "\n11_a.jpg A cat .\n",
            "line 3: expected NAME.jpg#NUMBER, a tab and a caption, got '11_a.jpg A cat .'",
        ),
        (FIRST + "11_a.jpg#x\tA cat .\n", "line 2: expected NAME.jpg#NUMBER"),
        (FIRST * 2, "line 2: '11_a.jpg#0' was described already, in line 1"),
        (FIRST + f"11_a.jpg#1\t{MILLION}\n", "line 2: a caption has at most 10,000 characters, this one 4,999,999"),
        (FIRST + "../secret.jpg#0\tA dog .\n", "line 2: '../secret.jpg' is no file name"),
        (FIRST + "C:\\x.jpg#0\tA dog .\n", "line 2: 'C:\\\\x.jpg' is no file name"),
        (FIRST.encode() + "11_a.jpg#1\tHündchen .\n".encode("latin-1"), "line 2, is not UTF-8"),
        (FIRST.encode("utf-16"), "line 1, is UTF-16, not UTF-8"),
        ("\n" + FIRST[:-1] + "\0", "line 2, holds a null character"),
        (FIRST.encode("utf-16-le"), "line 1, holds a null character"),
        ("", f"{TOKEN} holds no caption"),
        (b"\x1f\x8b\x08\x00\xff", "line 1, is not UTF-8"),
    ],
)
def test_captions_of_flickr8k(tmp_path: Path, content: str | bytes, words: str) -> None:
    root = trees.flickr_published(tmp_path / "f")
    (root / TOKEN).write_bytes(content.encode() if isinstance(content, str) else content)
    message = refused(f"flickr8k/test@{root}")
    assert f"{root / TOKEN}" in message
    assert words in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("44_d.jpg\n44_d.jpg\n", "line 2: '44_d.jpg' is listed already, in line 1"),
        ("44_d.jpg\n\n77_g.jpg\n", "line 3: '77_g.jpg' is in train too, by .*Flickr_8k.trainImages.txt, line 1$"),
        ("44_d.jpg\nnone.jpg\n", f"line 2: 'none.jpg' has no caption in .*{TOKEN}"),
        ("/etc/passwd\n", "line 1: '/etc/passwd' is no file name"),
        ("..\n", "line 1: '..' is no file name"),
        ("\n \n", f"{TEST} lists no picture"),
        (
            "2258277193_586949ec62.jpg.1\n",
            "line 1: there is no file '2258277193_586949ec62.jpg.1' in .*Flicker8k_Dataset",
        ),
    ],
)
def test_lists_of_flickr8k(tmp_path: Path, content: str, words: str) -> None:
    root = trees.flickr_published(tmp_path / "f")
    (root / TEST).write_text(content)
    message = refused(f"flickr8k/test@{root}")
    assert f"{root / TEST}" in message
    assert re.search(words, message), message


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("image;caption\n", "line 1: expected the header image,caption, got 'image;caption'"),
        ("image,caption\n11_a.jpg,A dog, a cat\n", "line 2: expected two columns, image,caption, got 3"),
        ('image,caption\n11_a.jpg,"A\ndog"\n22_b.jpg,\n', "line 4: the caption is empty"),
        ('image,caption\n11_a.jpg,A\n11_a.jpg,"A dog\n22_b.jpg,B\n', "line 3: no row of a CSV table: unexpected end"),
        ('image,caption\n11_a.jpg,"A" dog\n', "line 2: no row of a CSV table"),
        (f"image,caption\n11_a.jpg,{MILLION}\n", "line 2: no row of a CSV table: field larger"),
        (f"image,caption\n11_a.jpg,{'a' * (LONGEST_CAPTION + 1)}\n", "line 2: a caption has at most 10,000"),
        ("image,caption\n../x.jpg,A dog\n", "line 2: '../x.jpg' is no file name"),
        ("image,caption\n", "holds no caption"),
    ],
)
def test_a_table_of_captions(tmp_path: Path, rows: str, words: str) -> None:
    root = trees.flickr_published(tmp_path / "f")
    (root / TOKEN).unlink()
    (root / CSV).write_text(rows, newline="")
    message = refused(f"flickr8k/test@{root}")
    assert f"{root / CSV}" in message
    assert words in message


def test_flickr8k_with_parts_missing(tmp_path: Path) -> None:
    assert "fetch Flickr8k_Dataset.zip and Flickr8k_text.zip (github.com/jbrownlee" in refused("flickr8k/test")
    assert "there is no /no/such: fetch" in refused("flickr8k/test@/no/such")
    assert "flickr8k has no split 'tset'; did you mean 'test'" in refused("flickr8k/tset@/no/such")
    root = trees.flickr_published(tmp_path / "f")
    (root / "Flicker8k_Dataset" / "44_d.jpg").unlink()
    test = f"flickr8k/test@{root}"
    assert f"{root / TEST}, line 2: there is no file '44_d.jpg' in {root / 'Flicker8k_Dataset'}" in refused(test)
    assert re.search(rf"{TOKEN}, line \d+: there is no file '44_d.jpg'", refused(f"flickr8k/all@{root}"))
    assert len(data.open_source(f"flickr8k/train@{root}")) == 3
    shutil.rmtree(root / "Flicker8k_Dataset")
    assert "no picture" in refused(test)
    (root / TOKEN).unlink()
    assert f"{root} holds none of {TOKEN}, captions.csv, captions.txt: fetch" in refused(test)
    (root / "Flickr8k_text.zip").write_bytes(b"PK\x03\x04 cut")
    assert "Flickr8k_text.zip is no folder, tar or zip, or a damaged one" in refused(test)
    assert "is no folder, tar or zip" in refused(f"flickr8k/test@{root / TEST}")


Change = Callable[[dict[str, list[dict[str, object]]]], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held["annotations"][3].pop("caption"), "annotations[3].caption: Field required"),
        (
            lambda held: held["annotations"][3].update(caption=None),
            "annotations[3].caption: Input should be a valid str",
        ),
        (lambda held: held["annotations"][3].update(caption=" \n"), "annotations[3]: the caption is empty"),
        (lambda held: held["annotations"][3].update(caption=MILLION), "annotations[3]: a caption has at most 10,000"),
        (
            lambda held: held["annotations"][3].update(image_id=5),
            "annotations[3]: no picture among the images has the id 5",
        ),
        (
            lambda held: held["annotations"][3].update(image_id="17"),
            "annotations[3].image_id: Input should be a valid int",
        ),
        (lambda held: held["images"][1].update(file_name="../../x.jpg"), "images[1]: '../../x.jpg' is no file name"),
        (lambda held: held["images"][1].update(file_name="x.jpg"), "images[1]: there is no file 'x.jpg' in "),
        (
            lambda held: held["images"][1].update(file_name="000000000139.jpg"),
            "images[1]: '000000000139.jpg' is listed alr",
        ),
        (lambda held: held["images"][1].update(id=139), "images[1]: the id 139 is that of '000000000139.jpg' already"),
        (
            lambda held: held["annotations"].clear(),
            "images[0]: '000000000139.jpg' has no caption among the annotations",
        ),
        (lambda held: held["images"].clear(), "annotations[0]: no picture among the images has the id"),
        (lambda held: held.pop("images"), "images: Field required; expected {"),
        (lambda held: held.update(images=[], annotations=[]), "lists no image"),
        (lambda held: held.update(images={"a": {}}), "images: Input should be a"),
    ],
)
def test_annotations_of_coco(tmp_path: Path, change: Change, words: str) -> None:
    path = trees.coco(tmp_path) / "annotations" / "captions_val2017.json"
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))
    message = refused(f"coco/val2017@{tmp_path}")
    assert str(path) in message
    assert words in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Invalid JSON"),
        (b'{"images": [', "Invalid JSON: EOF while parsing .* at line 1 column"),
        (b"[1]", "expected {"),
        (b"[" * 100_000, "Invalid JSON: recursion limit"),
        (b'{"images": [{"id": 1, "file_name": "\\ud800"}], "annotations": []}', "Invalid JSON"),
        (b'{"images":\n "H\xfcndchen"}', "line 2, is not UTF-8"),
        (b"\xff\xfe{\0}\0", "line 1, is UTF-16"),
    ],
)
def test_a_file_that_is_no_annotation_of_coco(tmp_path: Path, content: bytes, words: str) -> None:
    path = trees.coco(tmp_path) / "annotations" / "captions_val2017.json"
    path.write_bytes(content)
    message = refused(f"coco/val2017@{tmp_path}")
    assert str(path) in message
    assert re.search(words, message), message


def test_coco_with_parts_missing(tmp_path: Path) -> None:
    fetch = "fetch images.cocodataset.org/zips/val2017.zip and images.cocodataset.org/annotations/annotations_trainval"
    assert fetch in refused("coco/val2017")
    assert "there is no /no/such" in refused("coco/val2017@/no/such")
    assert "coco has no split 'test2017'" in refused("coco/test2017@/no/such")
    trees.coco(tmp_path)
    (tmp_path / "annotations" / "captions_val2017.json").unlink()
    assert f"{tmp_path} has no annotations/captions_val2017.json: fetch" in refused(f"coco/val2017@{tmp_path}")
    shutil.rmtree(tmp_path / "val2017")
    assert f"{tmp_path} has no folder val2017: fetch" in refused(f"coco/val2017@{tmp_path}")


def test_imagenet(tmp_path: Path) -> None:
    for split, words in {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_devkit_t12.tar.gz"}.items():
        assert re.search(f"imagenet/{split} needs its files: fetch .*{words}", refused(f"imagenet/{split}"))
    assert "imagenet has no split 'test'; known: train, val" in refused("imagenet/test@/no")
    root = trees.imagenet(tmp_path / "i")
    truth = root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    good, val = truth.read_text(), f"imagenet/val@{root}"
    for content, words in {
        "2\n3\ntwo\n3\n": "line 3: expected the number of a class in meta.mat, got 'two'",
        "2\n-3\n": "line 2: expected the number of a class",
        "2\n1000\n": "line 2: expected the number of a class in meta.mat, got '1000'",
        "2\n1001\n": "line 2: class 1001 is 'n00001740', none of ImageNet-1K",
        "2\n3\n": "ILSVRC2012_val_00000003.JPEG has no line in .*ground_truth.txt, which has 2",
        "": "ILSVRC2012_val_00000001.JPEG has no line",
    }.items():
        truth.write_text(content)
        assert re.search(words, refused(val))
    truth.write_text(good)
    trees.picture(root / "val" / "mine.png", 1)
    assert "mine.png is not named as published, ILSVRC2012_val_00000001.JPEG" in refused(val)
    (root / "val" / "mine.png").unlink()
    (truth.parent / "meta.mat").write_bytes(b"MATLAB 5.0 MAT-file" * 20)
    assert "meta.mat is no list of ImageNet's classes" in refused(val)
    trees.picture(root / "train" / "n01440765" / "x.JPEG", 1)
    assert re.search("n01440765 is no folder of a class.*; did you mean 'n0144", refused(f"imagenet/train@{root}"))
    shutil.rmtree(root / "train" / "n01440765")
    trees.picture(root / "train" / "x.JPEG", 1)
    assert "x.JPEG lies in no folder of a class" in refused(f"imagenet/train@{root}")
    shutil.rmtree(root / "train")
    (root / "train" / TENCH).mkdir(parents=True)
    assert "no picture in" in refused(f"imagenet/train@{root}")
    shutil.rmtree(root / "train")
    assert f"{root} has no folder train: fetch" in refused(f"imagenet/train@{root}")


def test_tiny_imagenet(tmp_path: Path) -> None:
    assert "type `seepage pull tiny_imagenet` (248 MB from cs231n.stanford.edu)" in refused("tiny_imagenet/val")
    assert "no; expected tiny-imagenet-200.zip or the folder it unpacks to" in refused("tiny_imagenet/val@/no")
    assert "tiny_imagenet has no split 'test'; known: train, val" in refused("tiny_imagenet/test@/no")
    assert "holds no wnids.txt: `seepage pull tiny_imagenet`" in refused(f"tiny_imagenet/val@{tmp_path}")
    root = trees.tiny_imagenet(tmp_path / "t")
    val, train = f"tiny_imagenet/val@{root}", f"tiny_imagenet/train@{root}"
    annotations = root / "val" / "val_annotations.txt"
    row = f"val_0.JPEG\t{BIRD}\t0\t0\t9\t9\n"
    for path, content, name, words in (
        (annotations, row * 2, val, "line 2: 'val_0.JPEG' is listed already, in line 1"),
        (annotations, row + "val_1.JPEG\tn1\t0\n", val, "line 2: 'n1' is none of the 3 classes of wnids.txt"),
        (annotations, row + "val_9.JPEG" + row[10:], val, "line 2: there is no file 'val_9.JPEG' in .*images; did you"),
        (annotations, "../val_0.JPEG" + row[10:], val, r"line 1: '\.\./val_0.JPEG' is no file name"),
        (annotations, "val_0.JPEG " + BIRD, val, "line 1: expected NAME.JPEG, a tab, the WordNet id of its class"),
        (annotations, "", val, "lists no picture"),
        (root / "wnids.txt", f"{BIRD}\n{BIRD}\n", val, f"line 2: '{BIRD}' is listed already, in line 1"),
        (root / "wnids.txt", f"{BIRD}\n../{TENCH}\n", train, "line 2: .* is no file name"),
        (
            root / "wnids.txt",
            f"{BIRD}\nn2\n",
            train,
            "'n2' of .*wnids.txt has no folder",
        ),
        (root / "wnids.txt", "", val, "lists no class"),
        (root / "words.txt", f"{BIRD} crane\n", val, "line 1: expected a WordNet id, a tab and words"),
        (root / "words.txt", f"{BIRD}\tcrane\n", val, "words.txt has no words for the class"),
    ):
        good = path.read_bytes()
        path.write_text(content)
        message = refused(name)
        assert str(root) in message
        assert re.search(words, message), message
        path.write_bytes(good)
    shutil.rmtree(root / "train" / MACHINE)
    assert f"'{MACHINE}' of {root / 'wnids.txt'} has no folder in {root / 'train'}" in refused(train)
    annotations.unlink()
    assert "holds no val/val_annotations.txt" in refused(val)
