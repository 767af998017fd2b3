"""What is learned from: its parts, and the few that are looked at on the way."""

from __future__ import annotations

from pathlib import Path

import torch

from seepage.data.source import Entry, PictureSource
from seepage.studies.captioned import Captioned
from seepage.studies.material import Part


def test_the_few_that_are_watched_are_of_all_classes() -> None:
    """Folders are listed class by class: of the first pictures no two would be of different classes."""
    entries = tuple(Entry(str(n), Path(f"{n}.png"), label=n // 50) for n in range(200))
    part = Part(PictureSource("sorted", entries, ("a", "b", "c", "d"), Path()), {}, tuple(range(0, 200, 2)), torch.load)
    few = part.few(32)
    assert len(set(few)) == 32
    assert set(few) <= set(part.rows)
    assert {entries[row].label for row in few} == {0, 1, 2, 3}
    assert few == part.few(32)
    assert sorted(part.few(500)) == list(part.rows)
    captioned = Captioned.of(part)
    assert all(
        captioned.label(row) != captioned.label(other) for row, other in zip(few, captioned.deranged(few), strict=True)
    )
