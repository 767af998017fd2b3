"""A trained CapRecover at work: captions, labels and rankings from leaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ... import minilm
from ...types import Captions, Generators, Knowledge, Labels, Leak, Recoverer, Recovery, SeepageError, Status
from ..inversion import leak_shape, refusals
from ..onward import neighbours
from . import adapter, words
from .adapter import AdapterError, Header
from .generation import Decode, captions, log_likelihood, write
from .language import LanguageModel, load
from .model import TEXT_WIDTH, CapRecoverModel

_FEW_CLASSES = 64
"""So many classes are told apart by the language model; of more, the so many best by alignment."""


class CapRecoverer(Recoverer):
    """An adapter's network and its language model, which is loaded when first needed."""

    def __init__(
        self,
        read: str,
        how: Decode,
        batch: int,
        language: str,
        model: CapRecoverModel,
        header: Header,
        knowledge: Knowledge,
        layer: str = "",
    ) -> None:
        self.read, self.how, self.batch, self._language = read, how, batch, language or header.config.language
        self.model = model.eval().requires_grad_(False)
        self.header = header
        # A read-out knows the classes that it learned, by name or by number; words can name any.
        self.classes = header.classes or (() if read == "label" else knowledge.classes) or ()
        self._width = model.config.classes if read == "label" else len(self.classes)
        self._query = knowledge.query
        self.layer = layer or _layer(header, knowledge)
        self._device = torch.device("cpu")
        self._of_nothing: Captions | Labels | None = None

    def recover(self, leak: Leak, generators: Generators) -> Recovery:
        """Read each row; those that are not finite or all zeros have failed."""
        good, status = self._legible(leak)
        parts = [
            self._read(leak.header.layer, leak.features[rows], [generators[row] for row in rows])
            for rows in _chunks(good, self.batch)
        ]
        return Recovery(self._spread(parts, good, len(leak)), status, torch.zeros(len(leak), dtype=torch.long))

    def prior(self, n: int, generators: Generators) -> Recovery:
        """Return what the language model, or the read-out, says where the features say nothing: zeros, standardised."""
        features = self.model.nothing(self.layer, 1)
        if self.how.decoding == "sample":
            parts = [self._read(self.layer, features, [generators[row]]) for row in range(n)]
        else:
            self._of_nothing = self._of_nothing or self._read(self.layer, features, ())
            parts = [self._of_nothing] * n
        value = self._spread(parts, range(n), n)
        return Recovery(value, (Status("stopped", "no leak"),) * n, torch.zeros(n, dtype=torch.long))

    def constant(self, n: int) -> Recovery | None:
        """Return the caption or label that scores best on the training split, `n` times; None where none is known."""
        value: Captions | Labels
        if self.read == "caption":
            if not self.header.caption:
                return None
            value = Captions((self.header.caption,) * n, torch.full((n,), torch.nan))
        else:
            if self.header.label is None or not self._width:
                return None
            value = Labels(torch.eye(self._width)[self.header.label].repeat(n, 1), self.classes or None)
        return Recovery(value, (Status("stopped", "no leak"),) * n, torch.zeros(n, dtype=torch.long))

    @torch.no_grad()
    def score(self, leak: Leak, candidates: Sequence[str] | Tensor) -> Float[Tensor, "b k"] | None:
        """Rank candidates by cosine with the queries: sentences or names of classes, their vectors, or pictures.

        Pictures "k 3 h w" are shown to the victim where it may be asked, and their leaks read. None where the queries
        were never aligned, or nobody can be asked. Rows that are not finite or all zeros score NaN.
        """
        if not self.header.aligned:
            return None
        if isinstance(candidates, Tensor) and candidates.ndim == 4:
            if self._query is None:
                return None
            shown = self._query(candidates)
            self.header.require(shown.header, tuple(shown.features.shape[1:]))
            vectors = self._vectors(shown.header.layer, shown.features)
        elif isinstance(candidates, Tensor):
            if candidates.ndim != 2 or candidates.shape[1] != TEXT_WIDTH:
                raise SeepageError(
                    f"candidates are sentences, their vectors (k, {TEXT_WIDTH}) or pictures (k, 3, h, w), got "
                    f"{tuple(candidates.shape)}"
                )
            vectors = self.model.sentences(candidates)
        else:
            vectors = self.model.sentences(_text(candidates, self.classes))
        good, _ = self._legible(leak)
        found = torch.full((len(leak), len(vectors)), torch.nan)
        for rows in _chunks(good, self.batch):
            own = self._vectors(leak.header.layer, leak.features[rows])
            found[rows] = (own @ vectors.to(own).T).cpu()
        return found

    @torch.no_grad()
    def log_likelihood(self, leak: Leak, captions: Sequence[str]) -> Float[Tensor, "b"] | None:
        """Return nats a token of each row's caption, its end included; NaN for rows that are not finite.

        A row of zeros is read as the mean leak that was learned from, which is zero once standardised: nothing.
        """
        if len(captions) != len(leak):
            raise SeepageError(f"one caption a row is expected, got {len(captions)} for {len(leak)} rows")
        first, own = (rows.cpu() for rows in neighbours(leak.features))
        leak = leak.with_features(leak.features[first.to(leak.features.device)])
        self._legible(leak)
        layer, features = leak.header.layer, leak.features.float()
        flat = features.flatten(1)
        silent = (flat == 0).all(1).view(-1, *[1] * (features.ndim - 1))
        features = torch.where(silent, self.model.nothing(layer, len(leak)).to(features), features)
        found = torch.full((len(captions),), torch.nan)
        good = torch.isfinite(flat).all(1).nonzero().flatten().tolist()
        for rows in _chunks(good, self.batch):
            language = self._speaker(features.device)
            prompt = self.model.prompt(self._queries(layer, features[rows]), language)
            asked = [place for place, row in enumerate(own.tolist()) if row in rows]
            texts, places = [captions[place] for place in asked], [rows.index(int(own[place])) for place in asked]
            most = self.header.config.most_tokens
            found[asked] = log_likelihood(language, prompt, texts, most, places, self.batch).cpu()
        return found

    def save(self, path: Path) -> None:
        """Write the adapter, its weights as they are."""
        adapter.write(path, self.model, self.header, "fp32")

    def _legible(self, leak: Leak) -> tuple[list[int], tuple[Status, ...]]:
        """Return the rows that can be read, and how each row ends.

        Raises:
            AdapterError: the leak is not what the adapter was trained for.
        """
        shape = tuple(leak.features.shape[1:])
        self.header.require(leak.header, shape)
        refused = refusals(leak.features.float(), shape)
        status = tuple(Status("stopped", "read") if reason is None else reason for reason in refused)
        return [row for row, reason in enumerate(refused) if reason is None], status

    def _queries(self, layer: str, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b q width"]:
        if features.device != self._device:
            self.model.to(features.device)
            self._device = features.device
        return self.model.queries(layer, features.float())

    def _vectors(self, layer: str, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b 384"]:
        return self.model.vectors(self._queries(layer, features))

    def _speaker(self, device: torch.device) -> LanguageModel:
        """Return the language model, loaded once.

        Raises:
            LanguageError, AssetError, PretrainedError: it cannot be had.
            AdapterError: it is another one than the adapter was trained with.
        """
        language = load(self._language, device)
        if language.sha256 != self.header.language_sha256:
            raise AdapterError(
                f"the adapter was trained with {self.header.config.language} "
                f"({self.header.language_sha256[:12]}), {self._language} is another model ({language.sha256[:12]})"
            )
        return language

    @torch.no_grad()
    def _read(self, layer: str, features: Float[Tensor, "b ..."], generators: Generators) -> Captions | Labels:
        queries = self._queries(layer, features)
        if self.read == "label":
            return Labels(self.model.scores(queries).float().cpu())
        language = self._speaker(features.device)
        prompt = self.model.prompt(queries, language)
        written = write(language, prompt, self.how, generators)
        texts = captions(language, written)
        if self.read == "caption":
            return Captions(texts, written.log_likelihood.float().cpu())
        rows = zip(texts, prompt, self.model.vectors(queries), strict=True)
        scores = torch.stack([self._named(language, text, row, vector) for text, row, vector in rows])
        return Labels(scores, texts=tuple(texts))

    def _named(
        self, language: LanguageModel, text: str, prompt: Float[Tensor, "p w"], vector: Float[Tensor, "384"]
    ) -> Float[Tensor, "classes"]:
        """Score classes by the longest name that the caption says; of equals, by how likely their sentence is.

        Where it says none, all are equal. Those too many for the language model come below, by alignment, if there is
        one: else it is asked about them all.
        """
        said = torch.tensor(words.matches(text, self.classes), dtype=torch.float32)
        scores = said.clone()
        equal = (said == said.max()).nonzero().flatten()
        if self.header.aligned and (len(equal) > _FEW_CLASSES or len(equal) < len(said)):
            fit = self.model.sentences(_text(self.classes, self.classes)) @ vector
            scores = torch.where(said > 0, scores, (fit.cpu() - 3) / 4)  # below 0, in (-1, -1/2)
            equal = equal[fit.cpu()[equal].topk(min(len(equal), _FEW_CLASSES)).indices]
        sentences = [words.prompt(self.classes[index]) for index in equal.tolist()]
        most, places = self.header.config.most_tokens, [0] * len(sentences)
        likely = log_likelihood(language, prompt[None], sentences, most, places, self.batch)
        scores[equal] = said[equal] + likely.cpu().exp()
        return scores

    def _spread(self, parts: Sequence[Captions | Labels], good: Sequence[int], rows: int) -> Captions | Labels:
        """Put what was read at its rows; the others are empty, and NaN."""
        if self.read == "caption":
            texts, likelihood = [""] * rows, torch.full((rows,), torch.nan)
            place = iter(good)
            for part in parts:
                assert isinstance(part, Captions)
                for text, value in zip(part.texts, part.log_likelihood, strict=True):
                    row = next(place)
                    texts[row], likelihood[row] = text, value
            return Captions(tuple(texts), likelihood)
        scores = torch.full((rows, self._width), torch.nan)
        said = [""] * rows
        found = [part for part in parts if isinstance(part, Labels)]
        if found:
            scores[list(good)] = torch.cat([part.scores for part in found])
        for row, text in zip(good, (text for part in found for text in part.texts or ()), strict=False):
            said[row] = text
        return Labels(scores, self.classes or None, tuple(said) if self.read == "words" else None)


def _text(sentences: Sequence[str], classes: Sequence[str]) -> Float[Tensor, "k 384"]:
    """Return the vectors of sentences, remembered; names of classes are put into one."""
    known, encoder = set(classes), minilm.loaded()
    rows = [encoder.one(words.prompt(text) if text in known else text) for text in sentences]
    return torch.stack(rows) if rows else torch.empty(0, TEXT_WIDTH)


def _chunks(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def _layer(header: Header, knowledge: Knowledge) -> str:
    """Return the layer that is under attack, as far as shapes say: a prior has no leak to tell it."""
    layers = list(header.layers)
    if knowledge.prefix is None or len(layers) == 1:
        return layers[0]
    last = knowledge.prefix.segments[-1].name
    if last in layers:
        return last
    shape = leak_shape(knowledge.prefix)
    return next((layer for layer in layers if tuple(header.layers[layer]) == tuple(shape)), layers[0])
