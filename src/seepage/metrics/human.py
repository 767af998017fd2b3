"""The ceiling of scores of captions: one human caption of a picture scored against the others."""

from __future__ import annotations

import torch

from ..types import Captions, Pictures, Recovery, SeepageError, Status


def human_ceiling(truth: Pictures, which: int = 0) -> tuple[Pictures, Recovery]:
    """Return pictures whose caption number `which` is handed in as recovered and the others are the truth.

    Any metric of captions takes the two: `metric(*human_ceiling(truth))`. Pictures of fewer than two captions are left
    out. The person has one reference less to meet than an attack, so the ceiling is a little low.

    Raises:
        SeepageError: no picture has two captions.
    """
    captions = truth.captions or ()
    rows = [row for row, texts in enumerate(captions) if len(texts) > 1]
    if not rows:
        raise SeepageError("the human ceiling needs pictures with two captions or more, and none here has them")
    said = tuple(captions[row][which % len(captions[row])] for row in rows)
    others = tuple(_without(captions[row], which % len(captions[row])) for row in rows)
    unsaid = torch.full((len(rows),), torch.nan)
    recovery = Recovery(Captions(said, unsaid), (Status("stopped"),) * len(rows), torch.zeros(len(rows)).long())
    return Pictures(truth.images[rows], tuple(truth.ids[row] for row in rows), captions=others), recovery


def _without(captions: tuple[str, ...], place: int) -> tuple[str, ...]:
    return captions[:place] + captions[place + 1 :]
