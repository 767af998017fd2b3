"""The published cells of CapRecover: run end to end on tiny data of the real layout, and said what is absent."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("accelerate")
pytest.importorskip("open_clip")

sys.path[:0] = [str(Path(__file__).parents[1] / "data"), str(Path(__file__).parents[2] / "benchmarks")]

from dataset_trees import coco, coco_captions, picture, tiny_imagenet  # noqa: E402  a helper of other tests
from tiny_language import save_blip2  # noqa: E402

import paper  # noqa: E402  a script of the benchmarks
from seepage import data  # noqa: E402
from seepage.attacks.caprecover import adapter  # noqa: E402


def test_what_is_absent_is_named_and_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = paper.main(["rn50-coco-layer4"], paper.Options(tmp_path, random=True), tmp_path / "results")
    assert [(one.metric, one.published, one.mean) for one in found] == [
        ("bleu1", 0.62, None),
        ("cider", 0.68, None),
        ("cosine", 0.8564, None),
    ]
    assert found[0].absent == "absent: Salesforce/blip2-opt-2.7b, coco/train2017, coco/val2017"
    said = capsys.readouterr().out
    assert "| bleu1, cider, cosine | 0.62, 0.68, 0.8564 | not run | – | absent: Salesforce/blip2-opt-2.7b" in said
    assert (tmp_path / "results" / "paper.md").read_text().count("not run") == 1


def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a tiny BLIP-2 into a hub's cache, and all that is written below the test's own folder."""
    blip2 = tmp_path / "hub" / "models--Salesforce--blip2-opt-2.7b"
    save_blip2(blip2 / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
    (blip2 / "refs").mkdir()
    (blip2 / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    home = tmp_path / "home"
    home.mkdir()
    assets_home = Path(paper.assets.home()) / "assets"
    if assets_home.is_dir():
        (home / "assets").symlink_to(assets_home)
    monkeypatch.setenv("SEEPAGE_HOME", str(home))


@pytest.mark.slow
@pytest.mark.assets
def test_a_cell_runs_end_to_end_on_a_tiny_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The victim's random weights and a tiny BLIP-2 in the hub's cache; everything else is as published."""
    at_home(tmp_path, monkeypatch)
    tree = coco(tmp_path / "data" / "coco")
    random = np.random.default_rng(0)
    for split, numbers in {"train2017": range(1, 31), "val2017": range(40, 44)}.items():
        shutil.rmtree(tree / split)
        (tree / split).mkdir()
        for number in numbers:
            Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(
                tree / split / f"{number:012d}.jpg"
            )
        coco_captions(tree, split, numbers)
    options = paper.Options(tmp_path / "data", steps=2, limit=30, random=True)
    found = paper.main(["rn50-coco-layer4"], options, tmp_path / "results")
    assert [one.absent for one in found] == ["", "", ""]
    assert [one.n for one in found] == [4, 4, 4]
    assert all(one.low <= one.mean <= one.high for one in found)  # type: ignore[operator]  # of one and the same number
    table = (tmp_path / "results" / "paper.md").read_text()
    assert table.count("the victim's weights are random: no result") == 3
    # What was trained on a few pictures is not taken for the whole.
    kept = [path.name for path in (tmp_path / "home" / "training" / "paper").glob("*.safetensors")]
    assert kept == ["rn50-coco-layer4-random-2-steps-30-pictures.safetensors"]


@pytest.mark.slow
@pytest.mark.assets
def test_a_cell_of_labels_runs_end_to_end_on_a_tiny_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions are made of the classes' names, and what is said is matched to them again."""
    at_home(tmp_path, monkeypatch)
    tree = tiny_imagenet(tmp_path / "data" / "tiny_imagenet")
    for place, folder in enumerate(sorted((tree / "train").iterdir())):
        for number in range(2, 12):
            picture(folder / "images" / f"{folder.name}_{number}.JPEG", 60 * place + 5 * number, format="JPEG")
    for number in range(3):  # none that training saw
        picture(tree / "val" / "images" / f"val_{number}.JPEG", 200 + 20 * number, format="JPEG")
    options = paper.Options(tmp_path / "data", steps=2, random=True)
    (found,) = paper.main(["vit-b-32-tiny-imagenet"], options, tmp_path / "results")
    assert (found.metric, found.published, found.absent) == ("top1", None, "")
    assert found.n >= 2
    assert found.mean is not None
    assert 0 <= found.mean <= 1
    (kept,) = (tmp_path / "home" / "training" / "paper").glob("*.safetensors")
    assert adapter.read_header(kept).classes == data.open_source(f"tiny_imagenet/val@{tree.parent}").classes
