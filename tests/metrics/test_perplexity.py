"""Perplexity under tiny language models whose scores can be summed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from captions_at_hand import pictured, said
from safetensors.torch import load_file, save_file

from seepage import registry
from seepage.metrics import Perplexity
from seepage.types import NotRunError

transformers = pytest.importorskip("transformers", reason="needs the caption extra's transformers")

VOCABULARY = ("<unk>", "<s>", "a", "dog", "cat", "runs", "sits")
TRUTH = pictured(["a dog"], [], ["a cat"])


def saved(folder: Path, *, beginning: bool = True) -> Path:
    """A random two-layer language model of seven words, as transformers saves one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>"} | ({"bos_token": "<s>"} if beginning else {})
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        initializer_range=1.0,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def surprise_by_hand(folder: Path, tokens: list[int]) -> float:
    """The sum over the tokens but the first, each scored by a run of its own over what stands before it."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    total = 0.0
    for end in range(1, len(tokens)):
        shares = torch.softmax(model(input_ids=torch.tensor([tokens[:end]])).logits[0, -1].double(), dim=0)
        total -= math.log(shares[tokens[end]].item())
    return total


def test_perplexity_by_hand(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    metric = registry.build("metric", f"perplexity:model={folder}")
    first, second = surprise_by_hand(folder, [1, 2, 3, 5]), surprise_by_hand(folder, [1, 4])
    recovery = said("a dog runs", "", "cat")
    values = metric(TRUTH, recovery)
    assert values[0].item() == pytest.approx(math.exp(first / 3), rel=1e-4)
    assert values[1].isnan()
    assert values[2].item() == pytest.approx(math.exp(second), rel=1e-4)
    assert metric.corpus(TRUTH, recovery) == pytest.approx(math.exp((first + second) / 4), rel=1e-4)
    assert torch.equal(metric.of(["a dog runs"]), values[:1])
    assert metric.corpus(pictured([]), said("")) is None


def test_without_a_sign_for_the_beginning_the_first_token_is_given(tmp_path: Path) -> None:
    folder = saved(tmp_path, beginning=False)
    values = Perplexity(folder).of(["a dog runs", "cat"])
    assert values[0].item() == pytest.approx(math.exp(surprise_by_hand(folder, [2, 3, 5]) / 2), rel=1e-4)
    assert values[1].isnan()


@pytest.mark.timeout(60)
def test_a_million_words_are_read_as_far_as_the_model_goes(tmp_path: Path) -> None:
    metric = Perplexity(saved(tmp_path))
    long = metric.of(["dog " * 1_000_000 + "\ud83d"])
    assert torch.equal(long, metric.of(["dog dog dog dog dog dog dog"]))


@pytest.mark.parametrize("kind", ["none", "absent", "empty", "damaged", "incomplete"])
def test_no_model_is_a_reason(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    if kind not in ("none", "absent"):
        folder.mkdir()
    weights = folder / "model.safetensors"
    if kind == "damaged":
        saved(folder)
        weights.write_bytes(weights.read_bytes()[:100])
    if kind == "incomplete":
        state = load_file(saved(folder) / "model.safetensors")
        del state["model.layers.1.mlp.up_proj.weight"]
        save_file(state, weights, metadata={"format": "pt"})
    metric = Perplexity(None if kind == "none" else folder)
    reason = metric.unavailable((3, 8, 8))
    assert reason is not None
    assert "\n" not in reason
    assert ("perplexity:model=FOLDER" if kind == "none" else str(folder)) in reason
    with pytest.raises(NotRunError) as caught:
        metric(TRUTH, said("a", "b", "c"))
    assert str(caught.value) == reason
