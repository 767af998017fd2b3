"""Whether the right caption is found: ranks by hand, ties, chance, and the drawing of candidates."""

from __future__ import annotations

import pytest
import torch
from captions_at_hand import pictured, said
from hypothesis import given
from hypothesis import strategies as st

from seepage.metrics import Recall1, Recall5, Recall10
from seepage.metrics.retrieval import Recall, candidates
from seepage.types import NotRunError, Recovery, Scores, SeepageError, Status


def scored(scores: torch.Tensor, match: list[int]) -> Recovery:
    status = (Status("stopped"),) * len(scores)
    return Recovery(Scores(scores, torch.tensor(match)), status, torch.zeros(len(scores)).long())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("metric", [Recall1(), Recall5(), Recall10()])
def test_recall_counts_who_is_ahead(metric: Recall) -> None:
    scores = torch.arange(20.0).repeat(20, 1)
    found = metric(pictured(*[[]] * 20), scored(scores, list(range(20))))
    assert found.tolist() == [float(20 - match <= metric.within) for match in range(20)]
    assert found.sum() == metric.within


def test_a_tie_counts_against_the_match() -> None:
    scores = torch.zeros(2, 20)
    scores[1, 3] = 1
    assert Recall1()(pictured([], []), scored(scores, [3, 3])).tolist() == [0, 1]
    assert Recall10()(pictured([], []), scored(scores, [3, 3])).tolist() == [0, 1]


def test_scores_that_are_no_numbers() -> None:
    scores = torch.rand(3, 20, generator=seeded())
    scores[0, 5] = torch.nan
    scores[1, 5] = torch.inf
    values = Recall1()(pictured([], [], []), scored(scores, [0, 5, 0]))
    assert values[0].isnan()
    assert values[1] == 1
    assert not values[2].isnan()


@given(st.integers(0, 1000))
def test_chance_finds_its_share(seed: int) -> None:
    scores = torch.rand(4000, 50, generator=seeded(seed))
    found = Recall5()(pictured(*[[]] * 4000), scored(scores, [7] * 4000)).mean()
    assert abs(found - 5 / 50) < 0.03


def test_bad_input_is_one_line() -> None:
    with pytest.raises(NotRunError, match=r"^Recall10 looks among more than 10 candidates, got 10$"):
        Recall10()(pictured([]), scored(torch.zeros(1, 10), [0]))
    with pytest.raises(SeepageError, match=r"^Recall1 reads scores of candidates, got Captions$"):
        Recall1()(pictured([]), said("a dog"))
    with pytest.raises(SeepageError, match=r"^Recall1 got scores of 2 rows for 1 pictures$"):
        Recall1()(pictured([]), scored(torch.zeros(2, 10), [0, 0]))


def test_too_few_captions_to_look_among_are_a_reason() -> None:
    captions = [["a dog"], ["A dog."], [], ["a cat"]]
    assert Recall1().lacks(captions) is None
    assert Recall5().lacks(captions) == "Recall5 looks among the captions of more than 5 pictures, and has 2"


CAPTIONS = [[f"picture number {index}", "another"] for index in range(30)]


def test_candidates_hold_the_own_caption_once_and_differ_in_one() -> None:
    drawn = [candidates(CAPTIONS, picture, seeded(), size=10) for picture in range(30)]
    for picture, (texts, match) in enumerate(drawn):
        assert len(set(texts)) == len(texts) == 10
        assert texts[match] == CAPTIONS[picture][0]
    shared = set.intersection(*(set(texts) for texts, _ in drawn))
    assert len(shared) == 9
    assert {texts for texts, _ in drawn} != {candidates(CAPTIONS, 0, seeded(1), size=10)[0]}


def test_candidates_are_no_two_of_the_same_words() -> None:
    captions = [["A dog."], ["a dog"], [], ["", "The cat"], ["..."]]
    texts, match = candidates(captions, 1, seeded())
    assert len(texts) == 2
    assert texts[match].lower().startswith("a dog")
    with pytest.raises(NotRunError, match="picture 2 has no caption"):
        candidates(captions, 2, seeded())
