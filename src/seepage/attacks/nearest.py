"""The nearest picture of one's own, and what is said of it: what a captioner that writes must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import minilm
from ..registry import register
from ..types import (
    Access,
    Auxiliary,
    Captions,
    Examples,
    Generators,
    Knowledge,
    Leak,
    NotRunError,
    Progress,
    Recoverer,
    Recovers,
    Recovery,
    Shape,
    Status,
)
from .caprecover import adapter as adapters
from .caprecover.attack import CapRecover
from .inversion import refusals
from .learning import Moments
from .networks import SavedAttackError, read, write
from .parameters import within
from .reading import Reading

_MOST = 2048
"""How many numbers of a leak are compared."""


@register("attack", "nearest")
@dataclass(frozen=True)
class Nearest(adapters.FromAdapter):
    """Say of a leak what is said of the attacker's own pictures nearest to it: nothing is written anew.

    The `among` nearest pictures bring all their captions; the answer is the one whose sentence vector (MiniLM) is
    nearest to all of theirs on the mean (Devlin et al., arXiv 1505.04467). `among=1` answers from one picture alone.
    Without an adapter leaks are compared: a grid averaged to at most 2,048 numbers, each channel standardised, by
    cosine. With `adapter=FILE` of `seepage train caprecover` the leak's aligned queries are compared with the mean
    sentence vector of each picture's captions.

    Black-box; recovering takes no pass, and a row is always `stopped`. It has no language model, so a caption's
    likelihood is not known.
    """

    adapter: Path | None = None
    among: int = within(16, least=1)

    recovers: ClassVar[Recovers] = "captions"
    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {"quick": {}, "standard": {}, "full": {}}

    @property
    def access(self) -> Access:
        """Leaks are enough."""
        return "black-box"

    @property
    def auxiliary(self) -> Auxiliary:
        """Captioned pictures of the attacker's own."""
        return "public"

    @property
    def budget(self) -> int:
        """Recovering needs no pass."""
        return 0

    def fit(
        self,
        knowledge: Knowledge,
        generator: torch.Generator,
        *,
        workdir: Path | None = None,
        progress: Progress | None = None,
    ) -> Recoverer:
        """Read the public pictures once; nothing is trained.

        Raises:
            NotRunError: the attacker owns no captioned pictures.
            AdapterError: the adapter cannot be read.
            AssetError: the sentence encoder cannot be had.
        """
        tell = progress or (lambda done, what: None)
        tell(0.0, "reading leaks")
        texts, shape, grids = _captioned(knowledge, self.adapter is None)
        tell(0.5, "captions as vectors")
        vectors = minilm.loaded().encode([text for own in texts for text in own])
        counts = torch.tensor([len(own) for own in texts])
        book = _Book([text for own in texts for text in own], vectors, counts)
        if self.adapter is not None:
            means = torch.stack([part.mean(0) for part in torch.split(vectors, counts.tolist())])
            return NearestRecoverer(self, book, nn.functional.normalize(means, dim=1), None, knowledge)
        moments = Moments()
        moments.add(grids)
        mean, spread = moments.result()
        eye = _Eye(shape, knowledge.image_shape, mean.to(grids), spread.to(grids))
        return NearestRecoverer(self, book, eye.unit(grids), eye, knowledge)

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        """Return the recoverer that was saved to `path`.

        Raises:
            SavedAttackError: the file holds none of this attack's.
            AdapterError: the adapter that it names cannot be read.
        """
        tensors, said = read(path)
        try:
            attack = Nearest(None if said["adapter"] is None else Path(said["adapter"]), said["among"])
            book = _Book(list(said["texts"]), tensors["vectors"], tensors["counts"])
            eye = None
            if attack.adapter is None:
                shapes = tuple(said["leak_shape"]), tuple(said["image_shape"])
                eye = _Eye(*shapes, tensors["mean"], tensors["spread"])
            return NearestRecoverer(attack, book, tensors["keys"], eye, knowledge)
        except (KeyError, TypeError) as error:
            raise SavedAttackError(f"{path} holds no nearest captions: {error}") from error


@dataclass(frozen=True)
class _Book:
    """All captions with their unit vectors; of picture i there are `counts[i]`, one picture's after another's."""

    texts: list[str]
    vectors: Float[Tensor, "n 384"]
    counts: Tensor

    def agreed(self, pictures: Tensor) -> str:
        """Return the caption, of those of some pictures, that is nearest to all of them on the mean."""
        ends = self.counts.cumsum(0)
        places = torch.cat([torch.arange(int(ends[i] - self.counts[i]), int(ends[i])) for i in pictures.tolist()])
        found = self.vectors[places]
        return self.texts[int(places[(found @ found.mean(0)).argmax()])]


