from __future__ import annotations

import pytest

from seepage.attacks.caprecover.words import matches, prompt, synonyms


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A cat sleeps", [3, 0, 0]),
        ("two catfish", [0, 0, 0]),
        ("a Tiger-cat!", [3, 9, 0]),
        ("the goldfish, Carassius auratus", [0, 0, 17]),
        ("", [0, 0, 0]),
        ("...", [0, 0, 0]),
        ("a tiger and a cat", [3, 0, 0]),
    ],
)
def test_the_longest_whole_name_counts(caption: str, expected: list[int]) -> None:
    assert matches(caption, ["cat", "tiger_cat", "goldfish, Carassius auratus"]) == expected


def test_odd_names() -> None:
    assert matches("東京 a 42 straße", ["東京", "42", "STRASSE", "!!", ""]) == [2, 2, 7, 0, 0]
    assert synonyms("tench, Tinca tinca,") == ("tench", "Tinca tinca")
    assert synonyms(",") == (",",)
    assert prompt("tiger_cat, felis") == "a photo of tiger cat"
    assert prompt("!!") == "a photo of !!"
