"""Frozen causal language models by name, and captions as their tokens."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ... import assets
from ...files import printable
from ...hubs import quiet_transformers
from ...minilm import readable
from ...pictures import file_sha256
from ...registry import suggest
from ...seeding import state_sha256
from ...types import SeepageError
from .gguf import dequantised
from .pretrained import folder_sha256, read_part, resolve
from .tokenizer import Bytes, Subwords, Tokenizer

DEFAULT = "smollm2"
EXTRA = "the `caption` extra, which is not installed: pip install 'seepage[caption]'"
_INSTEAD = (
    f"{DEFAULT} (fetched once, 98 MB), the path of a folder that transformers saved a model to, or of a GGUF file"
)
_COMMA = re.compile(r",(?![^\[]*\])")


class LanguageError(SeepageError):
    """A language model that cannot be had; the message says where was looked and what to type instead."""


@dataclass(frozen=True)
class Tokens:
    """Captions as tokens, each with its end, filled up to one length; what lies beyond `lengths` is no caption."""

    ids: Int[Tensor, "b t"]
    lengths: Int[Tensor, "b"]

    @property
    def mask(self) -> Bool[Tensor, "b t"]:
        """True where a caption's token is."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    def to(self, device: torch.device) -> Tokens:
        """Return them on a device."""
        return Tokens(self.ids.to(device), self.lengths.to(device))


