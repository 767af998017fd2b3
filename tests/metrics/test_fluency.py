"""Repetition, variety and the human ceiling."""

from __future__ import annotations

import csv
import io
import math
import tarfile
from pathlib import Path

import pytest
import torch
from captions_at_hand import pictured, said

from seepage import registry
from seepage.metrics import Bleu1, Cider, RougeL, beside_human, fluency_of, human_ceiling
from seepage.metrics.fluency import distinct, repetition
from seepage.types import SeepageError


def test_repetition_counts_pairs_that_stood_before() -> None:
    assert repetition("a dog and a dog and a cat") == pytest.approx(1 - 4 / 7)
    assert repetition("a dog runs on grass") == 0
    assert repetition("dog " * 101) == pytest.approx(0.99)
    assert repetition("dog") == repetition("") == 0


def test_distinct_is_taken_over_the_set() -> None:
    captions = ["a dog runs", "a dog sits"]
    assert distinct(captions, 1) == pytest.approx(4 / 6)
    assert distinct(captions, 2) == pytest.approx(3 / 4)
    assert math.isnan(distinct(["", "dog"], 2))


def test_fluency_of_a_set() -> None:
    found = fluency_of(["a dog a dog", "", "the cat"])
    assert (found.words, found.empty) == (pytest.approx(2), pytest.approx(1 / 3))
    assert found.repetition == pytest.approx((1 - 2 / 3) / 3)
    assert (found.distinct1, found.distinct2) == (pytest.approx(4 / 6), pytest.approx(3 / 4))
    assert math.isnan(fluency_of([]).words)


def test_distinct_counts_a_captions_own_pairs_and_those_of_all_together() -> None:
    metric = registry.build("metric", "distinct")
    recovery = said("a dog a dog", "", "a dog runs")
    values = metric(pictured([], [], []), recovery)
    assert values.tolist() == pytest.approx([2 / 3, 0.0, 1.0])
    # "a dog" three times, "dog a" and "dog runs" once.
    assert metric.corpus(pictured([], [], []), recovery) == pytest.approx(3 / 5)
    assert registry.build("metric", "distinct:length=1").corpus(pictured([], []), said("a a", "a b")) == 0.5
    assert metric.corpus(pictured([]), said("dog")) is None
    with pytest.raises(SeepageError, match="length is at least 1, got 0"):
        registry.build("metric", "distinct:length=0")


def test_repetition_is_a_metric_that_reads_no_reference() -> None:
    values = registry.build("metric", "repetition")(pictured([], [], []), said("a dog a dog", "", "a dog"))
    assert values.tolist() == pytest.approx([1 - 2 / 3, 0, 0])
    assert values.dtype == torch.float64


def test_human_captions_stand_beside_as_many_recovered_ones() -> None:
    recovered, human = beside_human(["a dog", "a dog", "a dog"], [["a dog runs", "x"], [], ["the cat sits", "y"]])
    assert recovered == fluency_of(["a dog", "a dog"])
    assert human == fluency_of(["a dog runs", "the cat sits"])


def test_human_ceiling_leaves_one_caption_out() -> None:
    truth = pictured(["a dog", "the cat sits"], ["alone"], [], ["a dog runs", "a dog sits", "no"])
    others, recovery = human_ceiling(truth)
    assert (others.ids, others.captions) == (("0", "3"), (("the cat sits",), ("a dog sits", "no")))
    assert Bleu1()(others, recovery).tolist() == pytest.approx([0, 2 / 3], abs=1e-6)
    _, last = human_ceiling(truth, which=2)
    assert Bleu1()(others, said("a dog", "no")).tolist() == Bleu1()(others, last).tolist()
    with pytest.raises(SeepageError, match="two captions or more"):
        human_ceiling(pictured(["alone"], []))


@pytest.mark.research_data
def test_ceiling_and_constant_on_flickr8k(research_data: Path) -> None:
    """A person is far above the constant caption, on the scale that others report for Flickr8k."""
    with tarfile.open(research_data / "flickr8k_text.tgz") as archive:
        file, split = archive.extractfile("captions.csv"), archive.extractfile("splits/test.txt")
        assert file is not None
        assert split is not None
        captions: dict[str, list[str]] = {}
        for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8")):
            captions.setdefault(row["image"], []).append(row["caption"])
        truth = pictured(*(captions[name] for name in split.read().decode().split()))
    assert len(truth) == 1000
    others, person = human_ceiling(truth)
    constant = said(*["A man in a blue shirt is standing on a rock ."] * 1000)
    assert 0.7 < torch.mean(Cider()(others, person)) < 0.9
    assert 0.05 < torch.mean(Cider()(truth, constant)) < 0.15
    assert Bleu1().corpus(others, person) > 0.6
    assert RougeL()(others, person).mean() > 0.45
