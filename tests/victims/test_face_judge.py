"""The face judge of the benchmarks: its network, how its map is learned, how it is measured."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from seepage import victims

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PEOPLE, PICTURES = 20, 10
WHO = torch.arange(PEOPLE).repeat_interleave(PICTURES)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    """Import a benchmark by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def features(seed: int = 0) -> Tensor:
    """Return "200 24": what tells people apart in 8 directions, under nuisance that is far larger in the others."""
    draw = torch.Generator().manual_seed(seed)
    person = torch.randn(PEOPLE, 24, generator=draw)[WHO]
    own = torch.randn(len(WHO), 24, generator=draw)
    scale = torch.cat([torch.full((8,), 0.1), torch.full((16,), 3.0)])
    mixing = torch.linalg.qr(torch.randn(24, 24, generator=draw))[0]
    return (person + own * scale) @ mixing


@torch.no_grad()
def test_the_network_sees_two_stages_and_gives_unit_vectors(benchmark):
    judge, ways = benchmark("face_judge"), benchmark("face_ways")
    victim = victims.load(f"module/{BENCHMARKS}/face_judge.py:network@random")
    assert victim.image_shape == (3, 112, 112)
    model, images = victim.model, torch.rand(2, 3, 112, 112)
    assert torch.allclose(model(images).norm(dim=1), torch.ones(2), atol=1e-5)
    before, views = model.cells(images), ways.views()
    assert before.shape == (2, 3072)
    assert {name: view.shape[1] for name, view in views.items()} == {
        "means": 192, "stage 4": 1280, "stage 5": 1792, "both": 3072,
    }  # fmt: skip
    for weight in model.upper.parameters():
        weight.mul_(0.5)
    after = model.cells(images)
    assert torch.equal(after @ views["stage 4"], before @ views["stage 4"])
    assert not torch.allclose(after @ views["stage 5"], before @ views["stage 5"], rtol=0.01)
    assert judge.name() == f"module/{BENCHMARKS}/face_judge.py:network@{judge.weights()}"


def test_nobody_who_is_judged_was_learned_from(benchmark):
    judge = benchmark("face_judge")
    assert not set(judge.LEARNED) & set(judge.JUDGED)
    assert set(judge.TARGETS) <= set(judge.JUDGED)


def test_whitening_makes_a_persons_own_spread_the_same_in_all_directions(benchmark):
    matrix, shift = benchmark("face_ways").whitening(0.0, features(), WHO)
    found = features().double() @ matrix + shift
    own = found - torch.stack([found[one == WHO].mean(0) for one in range(PEOPLE)])[WHO]
    assert torch.allclose(own.T @ own / len(own), torch.eye(24).double(), atol=1e-4)
    assert found.mean(0).abs().max() < 1e-4


def test_what_is_learned_tells_people_apart(benchmark):
    ways, told_apart = benchmark("face_ways"), benchmark("face_scores").told_apart

    def after(matrix: Tensor, shift: Tensor) -> float:
        found = features().double() @ matrix + shift
        return told_apart(found, found, WHO)[0]

    raw = told_apart(features(), features(), WHO)[0]
    assert raw < 0.75
    assert after(*ways.whitening(1e-3, features(), WHO)) > 0.99
    assert after(*ways.margin(features(), WHO)) > raw + 0.03


def test_told_apart_counts_pairs_in_order(benchmark):
    told_apart = benchmark("face_scores").told_apart
    angles = torch.tensor([0.0, 0.4, 1.0, 1.2])
    clean, who = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 0, 1, 1])
    # One person's pairs are 0.4 and 0.2 apart, those of two people 0.6 and more.
    assert told_apart(clean, clean, who) == (1.0, 1.0)
    # Turned by 0.7 the first two lie beside the second person: 0.6, 0.5, 0.2 and 0.2 of 0.3 to 1.9 decide the pairs.
    turned = torch.stack([(angles + 0.7).cos(), (angles + 0.7).sin()], 1)
    gaps = (angles[:, None] + 0.7 - angles).abs()
    own = [gaps[0, 1], gaps[1, 0], gaps[2, 3], gaps[3, 2]]
    others = [gaps[i, j] for i in range(4) for j in range(4) if who[i] != who[j]]
    share = sum(float(mine < theirs) for mine in own for theirs in others) / 32
    assert 0 < share < 1
    assert told_apart(clean, turned, who)[1] == pytest.approx(share)


def test_a_judge_is_scored_on_every_question(benchmark):
    judged = benchmark("face_scores").judged
    # Each picture is its person's direction and a little of its own; one looks rather like somebody else.
    size = PEOPLE + PICTURES + 1
    looks = torch.eye(size)[WHO] + 0.1 * torch.eye(size)[PEOPLE:-1].repeat(PEOPLE, 1)
    looks[7] = torch.eye(size)[1] + 0.5 * torch.eye(size)[-1]
    pictures = looks.view(PEOPLE, PICTURES, -1)
    found = judged(lambda flat: flat, pictures, pictures)
    assert (found["leave_one_out"]["value"], found["leave_one_out"]["n"]) == (199 / 200, 200)
    assert (found["gallery"]["value"], found["gallery"]["n"]) == (99 / 100, 100)
    assert (found["targets"]["value"], found["targets"]["n"]) == (1.0, 25)
    # It is wrong nine times as a probe; as the only picture of its person it may cost the other nine.
    assert 1 - 18 / 1800 - 1e-6 <= found["one_picture"]["value"] <= 1 - 9 / 1800 + 1e-6
    assert 0.98 < found["in_order"]["value"] < 1
    assert found["own_distance"]["value"] < found["other_distance"]["value"]
    for figure in found.values():
        assert figure["low"] <= figure["value"] <= figure["high"]


def test_copies_are_pictures_and_a_blur_is_as_wide_as_it_says(benchmark):
    copies = benchmark("face_copies")
    images = torch.rand(3, 3, 32, 32)
    for make in (copies.changed, copies.degraded):
        first, again = (make(images, torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.allclose(first, images, atol=0.05)
        assert first.shape == images.shape
        assert 0 <= first.min() <= first.max() <= 1
    point = torch.zeros(1, 3, 33, 33)
    point[..., 16, 16] = 1
    spread = copies.blurred(point, 1.5)[0, 0]
    away = (torch.arange(33) - 16.0).square()
    assert spread.sum().item() == pytest.approx(1, abs=1e-4)
    assert (spread.sum(0) @ away).item() == pytest.approx(1.5**2, rel=0.01)
    assert (spread.sum(1) @ away).item() == pytest.approx(1.5**2, rel=0.01)
