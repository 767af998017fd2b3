"""What tests of caption metrics share: pictures without pixels, recoveries of sentences, random sentences."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from seepage.types import Captions, Pictures, Recovery, Status

WORDS = (  # noqa: SIM905 (as it reads)
    "a a a the the two of on in with and is are dog dog man woman girl boy grass beach water ball red black-and-white "
    "running jumps sits plays wearing t-shirt 's n't do -lrb- 5 street snow near big"
).split()


def pictured(*captions: Sequence[str]) -> Pictures:
    """Pictures of no pixels with these reference captions."""
    ids = tuple(str(row) for row in range(len(captions)))
    return Pictures(torch.empty(len(captions), 3, 0, 0), ids, captions=tuple(map(tuple, captions)))


def said(*texts: str) -> Recovery:
    """These captions as an attack would hand them in."""
    value = Captions(texts, torch.zeros(len(texts)))
    return Recovery(value, (Status("stopped"),) * len(texts), torch.zeros(len(texts)).long())


def random_caption(source: random.Random, least: int = 1) -> str:
    return " ".join(source.choices(WORDS, k=source.randint(least, 14)))


def random_corpus(source: random.Random, size: int) -> tuple[list[list[str]], list[str]]:
    """References, one to five a picture, and captions of which many take their words from a reference."""
    references = [[random_caption(source) for _ in range(source.randint(1, 5))] for _ in range(size)]
    captions = []
    for own in references:
        words = source.choice(own).split()
        start = source.randrange(len(words))
        kept = words[start : start + source.randint(1, 8)] if source.random() < 0.7 else []
        captions.append(" ".join([*kept, *random_caption(source).split()[: source.randint(0 if kept else 1, 6)]]))
    return references, captions
