"""The script that trained the shipped weights: resumable to the bit, and its record is of the weights that ship."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from seepage import victims
from seepage.victims import cifar

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BUILD = cifar.NETWORKS["cifar_preact_resnet20"]
SHIPPED = ("cifar_resnet20", "cifar_preact_resnet20")


@pytest.fixture(scope="module")
def training() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    yield import_module("cifar_training")
    sys.path.remove(str(BENCHMARKS))


def tinted(pictures: torch.Tensor) -> torch.Tensor:
    return cifar.preprocessing().normaliser()(pictures)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two classes that one colour tells apart, and the others empty."""
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "cifar10_jpeg.zip", "w") as out:
        for split, count in (("train", 16), ("test", 5)):
            for index, name in enumerate(("airplane", "truck")):
                for number in range(count):
                    pixels = generator.integers(0, 60, (32, 32, 3), dtype=np.uint8)
                    pixels[..., 2 * index] += 180
                    stream = io.BytesIO()
                    Image.fromarray(pixels).save(stream, "JPEG")
                    out.writestr(f"{split}/{name}/{number:04}.jpg", stream.getvalue())
    return tmp_path / "cifar10_jpeg.zip"


def test_every_augmented_picture_is_a_crop_mirrored_or_not(training: ModuleType) -> None:
    padded = torch.rand(200, 3, 40, 40)
    made = training.augment(padded, torch.Generator().manual_seed(0))
    assert made.shape == (200, 3, 32, 32)
    seen = []
    for picture, source in zip(made, padded):
        crops = {
            (down, right): source[:, down : down + 32, right : right + 32] for down in range(9) for right in range(9)
        }
        found = [(*place, False) for place, crop in crops.items() if torch.equal(crop, picture)]
        found += [(*place, True) for place, crop in crops.items() if torch.equal(crop.flip(2), picture)]
        assert len(found) == 1
        seen += found
    assert {down for down, _, _ in seen} == {right for _, right, _ in seen} == set(range(9))
    assert 60 < sum(mirrored for _, _, mirrored in seen) < 140


def test_an_interrupted_training_goes_on_to_the_same_bits(
    training: ModuleType, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = training.Recipe(epochs=3, seed=1, batch=8, rate=0.02)
    whole, loss, _ = training.train(BUILD, tinted, recipe, archive, tmp_path / "whole.pt")
    keep = training._keep

    def interrupt(*arguments: object) -> None:
        keep(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_keep", interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            training.train(BUILD, tinted, recipe, archive, tmp_path / "parts.pt")
    monkeypatch.setattr(training, "_keep", keep)
    resumed, same, _ = training.train(BUILD, tinted, recipe, archive, tmp_path / "parts.pt")
    assert same == loss
    fresh = cifar.NETWORKS["cifar_preact_resnet20"]().state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])
        assert not name.endswith("conv1.weight") or not torch.equal(tensor, fresh[name])
    assert training.measure(whole, tinted, archive) == (10, 10)
    with pytest.raises(SystemExit, match="another recipe"):
        training.train(BUILD, tinted, training.Recipe(epochs=4, seed=1, batch=8), archive, tmp_path / "parts.pt")


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_recorded_was_measured_on_the_weights_that_ship(name: str) -> None:
    rows = json.loads((BENCHMARKS / "results" / "zoo.json").read_text("utf-8"))["rows"]
    (row,) = (row for row in rows if row["name"] == name and row["weights"] == f"{name}.safetensors")
    assert row["weights_sha256"] == victims.load(f"zoo/{name}").weights_sha256
    assert row["accuracy"] == row["right"] / row["pictures"]
    table = (BENCHMARKS / "results" / "zoo.md").read_text("utf-8")
    assert f"| {name} | {name}.safetensors | {row['parameters']:,} | {100 * row['accuracy']:.2f} %" in table
