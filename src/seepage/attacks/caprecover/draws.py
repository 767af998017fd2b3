"""Which pictures and which of their captions a step of training sees: the same for the same seed, stage and step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ... import seeding

_POOL = 16
"""So many steps share out the pictures drawn for them by the length of their captions."""


@dataclass(frozen=True)
class Drawn:
    """One step's pictures by place, no two alike; of each the place of one caption, and a share to show it by."""

    rows: tuple[int, ...]
    captions: tuple[int, ...]
    shares: tuple[float, ...]


def draw(seed: int, stage: str, step: int, size: int, counts: Sequence[int]) -> Drawn:
    """Return `size` pictures, each with one of its captions, of which there are `counts`."""
    generator = seeding.generator(seed, "fit", stage, step)
    rows = torch.randperm(len(counts), generator=generator)[:size].tolist()
    which = torch.rand(len(rows), generator=generator).tolist()
    how = torch.rand(len(rows), generator=generator).tolist()
    captions = tuple(int(share * max(counts[row], 1)) for row, share in zip(rows, which, strict=True))
    return Drawn(tuple(rows), captions, tuple(how))


def draw_alike(
    seed: int, stage: str, step: int, size: int, counts: Sequence[int], length: Callable[[int, int], int]
) -> Drawn:
    """Return `size` pictures whose captions are about as long as each other, by `length` of a picture's caption.

    A language model computes every caption of a batch to the end of the longest. The pictures of some steps are drawn
    at once, shared out by the length of what is said of them, and come in any order: each is as likely as any other.
    """
    pool = max(min(_POOL, len(counts) // size), 1)
    group, place = divmod(step, pool)
    whole = draw(seed, stage, group, size * pool, counts)
    order = sorted(range(len(whole.rows)), key=lambda one: length(whole.rows[one], whole.captions[one]))
    turn = int(torch.randperm(pool, generator=seeding.generator(seed, "fit", stage, "order", group))[place])
    kept = order[turn * size : (turn + 1) * size]
    parts = (tuple(part[one] for one in kept) for part in (whole.rows, whole.captions, whole.shares))
    return Drawn(*parts)  # type: ignore[arg-type]  # in the fields' order
