"""The network of CapRecover: mappers, one a layer, one Q-Former, and what reads its queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...types import SeepageError, Shape
from .language import LanguageModel, Tokens
from .mapper import Mapper
from .pretrained import read_part, resolve
from .qformer import QFormer, QFormerConfig

TEXT_WIDTH = 384
"""How wide the sentence encoder's vectors are, which queries are aligned to."""
_TEMPERATURE = 0.07
_COLDEST = 0.01


@dataclass(frozen=True)
class ModelConfig:
    """What the network is built from: JSON both ways.

    `language_width` and `spread` are those of the language model's embeddings; `most_tokens` is a caption's length,
    its end counted in; `separated` puts the language model's token for the beginning between queries and caption.
    `pooled` gives the Q-Former the one mean token and `filling` counts what fills captions up in the loss, as the
    authors' code does. `rewords` sends the vectors of sentences through a linear map as well, before queries are
    compared with them: those of the sentence encoder tell apart what captions mean, not what pictures show. `hide` is
    the share of a leak's channels, and of its tokens, that a step of training goes without.
    """

    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    tokens: int = 64
    language: str = "smollm2"
    language_width: int = 576
    spread: float = 0.1356
    most_tokens: int = 40
    separated: bool = False
    classes: int = 0
    pooled: bool = False
    filling: bool = False
    rewords: bool = True
    hide: float = 0.0

    @staticmethod
    def of(said: Mapping[str, Any]) -> ModelConfig:
        """Return what `asdict` wrote, or wrote before there was `rewords`.

        Raises:
            TypeError: it is another configuration's.
        """
        return ModelConfig(**{"rewords": False, **said, "qformer": QFormerConfig(**said["qformer"])})


