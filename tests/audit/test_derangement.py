"""Which other picture a picture is taken for, known by hand and by counting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from seepage.audit.derangement import Derangement
from seepage.data.source import Entry


def entries(captions: Sequence[tuple[str, ...]], labels: Sequence[int | None]) -> list[Entry]:
    return [Entry(str(n), Path("x"), label, said) for n, (said, label) in enumerate(zip(captions, labels, strict=True))]


class Counted(list[Entry]):
    """Entries that count how often one of them was looked at."""

    looked = 0

    def __getitem__(self, index: object) -> Entry:  # type: ignore[override]
        self.looked += 1
        return super().__getitem__(index)  # type: ignore[index,return-value]


def ring(known: Sequence[Entry], hashes: Sequence[str] | None = None, seed: int = 0) -> Derangement:
    return Derangement(known, hashes or [entry.id for entry in known], seed, "shuffled")


def test_every_picture_meets_each_other_once_and_never_itself() -> None:
    shuffled = ring(entries([()] * 9, [None] * 9))
    for index in range(9):
        assert sorted(shuffled.others(index)) == [other for other in range(9) if other != index]
    # One step each is one circle through all: no two are taken for the same.
    assert sorted(next(shuffled.others(index)) for index in range(9)) == list(range(9))


def test_copies_are_not_others() -> None:
    shuffled = ring(entries([()] * 4, [None] * 4), ["a", "b", "a", "c"])
    assert sorted(shuffled.others(0)) == sorted(shuffled.others(2)) == [1, 3]


@pytest.mark.parametrize(("having", "expected"), [("captions", [1, 4]), ("label", [0, 2, 4]), ("", [0, 1, 2, 4])])
def test_only_those_that_have_it_in_the_order_of_all(having: str, expected: list[int]) -> None:
    shuffled = ring(entries([(), ("a dog",), (" ",), ("a cat",), ("two",)], [3, None, 0, 1, 1]), seed=5)
    found = list(shuffled.others(3, having))
    assert sorted(found) == expected
    assert found == [other for other in shuffled.others(3) if other in expected]


def test_what_nobody_has_is_looked_for_once_and_not_once_a_picture() -> None:
    known = Counted(entries([()] * 500, [None] * 500))
    shuffled = ring(known, [str(n) for n in range(500)])
    found = {next(shuffled.others(index, "captions"), None) for index in range(500)}
    looked = known.looked
    assert found == {None}
    assert looked < 2 * 500
