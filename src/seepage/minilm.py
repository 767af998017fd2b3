"""The MiniLM sentence encoder: captions as vectors, for whoever reads, ranks or recovers them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from . import assets

_MOST_TOKENS = 256
# More signs than so many tokens have; its tokenizer would read all of a text before it cuts.
_MOST_CHARACTERS = 10_000
_BATCH = 64


class Encoder:
    """all-MiniLM-L6-v2: sentences to unit vectors, the mean of its last states over the sentence's tokens.

    Raises:
        AssetError: the weights cannot be had.
    """

    def __init__(self) -> None:
        self._tokenizer, self._model = _load()

    @functools.cached_property
    def one(self) -> Callable[[str], Tensor]:
        """One sentence at a time, so that no vector depends on its batch; the last ones are remembered."""
        return functools.lru_cache(maxsize=1 << 14)(lambda text: self.encode([text])[0])

    @torch.no_grad()
    def encode(self, sentences: Sequence[str]) -> Float[Tensor, "n 384"]:
        """Return one unit vector a sentence, of its first 256 tokens; what is no valid text in one is left out."""
        vectors = torch.empty(len(sentences), 384)
        # Side by side those of about one length: none waits for a much longer one.
        order = sorted(range(len(sentences)), key=lambda place: len(sentences[place]))
        for start in range(0, len(order), _BATCH):
            some = order[start : start + _BATCH]
            vectors[some] = self._encode([readable(sentences[place]) for place in some])
        return vectors

    def _encode(self, sentences: list[str]) -> Tensor:
        read = self._tokenizer(sentences, padding=True, truncation=True, max_length=_MOST_TOKENS, return_tensors="pt")
        states = self._model(**read).last_hidden_state
        mask = read["attention_mask"][:, :, None]
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def readable(text: str) -> str:
    """Return what a subword tokenizer takes of a text: valid characters, and no more than it would read."""
    return text[:_MOST_CHARACTERS].encode("utf-8", "ignore").decode()


@functools.lru_cache(maxsize=1)
def loaded() -> Encoder:
    """Return the encoder, loaded once.

    Raises:
        AssetError: the weights cannot be had.
    """
    return Encoder()


def _load() -> tuple[Any, Any]:
    weights, tokenizer = assets.fetch("minilm"), assets.fetch("minilm_tokenizer")
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    config = BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12)
    with torch.random.fork_rng(devices=[]):  # its first weights, which are overwritten, are drawn from global state
        model = BertModel(config)
    state = load_file(weights)
    state.pop("embeddings.position_ids", None)
    model.load_state_dict(state)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), **names), model.eval().requires_grad_(False)
