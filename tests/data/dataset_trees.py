"""Tiny trees in the layouts that data sets are published in."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

FLICKR = {"train": ["11_a.jpg", "22_b.jpg", "77_g.jpg"], "dev": ["33_c.jpg"], "test": ["44_d.jpg", "55_e.jpg"]}
UNLISTED = "66_f.jpg"
CAPTIONS = 5
BIRD, MACHINE, TENCH = "n02012849", "n03126707", "n01440764"
# Two classes of ImageNet share the word crane; its classifiers number them 134 and 517, and the tench 0.
NUMBER = {BIRD: 134, MACHINE: 517, TENCH: 0}


def picture(path: Path, shade: int, **options: object) -> Path:
    """Write a picture whose red says which it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path, **options)
    return path


def red(path: Path) -> int:
    """Read back which picture it is, to JPEG's exactness."""
    with Image.open(path) as image:
        value = image.convert("RGB").getpixel((4, 4))
    assert isinstance(value, tuple)
    return round(value[0] / 10)


def sentence(name: str, number: int) -> str:
    return f'Dog {number} of {name}, "running" .'


def lines(path: Path, content: Iterable[str], end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + end for line in content), encoding="utf-8", newline="")
    return path


def flickr_names() -> list[str]:
    return sorted([*(name for names in FLICKR.values() for name in names), UNLISTED])


def flickr_pictures(folder: Path) -> Path:
    for name in flickr_names():
        picture(folder / name, 10 * int(name[0]))
    return folder


def flickr_token(folder: Path, end: str = "\n") -> Path:
    """Write the captions as they were published, those of a file that never was among them."""
    names = [*flickr_names(), "2258277193_586949ec62.jpg.1"]
    rows = [f"{name}#{number}\t{sentence(name, number)}" for name in names for number in range(CAPTIONS)]
    return lines(folder / "Flickr8k.token.txt", rows, end)


def flickr_lists(folder: Path, pattern: str = "Flickr_8k.{}Images.txt", end: str = "\n") -> None:
    for split, names in FLICKR.items():
        lines(folder / pattern.format(split), reversed(names), end)


def flickr_table(path: Path) -> Path:
    """Write the captions as a table, as Kaggle and the research data have them."""
    rows = ["image,caption"]
    for name in flickr_names():
        for number in range(CAPTIONS):
            quoted = sentence(name, number).replace('"', '""')
            rows.append(f'{name},"{quoted}"')
    return lines(path, rows)


def flickr_published(root: Path) -> Path:
    flickr_pictures(root / "Flicker8k_Dataset")
    flickr_token(root)
    flickr_lists(root)
    return root


def coco(root: Path) -> Path:
    """Write both splits; ids are in no order, and captions are spread over the file."""
    for split, numbers in {"train2017": [9, 25, 30], "val2017": [139, 17]}.items():
        for number in numbers:
            picture(root / split / f"{number:012d}.jpg", 10 * (number % 25))
        coco_captions(root, split, numbers)
    return root


def coco_captions(root: Path, split: str, numbers: Iterable[int]) -> Path:
    numbers = list(numbers)
    images = [{"license": 3, "file_name": f"{n:012d}.jpg", "height": 8, "width": 8, "id": n} for n in numbers]
    annotations = [
        {"image_id": n, "id": 100 * n + k, "caption": f"Photo {n},\n number {k}. "}
        for k in range(CAPTIONS)
        for n in numbers
    ]
    path = root / "annotations" / f"captions_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations}))
    return path


def meta(classes: Mapping[int, str]) -> bytes:
    """Return the devkit's meta.mat: a MATLAB struct array, inner nodes of WordNet behind the classes."""
    fields = (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    rows = np.zeros((len(classes) + 1, 1), dtype=[(field, "O") for field in fields])
    for row, (number, wnid) in enumerate([*classes.items(), (1001, "n00001740")]):
        rows[row, 0] = (number, wnid, "some, words", "a gloss", int(number > 1000), np.zeros(0), 0, 1300)
    out = io.BytesIO()
    scipy.io.savemat(out, {"synsets": rows})
    return out.getvalue()


def devkit(root: Path) -> Path:
    """Write the devkit, which counts classes in an order of its own, for four validation pictures."""
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    lines(folder / "ILSVRC2012_validation_ground_truth.txt", ["2", "3", "1", "3"])
    (folder / "meta.mat").write_bytes(meta({1: MACHINE, 2: TENCH, 3: BIRD}))
    return folder


VALIDATION = {1: TENCH, 2: BIRD, 3: MACHINE, 4: BIRD}


def imagenet(root: Path) -> Path:
    for shade, wnid in enumerate((BIRD, MACHINE, TENCH)):
        for number in (10026, 7):
            picture(root / "train" / wnid / f"{wnid}_{number}.JPEG", 60 * shade + 10 * (number == 7), format="JPEG")
    for number in VALIDATION:
        picture(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", 10 * number, format="JPEG")
    devkit(root)
    return root


def tiny_imagenet(root: Path) -> Path:
    """Write train, val and the test pictures, which have no labels."""
    folder = root / "tiny-imagenet-200"
    lines(folder / "wnids.txt", [MACHINE, TENCH, BIRD])
    words = [f"{BIRD}\tcrane", "n00001740\tentity", f"{MACHINE}\tcrane, lifting gear", f"{TENCH}\ttench, Tinca tinca"]
    lines(folder / "words.txt", words)
    for shade, wnid in enumerate((BIRD, MACHINE, TENCH)):
        for number in range(2):
            path = folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG"
            picture(path, 60 * shade + 10 * number, format="JPEG")
        lines(folder / "train" / wnid / f"{wnid}_boxes.txt", [f"{wnid}_0.JPEG\t0\t10\t63\t58"])
    rows = []
    for number, wnid in enumerate((TENCH, MACHINE, BIRD)):
        picture(folder / "val" / "images" / f"val_{number}.JPEG", 10 * number, format="JPEG")
        rows.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62")
    lines(folder / "val" / "val_annotations.txt", rows)
    picture(folder / "test" / "images" / "test_0.JPEG", 0, format="JPEG")
    return folder