class CapRecoverModel(nn.Module):
    """One Q-Former for several layers, through one mapper each; the language model is no part of it.

    Weights are drawn from `seed`, whatever global state is. Losses are plain functions of (layer, features, targets).
    """

    def __init__(self, config: ModelConfig, layers: Mapping[str, Shape], seed: int = 0) -> None:
        """Build it; `begin` then takes over the weights it starts from.

        Raises:
            QFormerError, PretrainedError: the Q-Former cannot be built.
        """
        super().__init__()
        self.config = config
        self.layers = {name: tuple(shape) for name, shape in layers.items()}
        self._place = {name: str(index) for index, name in enumerate(self.layers)}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.qformer = QFormer(config.qformer)
            width, reads = self.qformer.config.width, self.qformer.config.reads or self.qformer.config.width
            shapes = self.layers.values()
            self.mappers = nn.ModuleDict(
                {
                    str(i): Mapper(shape, reads, config.tokens, pooled=config.pooled, hide=config.hide)
                    for i, shape in enumerate(shapes)
                }
            )
            self.meaning = nn.Linear(width, TEXT_WIDTH)
            self.temperature = nn.Parameter(torch.tensor(_TEMPERATURE).log())
            self.speech = nn.Linear(width, config.language_width)
            self.loudness = nn.LayerNorm(config.language_width)
            self.labels = nn.Linear(width, config.classes) if config.classes else None
            self.wording = nn.Linear(TEXT_WIDTH, TEXT_WIDTH, bias=False) if config.rewords else None
        if self.wording is not None:
            nn.init.eye_(self.wording.weight)
        nn.init.constant_(self.loudness.weight, config.spread)

    def begin(self) -> None:
        """Take over the weights that the configuration says it starts from; BLIP-2's projection where it fits.

        Raises:
            QFormerError, PretrainedError, AssetError: they cannot be had, or do not fit.
        """
        self.qformer.begin()
        if self.config.qformer.blip2 is not None:
            theirs = read_part(
                resolve(self.config.qformer.blip2), ("language_projection.", "model.language_projection.")
            )
            if theirs["weight"].shape == self.speech.weight.shape:
                self.speech.load_state_dict(theirs)

    def mapper(self, layer: str) -> Mapper:
        """Return the mapper of a layer.

        Raises:
            SeepageError: there is none; the message names those there are.
        """
        if layer not in self._place:
            raise SeepageError(f"caprecover was trained for {', '.join(self._place)}, the leak is of {layer}")
        mapper = self.mappers[self._place[layer]]
        assert isinstance(mapper, Mapper)
        return mapper

    def queries(self, layer: str, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b q width"]:
        """Return what the queries read from features."""
        read: Tensor = self.qformer(self.mapper(layer)(features))
        return read

    def nothing(self, layer: str, rows: int) -> Float[Tensor, "rows ..."]:
        """Return features that say nothing: the mean of those learned from, zero once standardised."""
        mapper = self.mapper(layer)
        return mapper.grid.filled(mapper.mean, mapper.shape).expand(rows, *mapper.shape)

    def vectors(self, queries: Float[Tensor, "b q width"]) -> Float[Tensor, "b 384"]:
        """Return queries as unit vectors among those of the sentence encoder."""
        return nn.functional.normalize(self.meaning(queries.mean(1)), dim=1)

    def sentences(self, text: Float[Tensor, "k 384"]) -> Float[Tensor, "k 384"]:
        """Return the sentence encoder's vectors as the unit vectors that queries are compared with."""
        text = text.to(self.meaning.weight)
        return text if self.wording is None else nn.functional.normalize(self.wording(text), dim=-1)

    def prompt(self, queries: Float[Tensor, "b q width"], language: LanguageModel) -> Float[Tensor, "b p w"]:
        """Return queries as the language model reads them, at the scale of its own embeddings."""
        said: Tensor = self.loudness(self.speech(queries))
        if self.config.separated and language.tokenizer.start is not None:
            start = language.embed(torch.full((len(queries), 1), language.tokenizer.start, device=language.device))
            said = torch.cat([said, start.to(said)], 1)
        return said

    def scores(self, queries: Float[Tensor, "b q width"]) -> Float[Tensor, "b classes"]:
        """Return the read-out's score of each class.

        Raises:
            SeepageError: it was trained without classes.
        """
        if self.labels is None:
            raise SeepageError(
                "this caprecover was trained without labels: it reads captions and words, not read=label"
            )
        scores: Tensor = self.labels(queries.mean(1))
        return scores

    def alignment(self, queries: Float[Tensor, "b q width"], text: Float[Tensor, "b 384"]) -> Float[Tensor, ""]:
        """Return InfoNCE, both ways, between queries and the unit vectors of their captions (van den Oord 2018).

        Captions of one vector are one caption: none of them counts as wrong for another's picture.
        """
        # In half the bits no two captions are told to be one, and a cold temperature magnifies what rounding leaves.
        with torch.autocast(text.device.type, enabled=False):
            text = text.to(self.meaning.weight)
            fit = self.vectors(queries.to(self.meaning.weight)).float() @ self.sentences(text).float().T
            logits = fit / self.temperature.exp().clamp_min(_COLDEST)
            same = (text @ text.T > 1 - 1e-5) & ~torch.eye(len(text), dtype=torch.bool, device=text.device)
            logits = logits.masked_fill(same, -torch.inf)
            own = torch.arange(len(text), device=text.device)
            return (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)) / 2

    def generation(
        self, queries: Float[Tensor, "b q width"], captions: Tokens, language: LanguageModel
    ) -> Float[Tensor, ""]:
        """Return the mean surprise, in nats, of the captions' tokens, their ends included, under the language model."""
        prompt = self.prompt(queries, language)
        found = language.log_probabilities(prompt, captions, filling=self.config.filling)
        return -found.sum() / (found.numel() if self.config.filling else captions.lengths.sum())

    def alignment_loss(
        self, layer: str, features: Float[Tensor, "b ..."], text: Float[Tensor, "b 384"]
    ) -> Float[Tensor, ""]:
        """Return `alignment` of a layer's features."""
        return self.alignment(self.queries(layer, features), text)

    def generation_loss(
        self,
        layer: str,
        features: Float[Tensor, "b ..."],
        captions: Tokens,
        language: LanguageModel,
        *,
        text: Float[Tensor, "b 384"] | None = None,
        keep: float = 0.3,
    ) -> Float[Tensor, ""]:
        """Return `generation` of a layer's features and, with their captions' vectors, `keep` times their `alignment`.

        Without the latter queries forget how they were aligned, and rank nothing any more.
        """
        queries = self.queries(layer, features)
        loss = self.generation(queries, captions, language)
        return loss if text is None else loss + keep * self.alignment(queries, text)

    def label_loss(self, layer: str, features: Float[Tensor, "b ..."], labels: Int[Tensor, "b"]) -> Float[Tensor, ""]:
        """Return the cross-entropy of the labels under the read-out of a layer's features."""
        return nn.functional.cross_entropy(self.scores(self.queries(layer, features)).float(), labels)

    def said(self) -> dict[str, Any]:
        """Return the configuration and the layers as JSON has them."""
        return {"config": asdict(self.config), "layers": {name: list(shape) for name, shape in self.layers.items()}}


def configured(config: ModelConfig, language: LanguageModel) -> ModelConfig:
    """Return a configuration for this language model, with all its sizes.

    Raises:
        QFormerError, PretrainedError: the Q-Former's cannot be had.
    """
    return replace(
        config,
        qformer=config.qformer.sized(),
        language=language.name,
        language_width=language.width,
        spread=language.spread,
    )
