"""How fluent captions read: their perplexity under a language model that did not write them."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..files import printable
from ..hubs import first_line, quiet_transformers
from ..minilm import readable
from ..pictures import file_sha256
from ..registry import register
from ..types import Captions, NotRunError, Pictures, Recovery, Shape
from .base import Judge
from .encoder import EXTRA
from .sentences import captions_of

_MOST_TOKENS = 1024


@register("metric", "perplexity")
@dataclass(frozen=True)
class Perplexity:
    """exp of the mean surprise a token of the recovered caption under a language model; fluency, which is no leakage.

    `model` is a folder with a causal language model and its tokenizer as transformers saves them, and must not be the
    one that wrote the captions. There is none by default, so the metric is unavailable unless told. It reads no
    reference. The corpus value is exp of the mean over all tokens. A caption of no token scores NaN, as does one of one
    token where the model has no sign for the beginning; of a caption at most 1,024 tokens are read. Beside it belongs
    that of human captions: `Perplexity.of`.
    """

    model: Path | None = None

    reads: ClassVar[tuple[type, ...]] = (Captions,)
    unit: ClassVar[str] = ""
    higher_means_more_leakage: ClassVar[bool] = False
    perfect: ClassVar[float | None] = None

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return why not: no model named, none that transformers can load, or no transformers."""
        if self.model is None:
            return "perplexity needs a causal language model other than the captions' writer: perplexity:model=FOLDER"
        if importlib.util.find_spec("transformers") is None:
            return f"perplexity needs {EXTRA}"
        from safetensors import SafetensorError

        try:
            _load(self.model)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            return f"perplexity: {printable(self.model)} holds no causal language model: {first_line(error)}"
        return None

    def is_of(self, folder: Path) -> bool:
        """Return whether a folder has the very weights of this model: the same bytes, wherever they lie."""
        if self.model is None:
            return False
        mine, theirs = (
            {path.stat().st_size: path for path in one.glob("*.safetensors")} for one in (self.model, folder)
        )
        return any(file_sha256(mine[size]) == file_sha256(theirs[size]) for size in mine.keys() & theirs.keys())

    def __call__(
        self, truth: Pictures, recovery: Recovery, judge: Judge | None = None, gallery: Pictures | None = None
    ) -> Float[Tensor, "b"]:
        """Score every recovered caption; float64, on the CPU.

        Raises:
            NotRunError: the model cannot be had; the message says why.
            SeepageError: the recovery holds no captions.
        """
        return self.of(captions_of(recovery, type(self).__name__))

    def corpus(self, truth: Pictures, recovery: Recovery) -> float | None:
        """Return the perplexity of all captions together, None where none has a token.

        Raises:
            NotRunError, SeepageError: as when called.
        """
        surprises = self._surprises(captions_of(recovery, type(self).__name__))
        tokens = sum(count for _, count in surprises)
        return math.exp(math.fsum(total for total, _ in surprises) / tokens) if tokens else None

    def of(self, texts: Sequence[str]) -> Float[Tensor, "n"]:
        """Return the perplexity of each sentence, float64.

        Raises:
            NotRunError: the model cannot be had; the message says why.
        """
        values = [math.exp(total / count) if count else math.nan for total, count in self._surprises(texts)]
        return torch.tensor(values, dtype=torch.float64)

    def _surprises(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        reason = self.unavailable(())
        if self.model is None or reason is not None:
            raise NotRunError(reason or "")
        tokenizer, model = _load(self.model)
        return [_surprise(tokenizer, model, text) for text in texts]


@torch.no_grad()
def _surprise(tokenizer: Any, model: Any, text: str) -> tuple[float, int]:
    """The sum of the surprises of a sentence's tokens, in nats, and how many tokens were scored."""
    most = min(_MOST_TOKENS, getattr(model.config, "max_position_embeddings", _MOST_TOKENS))
    tokens = tokenizer(readable(text), add_special_tokens=False, truncation=True, max_length=most)["input_ids"]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    read = torch.tensor([start + tokens])[:, :most]
    if read.shape[1] < 2:
        return 0.0, 0
    scores = model(input_ids=read.long()).logits[0, :-1].double().log_softmax(dim=1)
    return -float(scores.gather(1, read[0, 1:, None]).sum()), read.shape[1] - 1


@functools.lru_cache(maxsize=1)
def _load(folder: Path) -> tuple[Any, Any]:
    if not folder.is_dir():
        raise OSError("there is no such folder")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, about = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    absent = sorted({*about["missing_keys"], *(key for key, *_ in about["mismatched_keys"])})
    if absent:
        # transformers would score with random ones in their place.
        raise ValueError(f"{len(absent)} of its weights are absent or of another shape, the first {absent[0]}")
    return tokenizer, model.eval().requires_grad_(False)
