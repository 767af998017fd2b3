"""What to say of any picture, against all captions tried one by one."""

from __future__ import annotations

import random

from seepage.metrics.caption import Cider
from seepage.metrics.constants import best_caption, commonest
from seepage.metrics.sentences import Pair


def made_up(count: int) -> list[tuple[str, ...]]:
    """Captions drawn from a small grammar, some words commoner than others."""
    draw = random.Random(0)
    who, what = ["a dog", "a dog", "a man", "two girls"], ["runs", "sits", "is playing", "jumps"]
    where = ["in the grass", "in the grass", "on a beach", "near water", "with a red ball"]
    return [
        tuple(f"{draw.choice(who)} {draw.choice(what)} {draw.choice(where)}" for _ in range(3)) for _ in range(count)
    ]


def test_best_constant_caption_is_that_of_trying_all() -> None:
    captions = made_up(60)
    documents = tuple(captions)

    def score(text: str) -> float:
        scores = Cider().scores([Pair(text, own) for own in captions], documents)
        return sum(scores) / len(scores)

    every = {text for own in captions for text in own}
    found = best_caption(captions)
    assert found in every
    assert score(found) >= max(map(score, every)) - 1e-9


def test_few_pictures_and_none_with_words() -> None:
    assert best_caption([("a cat",), ("a cat", "a dog"), ("a cat on a mat",)]) in ("a cat", "a dog", "a cat on a mat")
    assert best_caption([("...",), ()]) == ""
    assert best_caption([]) == ""


def test_commonest_label_is_the_lowest_of_the_commonest() -> None:
    assert commonest([3, 1, None, 1, 3, 2]) == 1
    assert commonest([None, None]) is None