@dataclass(frozen=True)
class _Eye:
    """How leaks are compared where there is no adapter."""

    leak_shape: Shape
    image_shape: tuple[int, int, int]
    mean: Tensor
    spread: Tensor

    def unit(self, grids: Float[Tensor, "b c r s"]) -> Float[Tensor, "b n"]:
        """Return grids, standardised, as unit vectors."""
        return nn.functional.normalize(((grids - self.mean) / self.spread).flatten(1), dim=1)

    def __call__(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b n"]:
        """Return leaks as unit vectors."""
        return self.unit(Reading(self.leak_shape, self.image_shape, _MOST)(features).cpu())


class NearestRecoverer(Recoverer):
    """The attacker's own pictures, each with a key that leaks are compared with, and their captions."""

    def __init__(
        self, attack: Nearest, book: _Book, keys: Float[Tensor, "m n"], eye: _Eye | None, knowledge: Knowledge
    ) -> None:
        self.attack, self.book, self.keys, self.eye = attack, book, keys, eye
        self.reader = (
            None if attack.adapter is None else CapRecover(adapter=attack.adapter).load(attack.adapter, knowledge)
        )
        if self.reader is not None and not adapters.read_header(attack.adapter).aligned:  # type: ignore[arg-type]
            raise NotRunError("the adapter was never aligned to sentences: nothing can be compared by it")

    @torch.no_grad()
    def recover(self, leak: Leak, generators: Generators) -> Recovery:
        """Return the caption agreed on by each row's nearest pictures; nothing is drawn."""
        shape = tuple(leak.features.shape[1:]) if self.eye is None else self.eye.leak_shape
        refused = refusals(leak.features.float(), shape)
        texts = [""] * len(leak)
        for row, reason in enumerate(refused):
            if reason is None:
                near = self._likeness(leak.rows(row, row + 1))[0]
                texts[row] = self.book.agreed(near.topk(min(self.attack.among, len(near))).indices.sort().values)
        status = tuple(reason or Status("stopped", "read") for reason in refused)
        return self._said(texts, status)

    def prior(self, n: int, generators: Generators) -> Recovery:
        """Return the caption nearest to all captions: what to say of a picture of which nothing is known."""
        text = self.book.agreed(torch.arange(len(self.book.counts)))
        return self._said([text] * n, (Status("stopped", "no leak"),) * n)

    def constant(self, n: int) -> Recovery | None:
        """Return the adapter's constant caption, where there is one."""
        return None if self.reader is None else self.reader.constant(n)

    def score(self, leak: Leak, candidates: Sequence[str] | Tensor) -> Float[Tensor, "b k"] | None:
        """Rank candidates as the adapter does; None without one."""
        return None if self.reader is None else self.reader.score(leak, candidates)

    def save(self, path: Path) -> None:
        """Write keys and captions, and the adapter's path."""
        attack = asdict(self.attack)
        attack["adapter"] = None if attack["adapter"] is None else str(attack["adapter"])
        tensors = {"keys": self.keys, "vectors": self.book.vectors, "counts": self.book.counts}
        said: dict[str, Any] = {**attack, "texts": self.book.texts}
        if self.eye is not None:
            tensors |= {"mean": self.eye.mean, "spread": self.eye.spread}
            said |= {"leak_shape": self.eye.leak_shape, "image_shape": self.eye.image_shape}
        write(path, tensors, said)

    def _likeness(self, leak: Leak) -> Float[Tensor, "b m"]:
        if self.reader is None:
            assert self.eye is not None
            return self.eye(leak.features) @ self.keys.T
        found = self.reader.score(leak, self.keys)
        assert found is not None  # it is aligned
        return found

    def _said(self, texts: Sequence[str], status: tuple[Status, ...]) -> Recovery:
        count = len(texts)
        value = Captions(tuple(texts), torch.full((count,), torch.nan))
        return Recovery(value, status, torch.zeros(count, dtype=torch.long))


def _captioned(knowledge: Knowledge, seen: bool) -> tuple[list[tuple[str, ...]], Shape, Tensor]:
    """Return the captions of the attacker's pictures, a leak's shape and, where they are to be `seen`, their grids."""
    public: Examples | None = knowledge.public
    if public is None:
        raise NotRunError("nearest says what is said of captioned pictures that the attacker owns (--public)")
    texts: list[tuple[str, ...]] = []
    grids: list[Tensor] = []
    shape: Shape = ()
    for leak, pictures in public.train:
        shape = tuple(leak.features.shape[1:])
        finite = torch.isfinite(leak.features.flatten(1)).all(1).tolist()
        rows = []
        for row, captions in enumerate(pictures.captions or ()):
            own = tuple(text for text in captions if text.strip())
            if own and finite[row]:
                texts.append(own)
                rows.append(row)
        if seen and rows:
            grids.append(Reading(shape, knowledge.image_shape, _MOST)(leak.features.detach()[rows]).cpu())
    if not texts:
        raise NotRunError("nearest says what is said of the attacker's own pictures, and none of them has a caption")
    return texts, shape, torch.cat(grids) if grids else torch.empty(0)
