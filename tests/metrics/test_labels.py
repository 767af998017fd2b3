"""top1, top5: labels matched by name, ties against, judges of recovered pictures; nll, nll_gap read what is carried."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from seepage import registry
from seepage.metrics import Nll, NllGap, Top1, Top5
from seepage.metrics.label import own_columns, strangers
from seepage.types import Captions, Images, Labels, NotRunError, Pictures, Recovery, SeepageError, Status

NAMES = ("cat", "dog", "bird", "fish", "fox", "owl")


def truth(*labels: int, classes: tuple[str, ...] | None = NAMES) -> Pictures:
    images = torch.zeros(len(labels), 3, 4, 4)
    return Pictures(images, tuple(map(str, range(len(labels)))), torch.tensor(labels), classes)


def recovered(value: Images | Labels | Captions, count: int) -> Recovery:
    return Recovery(value, (Status("stopped"),) * count, torch.zeros(count, dtype=torch.long))


def named(scores: Tensor, classes: tuple[str, ...] | None = NAMES) -> Recovery:
    return recovered(Labels(scores, classes), len(scores))


def test_names_and_reading() -> None:
    for name, metric in (("top1", Top1), ("top5", Top5)):
        assert registry.get("metric", name) is metric
        assert metric.reads == (Labels, Images)
        assert metric.perfect == 1
    assert registry.get("metric", "nll") is Nll
    assert registry.get("metric", "nll_gap") is NllGap


def test_against_ranks_counted_by_hand() -> None:
    random = torch.Generator().manual_seed(0)
    scores = torch.rand(50, 6, generator=random)
    labels = torch.randint(0, 6, (50,), generator=random).tolist()
    ranks = [sorted(row.tolist(), reverse=True).index(row[label].item()) for row, label in zip(scores, labels)]
    assert Top1()(truth(*labels), named(scores)).tolist() == [float(rank < 1) for rank in ranks]
    assert Top5()(truth(*labels), named(scores)).tolist() == [float(rank < 5) for rank in ranks]
    assert 0 < sum(rank < 1 for rank in ranks) < 50


def test_columns_are_found_by_name() -> None:
    order = [3, 0, 5, 1, 4, 2]
    said = tuple(NAMES[index].upper() for index in order)
    scores = torch.eye(6)[:, order]
    assert Top1()(truth(*range(6)), named(scores, said)).tolist() == [1.0] * 6
    assert Top1()(truth(1), named(torch.tensor([[0.0, 9.0]]), ("tree", "dog"))).tolist() == [1.0]
    assert Top1()(truth(0), named(torch.tensor([[0.0, 9.0]]), ("tree", "dog"))).tolist() == [0.0]
    assert own_columns([0, 1, -1], ("grey_fox", "owl"), ("Owl", "grey  fox", "grey fox"), 3) == [(1, 2), (0,), None]


def test_columns_of_one_name_are_one_class() -> None:
    scores = torch.tensor([[0.5, 0.4, 0.3]])
    assert Top1()(truth(0, classes=("crane", "owl")), named(scores, ("crane", "crane", "owl"))).item() == 1
    assert Top1()(truth(1, classes=("crane", "owl")), named(scores, ("crane", "crane", "owl"))).item() == 0


def test_a_tie_counts_against_and_what_is_unknown_is_no_number() -> None:
    scores = torch.zeros(3, 6)
    scores[2, 1] = math.nan
    found = Top1()(truth(2, -1, 1), named(scores))
    assert found[0] == 0
    assert found[1:].isnan().all()
    assert Top5()(truth(2), named(torch.zeros(1, 6))).item() == 0


def test_labels_without_names_go_by_their_numbers() -> None:
    assert Top1()(truth(2, classes=None), named(torch.eye(6)[[2]], None)).item() == 1
    assert Top1()(truth(9, classes=None), named(torch.eye(6)[[2]], None)).item() == 0
    assert strangers(NAMES, None, 6) is None
    assert "6 classes" in (strangers(NAMES, None, 5) or "")
    with pytest.raises(NotRunError, match="none of the pictures' classes"):
        Top1()(truth(0), named(torch.eye(6)[[0]], tuple("abcdef")))


def brightest(images: Tensor) -> Tensor:
    """Says which of the three channels is brightest."""
    return images.mean((2, 3))


def test_of_a_recovered_picture_the_judge_says_it() -> None:
    images = torch.zeros(3, 3, 4, 4)
    images[0, 0], images[1, 1], images[2, 2] = 5.0, 0.5, math.nan
    found = Top1()(truth(0, 0, 2, classes=("r", "g", "b")), recovered(Images(images), 3), brightest)
    assert found[:2].tolist() == [1.0, 0.0]
    assert found[2].isnan()
    with pytest.raises(NotRunError, match="judge"):
        Top1()(truth(0), recovered(Images(images[:1]), 1))


def test_a_judges_classes_are_matched_by_name() -> None:
    class Judge:
        classes = ("b", "g", "r")

        def __call__(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)).flip(1)

    images = torch.zeros(2, 3, 4, 4)
    images[:, 0] = 1.0
    found = Top1()(truth(0, 2, classes=("r", "g", "b")), recovered(Images(images), 2), Judge())
    assert found.tolist() == [1.0, 0.0]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(SeepageError, match="2 rows for 1"):
        Top1()(truth(0), named(torch.eye(6)[:2]))
    with pytest.raises(NotRunError, match="with labels"):
        Top1()(Pictures(torch.zeros(1, 3, 4, 4), ("a",)), named(torch.eye(6)[:1]))
    with pytest.raises(SeepageError, match="Captions"):
        Top1()(truth(0), recovered(Captions(("a",), torch.zeros(1)), 1))


def test_likelihoods_are_read_off() -> None:
    said = recovered(Captions(("a", "b"), torch.tensor([-2.0, -0.5])), 2)
    assert Nll()(truth(0, 1), said).tolist() == [2.0, 0.5]
    assert NllGap()(truth(0, 1), said).tolist() == [-2.0, -0.5]
    assert (Nll.higher_means_more_leakage, NllGap.higher_means_more_leakage) == (False, True)
    for metric in (Nll(), NllGap()):
        with pytest.raises(SeepageError, match="2 captions of 1"):
            metric(truth(0), said)
        with pytest.raises(SeepageError, match="Labels"):
            metric(truth(0), named(torch.eye(6)[:1]))
