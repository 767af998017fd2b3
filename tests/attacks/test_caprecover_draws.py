"""What a step of training sees."""

from __future__ import annotations

import random
from collections import Counter

from seepage.attacks.caprecover.draws import Drawn, draw, draw_alike

COUNTS = [1 + row % 5 for row in range(200)]
LENGTHS = {(row, one): random.Random(f"{row}-{one}").randrange(5, 60) for row in range(200) for one in range(5)}


def alike(step: int, counts: list[int] = COUNTS, size: int = 4) -> Drawn:
    return draw_alike(3, "speak", step, size, counts, lambda row, one: LENGTHS[row, one])


def test_a_step_sees_the_same_every_time() -> None:
    assert alike(7) == alike(7) != alike(8)
    assert draw(3, "align", 7, 4, COUNTS) == draw(3, "align", 7, 4, COUNTS) != draw(4, "align", 7, 4, COUNTS)


def test_pictures_come_once_in_a_pool_and_each_with_a_caption_it_has() -> None:
    seen: list[int] = []
    for step in range(16):
        drawn = alike(step)
        assert len(drawn.rows) == len(drawn.captions) == len(drawn.shares) == 4
        assert all(one < COUNTS[row] for row, one in zip(drawn.rows, drawn.captions, strict=True))
        seen += drawn.rows
    assert len(set(seen)) == len(seen) == 64


def test_captions_of_a_step_are_of_about_one_length() -> None:
    def wide(drawn: Drawn) -> int:
        lengths = [LENGTHS[row, one] for row, one in zip(drawn.rows, drawn.captions, strict=True)]
        return max(lengths) - min(lengths)

    together = [wide(alike(step)) for step in range(64)]
    apart = [wide(draw(3, "speak", step, 4, COUNTS)) for step in range(64)]
    assert sum(together) < sum(apart) / 4


def test_no_picture_and_no_length_is_drawn_more_than_another() -> None:
    rows = Counter(row for step in range(800) for row in alike(step).rows)
    # 3,200 draws of 200 pictures: 16 each, and rarely 8 more or fewer.
    assert len(rows) == 200
    assert min(rows.values()) > 4
    assert max(rows.values()) < 32
    shares = [one for step in range(200) for one in alike(step).shares]
    assert 0.4 < sum(shares) / len(shares) < 0.6


def test_few_pictures_are_all_drawn() -> None:
    assert sorted(alike(0, [2, 2, 2]).rows) == [0, 1, 2]
    assert len({*alike(4, [2] * 8).rows, *alike(5, [2] * 8).rows}) == 8
