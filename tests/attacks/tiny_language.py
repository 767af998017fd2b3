"""A small language model of a few words, its tokenizer, and leaks whose captions it can say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seepage.types import Leak, LeakHeader, Pictures

CAPTIONS = (
    "a red dog runs on the beach",
    "two men play with a ball",
    "a child in a blue shirt jumps",
    "the woman reads a book",
    "three birds fly over water",
    "a man climbs the rock",
    "people sit on a bench",
    "a white cat sleeps",
)
BYTES = "llama:hidden_size=32,intermediate_size=64,num_hidden_layers=2,num_attention_heads=2,num_key_value_heads=2"
"""A model of random weights that reads bytes."""
HEADER = LeakHeader("tiny/victim@random:0", "ab" * 32, "late", "as they are")


def save_language(folder: Path, steps: int = 150) -> Path:
    """Train a tiny Llama to say `CAPTIONS`, one as likely as another, and save it as transformers does.

    One token is padding and end, as in SmolLM2.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
        rows = [[0, *tokenizer(text)["input_ids"], 1] for text in CAPTIONS]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [1] * (longest - len(row)) for row in rows])
        labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
        adam = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(steps):
            adam.zero_grad()
            torch.autograd.backward(model(input_ids=ids, labels=labels).loss)
            adam.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_blip2(folder: Path, shard: str = "1GB") -> Path:
    """Save a tiny BLIP-2 of random weights, an OPT within it, and its tokenizer."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    tokenizer = _tokenizer()
    small = {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config={"hidden_size": 20, "intermediate_size": 20, **small},
        qformer_config={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "encoder_hidden_size": 20,
        },
        text_config={
            "model_type": "opt",
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 32,
            "vocab_size": len(tokenizer) + 1,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
            **small,
        },
        num_query_tokens=6,
        image_token_index=len(tokenizer),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Blip2ForConditionalGeneration(config)
        for name, weight in model.named_parameters():
            if name.endswith("query_tokens"):
                torch.nn.init.normal_(weight)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return folder


def save_gguf(path: Path, width: int = 32) -> Path:
    """Write a random Llama of one block, with a tokenizer of letters and a few words, as llama.cpp keeps models."""
    import numpy as np
    from gguf import GGUFWriter, TokenType

    letters = [chr(code) for code in range(33, 127)] + ["Ġ"]
    tokens = ["<|end|>", *letters, "do", "dog", "ca", "cat"]
    file = GGUFWriter(path, "llama")
    for add, number in (
        *((file.add_block_count, 1), (file.add_context_length, 64), (file.add_embedding_length, width)),
        *((file.add_feed_forward_length, 2 * width), (file.add_head_count, 2), (file.add_head_count_kv, 2)),
        *((file.add_rope_dimension_count, width // 2), (file.add_vocab_size, len(tokens))),
        *((file.add_bos_token_id, 0), (file.add_eos_token_id, 0), (file.add_unk_token_id, 0)),
    ):
        add(number)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_freq_base(1e4)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("smollm")
    file.add_token_list(tokens)
    file.add_token_types([TokenType.CONTROL, *[TokenType.NORMAL] * (len(tokens) - 1)])
    file.add_token_merges(["d o", "do g", "c a", "ca t"])
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), width), "output": (len(tokens), width), "blk.0.ffn_down": (width, 2 * width)}
    shapes |= {f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": (2 * width, width) for name in ("gate", "up")}
    for name, shape in shapes.items():
        file.add_tensor(f"{name}.weight", (0.2 * random.standard_normal(shape)).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        file.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    vocabulary = {word: i for i, word in enumerate(["<start>", "<end>", "<odd>", *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<odd>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<odd>"
    )


def leaks(count: int = 8, shape: tuple[int, ...] = (6, 4, 4), seed: int = 5) -> Leak:
    """Rows of noise, no two alike."""
    features = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    return Leak(3 * features + 1, HEADER)


def captioned(count: int = 8, captions: tuple[str, ...] = CAPTIONS, labels: Tensor | None = None) -> Pictures:
    """Pictures whose pixels nobody reads, with a caption each."""
    ids = tuple(map(str, range(count)))
    return Pictures(torch.zeros(count, 3, 2, 2), ids, labels=labels, captions=tuple((c,) for c in captions[:count]))
