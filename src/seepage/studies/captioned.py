"""Pictures with something to say of each: captions, else the name of a class; and those sentences as vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import minilm
from ..attacks.caprecover import words
from ..data.source import Entry
from ..files import write_tensors
from ..types import Progress
from .material import Part

_AT_ONCE = 512
_KEY = "sentences"


@dataclass(frozen=True)
class Captioned:
    """A part's pictures that can be learned from: `texts` holds all captions, `places` where those of a row lie.

    `classes` is how many labels there are, 0 where no picture has one. Where no picture has captions or a named class,
    there are no texts, and the rows are those with a label.
    """

    part: Part
    texts: tuple[str, ...]
    places: Mapping[int, tuple[int, int]]
    classes: int

    @staticmethod
    def of(part: Part, labelled: bool = False) -> Captioned:
        """Gather captions that are more than white space; a picture without goes by its class.

        With `labelled` the pictures are those with a label, and nothing is said of any.
        """
        texts: list[str] = []
        places: dict[int, tuple[int, int]] = {}
        entries = part.source.entries
        labels = [entries[row].label for row in part.rows]
        known = [label for label in labels if label is not None]
        classes = max(max(known) + 1, len(part.source.classes or ())) if known else 0
        for row in () if labelled else part.rows:
            own = _sentences(entries[row], part.source.classes)
            if own:
                places[row] = (len(texts), len(own))
                texts += own
        kept = part.keeping(lambda entry: bool(_sentences(entry, part.source.classes)))
        if not texts:
            kept = part.keeping(lambda entry: entry.label is not None)
        return Captioned(kept, tuple(texts), places, classes)

    def within(self, classes: int) -> Captioned:
        """Return it without pictures of labels beyond these."""
        return replace(self, part=self.part.keeping(lambda entry: entry.label is None or entry.label < classes))

    @property
    def rows(self) -> tuple[int, ...]:
        """The pictures, by their index in the source."""
        return self.part.rows

    @property
    def spoken(self) -> bool:
        """Whether there is anything to say."""
        return bool(self.texts)

    @property
    def captions(self) -> list[tuple[str, ...]]:
        """Each picture's captions."""
        return [self.texts[start : start + count] for start, count in map(self.places.__getitem__, self.rows)]

    def first(self, row: int) -> int:
        """Return the number of a picture's first caption."""
        return self.places[row][0]

    def label(self, row: int) -> int:
        """Return a picture's label, -1 where it has none."""
        label = self.part.source.entries[row].label
        return -1 if label is None else label

    def deranged(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """Return for each row the next of the others, in a circle, of which something else is said."""
        found = []
        for place, row in enumerate(rows):
            others = [rows[(place + step) % len(rows)] for step in range(1, len(rows))]
            found.append(next((other for other in others if self._said(other) != self._said(row)), others[0]))
        return tuple(found)

    def _said(self, row: int) -> object:
        start, count = self.places.get(row, (0, 0))
        return self.texts[start : start + count] or self.label(row)


@dataclass(frozen=True)
class Sentences:
    """The unit vectors of a part's texts: of those that are alike one, `number` saying which is whose."""

    vectors: Float[Tensor, "d 384"]
    number: Int[Tensor, "n"]

    @staticmethod
    def of(part: Captioned, path: Path, progress: Progress) -> Sentences:
        """Return them, computed once and kept in `path`; a damaged file is computed anew.

        Raises:
            AssetError: the encoder cannot be had.
            OutputError: the file cannot be written.
        """
        distinct = {text: index for index, text in enumerate(dict.fromkeys(part.texts))}
        number = torch.tensor([distinct[text] for text in part.texts])
        digest = hashlib.sha256(json.dumps(list(distinct)).encode()).hexdigest()
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get(_KEY) == digest:
                    return Sentences(file.get_tensor("vectors"), number)
        except (SafetensorError, OSError):
            pass  # not there yet, or damaged
        vectors = _encoded(list(distinct), progress)
        write_tensors(path, {"vectors": vectors}, {_KEY: digest})
        return Sentences(vectors, number)

    def __getitem__(self, texts: Sequence[int]) -> Float[Tensor, "k 384"]:
        """Return the vectors of texts by their numbers in the part."""
        found: Tensor = self.vectors[self.number[list(texts)]]
        return found


def _encoded(texts: Sequence[str], progress: Progress) -> Float[Tensor, "d 384"]:
    encoder, parts = minilm.loaded(), []
    for start in range(0, len(texts), _AT_ONCE):
        parts.append(encoder.encode(texts[start : start + _AT_ONCE]))
        done = min(start + _AT_ONCE, len(texts))
        progress(done / len(texts), f"{done} of {len(texts)} captions as vectors")
    return torch.cat(parts)


def _sentences(entry: Entry, classes: tuple[str, ...] | None) -> tuple[str, ...]:
    own = tuple(text for text in entry.captions if text.strip())
    named = entry.label is not None and classes is not None
    return own or ((words.prompt(classes[entry.label]),) if named else ())  # type: ignore[index]  # named: both known