class LanguageModel:
    """A frozen causal language model with its tokenizer.

    `spread` is the root mean square of its token embeddings, the scale that what is fed to it must have; `sha256` that
    of the files it came from. Many have one token for end and padding, so nothing here tells padding by its token.
    """

    def __init__(self, name: str, sha256: str, network: Any, tokenizer: Tokenizer, end: int) -> None:
        self.name, self.sha256 = name, sha256
        self.network = network.eval().requires_grad_(False)
        # Logits of some positions alone are those of a slice, which a matrix product takes one row at a time.
        self.network.get_output_embeddings().register_forward_pre_hook(_whole)
        self.tokenizer, self.end = tokenizer, end
        table: Tensor = self.network.get_input_embeddings().weight
        self.width = table.shape[1]
        # To six digits: the last ones change with the number of threads, and a checkpoint's configuration may not.
        self.spread = float(f"{float(table.double().square().mean().sqrt()):.6g}")
        # Of special tokens, a caption has the end alone.
        self.banned = tuple(token for token in tokenizer.special if token != end and token < table.shape[0])

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        table: Tensor = self.network.get_input_embeddings().weight
        return table.device

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Compile what is computed meanwhile, once for captions of all lengths; it then agrees to rounding alone.

        Raises:
            LanguageError: nothing here compiles it.
        """
        from torch._dynamo.exc import BackendCompilerFailed, Unsupported

        body = self.network.base_model
        body.forward = torch.compile(body.forward, dynamic=True)
        try:
            yield
        except (BackendCompilerFailed, Unsupported) as error:
            first = next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__)
            raise LanguageError(f"{self.name} cannot be compiled here ({first}): leave out --compile") from error
        finally:
            del body.forward

    def embed(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t w"]:
        """Return the tokens' embeddings."""
        embedded: Tensor = self.network.get_input_embeddings()(ids)
        return embedded

    def tokens(self, captions: Sequence[str], most: int) -> Tokens:
        """Return captions as tokens, white space made even; of each at most `most`, its end counted in."""
        rows = []
        for caption in captions:
            rows.append([*self.tokenizer.encode(" ".join(readable(caption).split()))[: most - 1], self.end])
        longest = max(map(len, rows), default=1)
        filled = [[*row, *[self.end] * (longest - len(row))] for row in rows]
        ids = torch.tensor(filled, dtype=torch.long).reshape(len(rows), longest)
        return Tokens(ids, torch.tensor([len(row) for row in rows], dtype=torch.long)).to(self.device)

    def caption(self, ids: Sequence[int]) -> str:
        """Return tokens as text, up to the first end."""
        kept = list(ids)
        if self.end in kept:
            kept = kept[: kept.index(self.end)]
        return " ".join(self.tokenizer.decode(kept).split())

    def log_probabilities(
        self,
        prefix: Float[Tensor, "p n w"],
        tokens: Tokens,
        *,
        after: Int[Tensor, "b"] | None = None,
        filling: bool = False,
    ) -> Float[Tensor, "b t"]:
        """Return the log-probability, in nats, of each token after the prefix and those before it; 0 beyond the ends.

        `after` names each caption's prefix by its row, which is then read once however many follow it; without, caption
        and prefix go row by row. `filling` scores what fills captions up as well.
        """
        embedded = self.embed(tokens.ids[:, :-1])
        seen = torch.cat([torch.ones_like(tokens.mask[:, :1]).expand(-1, prefix.shape[1]), tokens.mask[:, :-1]], 1)
        logits = self._after(prefix.to(embedded), embedded, seen.long(), after)
        found = -nn.functional.cross_entropy(logits.float().mT, tokens.ids, reduction="none")
        return found if filling else torch.where(tokens.mask, found, 0.0)

    def _after(self, prefix: Tensor, embedded: Tensor, seen: Tensor, after: Tensor | None) -> Float[Tensor, "b t v"]:
        """Return the logits of each token that follows the prefix."""
        if after is None:
            inputs, kept = torch.cat([prefix, embedded], 1), embedded.shape[1] + 1
            whole: Tensor = self.network(
                inputs_embeds=inputs, attention_mask=seen, use_cache=False, logits_to_keep=kept
            ).logits
            return whole
        from transformers import DynamicCache

        cache = DynamicCache()
        first: Tensor = self.network(
            inputs_embeds=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits[after]
        if not embedded.shape[1]:
            return first
        cache.batch_select_indices(after)
        rest: Tensor = self.network(
            inputs_embeds=embedded, attention_mask=seen, past_key_values=cache, use_cache=True
        ).logits
        return torch.cat([first, rest], 1)


def _whole(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.contiguous() for each in inputs)


def load(name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Return a language model: `smollm2`, a GGUF file, a folder, a hub id (of BLIP-2 its own), or TYPE:key=value,...

    A type of transformers, which has no weights, is drawn at random and reads bytes: it is for tests. The last one
    loaded is kept.

    Raises:
        LanguageError: it cannot be had, lacks weights, or is not causal.
        AssetError, PretrainedError: its files cannot be had.
    """
    return _load(name, str(device), dtype)


def folder_of(name: str) -> Path | None:
    """Return the folder that a language model is loaded from, dequantised where it must be; None for one at random.

    Raises:
        LanguageError, AssetError, PretrainedError, GgufError: it cannot be had.
    """
    if _random_type(name):
        return None
    if name == DEFAULT:
        return dequantised(assets.fetch(DEFAULT), assets.TEXT[DEFAULT].sha256)
    if name.endswith(".gguf"):
        path = _gguf(name)
        return dequantised(path, file_sha256(path))
    return resolve(name, _INSTEAD)


def _random_type(name: str) -> bool:
    from transformers import CONFIG_MAPPING

    return name.partition(":")[0] in CONFIG_MAPPING


def _gguf(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise LanguageError(f"no file {printable(path)}; type {_INSTEAD}")
    return path


@functools.lru_cache(maxsize=1)
def _load(name: str, device: str, dtype: torch.dtype) -> LanguageModel:
    if importlib.util.find_spec("transformers") is None:
        raise LanguageError(f"the language model {name} needs {EXTRA}")
    folder = folder_of(name)
    if folder is None:
        typed, _, settings = name.partition(":")
        found = _random(name, typed, settings)
    elif name == DEFAULT:
        found = _folder(name, folder, assets.TEXT[DEFAULT].sha256, dtype)
    elif name.endswith(".gguf"):
        found = _folder(name, folder, file_sha256(_gguf(name)), dtype)
    else:
        found = _folder(name, folder, folder_sha256(folder), dtype)
    found.network.to(device=device, dtype=dtype)
    if dtype == torch.bfloat16 and device == "cpu":
        # The fused attention's way back takes a quarter of a training step there, at the lengths of captions.
        found.network.set_attn_implementation("eager")
    return found


def _folder(name: str, folder: Path, sha256: str, dtype: torch.dtype) -> LanguageModel:
    """Load what transformers saved; nothing absent is drawn at random."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if config.model_type == "blip-2":
                network = _blip2(config, folder, dtype)
            else:
                network, about = AutoModelForCausalLM.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False, dtype=dtype, output_loading_info=True
                )
                absent = sorted({*about["missing_keys"], *(key for key, *_ in about["mismatched_keys"])})
                if absent:
                    raise LanguageError(
                        f"{name}: {len(absent)} weights in {printable(folder)} are absent or of another shape, first "
                        f"{absent[0]}; type {_INSTEAD}"
                    )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LanguageError(
            f"{name}: {printable(folder)} holds no causal language model ({first}); type {_INSTEAD}"
        ) from error
    end = network.config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        raise LanguageError(f"{name} has no token for the end of a text, so its captions would not stop")
    return LanguageModel(name, sha256, network, Subwords(tokenizer), int(end))


def _blip2(config: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The language model within a BLIP-2 checkpoint; its other shards stay closed."""
    from transformers import AutoModelForCausalLM

    if not getattr(config, "use_decoder_only_language_model", True):
        raise ValueError(f"its language model, {config.text_config.model_type}, is not causal")
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config.text_config, dtype=dtype)
    state = read_part(folder, ("language_model.", "model.language_model."))
    network, about = type(network).from_pretrained(
        None, config=config.text_config, state_dict=state, dtype=dtype, output_loading_info=True, local_files_only=True
    )
    absent = sorted(about["missing_keys"])
    if absent:
        raise ValueError(f"{len(absent)} weights of its language model are absent, first {absent[0]}")
    return network


def _random(name: str, typed: str, text: str) -> LanguageModel:
    """A model of a type of transformers with settings, its weights drawn from one seed."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    settings: dict[str, Any] = {}
    for part in filter(None, (item.strip() for item in _COMMA.split(text))):
        key, _, value = part.partition("=")
        try:
            settings[key.strip()] = json.loads(value)
        except ValueError:
            settings[key.strip()] = value.strip()
    known = CONFIG_MAPPING[typed]().to_dict()
    for key in settings:
        if key not in known:
            raise LanguageError(f"{typed} has no setting {key!r}{suggest(key, known)}")
    tokenizer = Bytes()
    settings = {"vocab_size": tokenizer.size, **settings}
    fixed = {"bos_token_id": tokenizer.end, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.end}
    try:
        with quiet_transformers():
            torch.default_generator.manual_seed(0)
            network = AutoModelForCausalLM.from_config(CONFIG_MAPPING[typed](**{**settings, **fixed}))
    except (TypeError, ValueError, RuntimeError) as error:
        raise LanguageError(f"{name} is no causal language model: {' '.join(str(error).split())[:200]}") from error
    if network.get_input_embeddings().weight.shape[0] < tokenizer.size:
        raise LanguageError(f"{name} reads bytes: its vocab_size is at least {tokenizer.size}")
    sha256 = hashlib.sha256(f"{name}\0{state_sha256(network)}".encode()).hexdigest()
    return LanguageModel(name, sha256, network, tokenizer, tokenizer.end)
