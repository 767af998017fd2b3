"""The Q-Former: a few learned queries that read tokens by cross-attention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ... import assets
from ...types import SeepageError
from .pretrained import read_config, read_part, resolve

_MINILM_WIDTH, _MINILM_HEADS, _MINILM_LAYERS = 384, 12, 6
# Where MiniLM's modules, which are BERT's, lie in a Q-Former's layer: what text goes through there, queries do here.
_FROM_BERT = {
    "attention.self.": "attention.attention.",
    "attention.output.": "attention.output.",
    "intermediate.": "intermediate_query.",
    "output.": "output_query.",
}


class QFormerError(SeepageError):
    """A Q-Former that cannot be had: a configuration that makes no sense, or weights that do not fit it."""


@dataclass(frozen=True)
class QFormerConfig:
    """A Q-Former's size and where its weights begin.

    `start` is `fresh`, `minilm` (self-attention and feed-forward layers of the MiniLM sentence encoder, cross-attention
    fresh; 384 wide with 12 heads, at most 6 layers) or a BLIP-2 checkpoint, a hub id or a folder, whose own sizes then
    hold. Every `cross_every`-th layer, the first among them, reads the tokens, which are `reads` wide; a feed-forward
    layer is `inner` wide. Both are None until `sized` has filled them in.
    """

    width: int = 384
    layers: int = 4
    heads: int = 6
    queries: int = 16
    cross_every: int = 1
    dropout: float = 0.1
    start: str = "fresh"
    reads: int | None = None
    inner: int | None = None

    @property
    def blip2(self) -> str | None:
        """The BLIP-2 checkpoint that it begins as, None where there is none."""
        return None if self.start in ("fresh", "minilm") else self.start

    def sized(self) -> QFormerConfig:
        """Return it with all sizes: those of the checkpoint where one is named.

        Raises:
            QFormerError: they do not go together, or the checkpoint holds no Q-Former.
            PretrainedError: the checkpoint cannot be had.
        """
        if self.blip2 is None:
            _require_sensible(self)
            return replace(self, reads=self.reads or self.width, inner=self.inner or 4 * self.width)
        from transformers import Blip2QFormerConfig

        own = read_config(resolve(self.blip2))
        if "qformer_config" not in own:
            raise QFormerError(f"{self.start} holds no BLIP-2: its config.json names no qformer_config")
        theirs = Blip2QFormerConfig(**own["qformer_config"])
        return replace(
            self,
            width=theirs.hidden_size,
            layers=theirs.num_hidden_layers,
            heads=theirs.num_attention_heads,
            queries=int(own.get("num_query_tokens", 32)),
            cross_every=theirs.cross_attention_frequency,
            dropout=theirs.hidden_dropout_prob,
            reads=theirs.encoder_hidden_size,
            inner=theirs.intermediate_size,
        )


class QFormer(nn.Module):
    """transformers' `Blip2QFormerModel` with its query tokens, of a configuration that is `sized`."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        settings = Blip2QFormerConfig(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.inner,
            cross_attention_frequency=config.cross_every,
            encoder_hidden_size=config.reads,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
        )
        self.config = config
        self.model = Blip2QFormerModel(settings)
        self.query = nn.Parameter(0.02 * torch.randn(1, config.queries, config.width))

    def forward(self, tokens: Float[Tensor, "b t reads"]) -> Float[Tensor, "b q width"]:
        """Return what the queries read from the tokens."""
        found: Tensor = self.model(
            query_embeds=self.query.expand(len(tokens), -1, -1), encoder_hidden_states=tokens
        ).last_hidden_state
        return found

    def begin(self) -> None:
        """Take over the weights that the configuration says it starts from.

        Raises:
            QFormerError: they do not fit, or one is absent.
            PretrainedError, AssetError: they cannot be had.
        """
        if self.config.start == "minilm":
            self._from_minilm()
        elif self.config.blip2 is not None:
            self._from_blip2(resolve(self.config.blip2))

    @torch.no_grad()
    def _from_blip2(self, folder: Path) -> None:
        theirs = read_part(folder, ("qformer.", "model.qformer."))
        theirs = {f"model.{name}": value for name, value in theirs.items()}
        theirs["query"] = read_part(folder, ("query_tokens", "model.query_tokens"))[""]
        own = self.state_dict()
        missing = [name for name in own if name not in theirs]
        if missing:
            raise QFormerError(
                f"{self.config.start}: {len(missing)} of the Q-Former's weights are absent: {missing[0]}"
            )
        for name, value in own.items():
            given, wanted = tuple(theirs[name].shape), tuple(value.shape)
            if given != wanted:
                raise QFormerError(f"{self.config.start}: {name} has shape {given}, expected is {wanted}")
            value.copy_(theirs[name])

    @torch.no_grad()
    def _from_minilm(self) -> None:
        from safetensors.torch import load_file

        theirs = load_file(assets.fetch("minilm"))
        own = self.model.state_dict()
        for name, value in theirs.items():
            prefix, _, rest = name.partition("encoder.layer.")
            if prefix or not rest:
                continue
            number, _, module = rest.partition(".")
            for before, after in _FROM_BERT.items():
                target = f"encoder.layer.{number}.{after}{module.removeprefix(before)}"
                if module.startswith(before) and target in own:
                    own[target].copy_(value)


def _require_sensible(config: QFormerConfig) -> None:
    numbers = (config.width, config.layers, config.heads, config.queries, config.cross_every)
    if min(numbers) < 1 or config.width % config.heads:
        raise QFormerError(f"a Q-Former has a width that its heads divide and counts of at least 1, got {config}")
    if not 0 <= config.dropout < 1:
        raise QFormerError(f"dropout is a number from 0 to below 1, got {config.dropout}")
    wanted = (_MINILM_WIDTH, _MINILM_HEADS)
    if config.start == "minilm" and ((config.width, config.heads) != wanted or config.layers > _MINILM_LAYERS):
        raise QFormerError(
            f"MiniLM's weights are for a width of {wanted[0]}, {wanted[1]} heads and at most {_MINILM_LAYERS} layers; "
            f"got {config.width}, {config.heads}, {config.layers}"
        )
