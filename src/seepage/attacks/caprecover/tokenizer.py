"""Text to tokens and back, whatever the library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """What a language model's captions are read and written with."""

    @property
    def special(self) -> tuple[int, ...]:
        """The tokens that are no text."""
        ...

    @property
    def start(self) -> int | None:
        """The token that a text begins with, None where there is none."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens, none of them special."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return tokens as text, special ones left out."""
        ...


class Subwords:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def special(self) -> tuple[int, ...]:
        """Its special tokens, those that were added later among them."""
        added = (int(key) for key, token in self._tokenizer.added_tokens_decoder.items() if token.special)
        return tuple(sorted({*self._tokenizer.all_special_ids, *added}))

    @property
    def start(self) -> int | None:
        """Its token for the beginning."""
        start: int | None = self._tokenizer.bos_token_id
        return start

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens; what looks like a special token in it is text."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return tokens as text."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


class Bytes:
    """UTF-8 bytes, for models whose weights are random; one token is beginning, end and filling."""

    end = 0
    size = 257
    special = (0,)
    start = 0

    def encode(self, text: str) -> list[int]:
        """Return a text's bytes, each plus 1."""
        return [byte + 1 for byte in text.encode("utf-8", "ignore")]

    def decode(self, ids: Sequence[int]) -> str:
        """Return bytes as text; what is no valid UTF-8 is replaced."""
        return bytes(token - 1 for token in ids if 0 < token < self.size).decode("utf-8", "replace")
