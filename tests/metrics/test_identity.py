from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from seepage import registry
from seepage.metrics import IdentityMetric, KnnDistance, Rank1
from seepage.types import Captions, Images, NotRunError, Pictures, Recovery, SeepageError, Status


def judge(images: Tensor) -> Tensor:
    """A fixed projection: ten times the mean of red and of green."""
    return 10 * images.mean(dim=(2, 3))[:, :2]


def coloured(*colours: tuple[float, float]) -> Tensor:
    """One flat picture an embedding, which is ten times the colour."""
    return torch.tensor([(*colour, 0.5) for colour in colours]).view(-1, 3, 1, 1).expand(-1, 3, 4, 4)


def pictures(images: Tensor, *names: str) -> Pictures:
    return Pictures(images, tuple(map(str, range(len(images)))), identities=names)


def recovery(images: Tensor) -> Recovery:
    return Recovery(Images(images), (Status("stopped"),) * len(images), torch.zeros(len(images), dtype=torch.long))


# Embeddings (3, 4), (6, 8), (8, 0), (0, 9).
GALLERY = pictures(coloured((0.3, 0.4), (0.6, 0.8), (0.8, 0.0), (0.0, 0.9)), "anna", "anna", "ben", "cleo")


def test_names() -> None:
    assert registry.get("metric", "knn_distance") is KnnDistance
    assert registry.get("metric", "rank1") is Rank1


def test_the_distance_is_to_the_nearest_of_the_true_person() -> None:
    truth = pictures(coloured((0, 0), (0, 0), (0, 0)), "anna", "ben", "cleo")
    recovered = recovery(coloured((0.0, 0.0), (0.8, 0.3), (1.0, 0.9)))
    found = KnnDistance()(truth, recovered, judge, GALLERY)
    # |(3, 4)| rather than |(6, 8)|; (8, 3) from (8, 0); (10, 9) from (0, 9), though (6, 8) lies nearer.
    assert found.tolist() == pytest.approx([5.0, 3.0, 10.0], rel=1e-5)
    assert found.dtype == torch.float64


def test_the_first_rank_is_by_angle_not_by_distance() -> None:
    truth = pictures(coloured((0, 0), (0, 0), (0, 0)), "anna", "ben", "ben")
    # (0.3, 0.4) has anna's direction; (7.5, 1) lies near ben's; (6, 7.9) hardly does.
    recovered = recovery(coloured((0.03, 0.04), (0.75, 0.1), (0.6, 0.79)))
    assert Rank1()(truth, recovered, judge, GALLERY).tolist() == [1.0, 1.0, 0.0]
    # (3, 0) has the direction of (10, 0), but (2, 1) lies nearer.
    near = pictures(coloured((1.0, 0.0), (0.2, 0.1)), "far", "near")
    seen = recovery(coloured((0.3, 0.0)))
    assert Rank1()(pictures(coloured((0, 0)), "far"), seen, judge, near).tolist() == [1.0]
    assert KnnDistance()(pictures(coloured((0, 0)), "near"), seen, judge, near).item() == pytest.approx(math.sqrt(2))


def test_a_tie_with_somebody_else_is_no_identification() -> None:
    gallery = pictures(coloured((0.4, 0.4), (0.4, 0.4)), "anna", "ben")
    truth = pictures(coloured((0, 0)), "anna")
    assert Rank1()(truth, recovery(coloured((0.4, 0.4))), judge, gallery).tolist() == [0.0]


@pytest.mark.parametrize("metric", [KnnDistance(), Rank1()])
def test_what_cannot_be_judged_is_nan_and_nothing_else_is(metric: IdentityMetric) -> None:
    truth = pictures(coloured(*[(0, 0)] * 4), "anna", "dora", "", "anna")
    images = coloured(*[(0.3, 0.4)] * 4).clone()
    images[3, 0, 0, 0] = torch.inf
    found = metric(truth, recovery(images), judge, GALLERY).tolist()
    assert [math.isnan(value) for value in found] == [False, True, True, True]
    broken = metric(truth, recovery(images), lambda x: judge(x) if x is GALLERY.images else judge(x) / 0, GALLERY)
    assert torch.isnan(broken).all()


def test_pictures_are_clipped_and_the_original_enters_by_name_alone() -> None:
    names = ("anna", "ben")
    recovered = recovery(coloured((1.7, -0.5), (0.8, 0.0)))
    values = [
        KnnDistance()(pictures(originals, *names), recovered, judge, GALLERY).tolist()
        for originals in (coloured((0, 0), (0, 0)), coloured((1, 1), (0.3, 0.4)))
    ]
    assert values[0] == values[1]
    # (1.7, -0.5) is (10, 0) once clipped.
    assert values[0] == pytest.approx([math.dist((10, 0), (3, 4)), 0.0], abs=1e-5)


def test_classes_stand_in_for_identities() -> None:
    def classed(images: Tensor, *labels: int, classes: tuple[str, ...] | None) -> Pictures:
        return Pictures(images, tuple(map(str, labels)), torch.tensor(labels), classes)

    gallery = classed(GALLERY.images, 1, 1, 0, -1, classes=("ben", "anna"))
    truth = classed(coloured((0, 0), (0, 0)), 0, -1, classes=("anna",))
    found = KnnDistance()(truth, recovery(coloured((0.0, 0.0), (0, 0))), judge, gallery)
    assert found[0].item() == pytest.approx(5.0)
    assert math.isnan(found[1].item())
    numbered = classed(GALLERY.images, 7, 7, 3, 3, classes=None)
    truth = classed(coloured((0, 0)), 3, classes=None)
    assert Rank1()(truth, recovery(coloured((0.9, 0.0))), judge, numbered).tolist() == [1.0]


@pytest.mark.parametrize("metric", [KnnDistance(), Rank1()])
def test_what_is_missing_is_said(metric: IdentityMetric) -> None:
    truth, recovered = pictures(coloured((0, 0)), "anna"), recovery(coloured((0, 0)))
    with pytest.raises(NotRunError, match=r"--judge face=VICTIM\[:LAYER\]"):
        metric(truth, recovered, None, GALLERY)
    with pytest.raises(NotRunError, match="--gallery"):
        metric(truth, recovered, judge)
    with pytest.raises(SeepageError, match="2 recovered pictures of 1"):
        metric(truth, recovery(coloured((0, 0), (0, 0))), judge, GALLERY)
    with pytest.raises(SeepageError, match="scores recovered pictures, got Captions"):
        metric(truth, Recovery(Captions(("a",), torch.zeros(1)), recovered.status, recovered.passes), judge, GALLERY)


def test_one_person_cannot_be_told_from_nobody() -> None:
    alone = pictures(coloured((0.3, 0.4), (0.5, 0.5)), "anna", "")
    truth, recovered = pictures(coloured((0, 0)), "anna"), recovery(coloured((0, 0)))
    with pytest.raises(NotRunError, match="at least 2 people"):
        Rank1()(truth, recovered, judge, alone)
    assert KnnDistance()(truth, recovered, judge, alone).tolist() == pytest.approx([5.0])
