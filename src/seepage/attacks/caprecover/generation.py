"""Captions from a prompt: greedy, by beam and by sampling, with the key-value cache, rows side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...types import Generators
from .language import LanguageModel, Tokens

Decoding = Literal["greedy", "beam", "sample"]
_DIGITS = 1 << 53


@dataclass(frozen=True)
class Decode:
    """How captions are decoded.

    A caption has `least` tokens before its end, at most `most` with it, and none of them special. `beam` keeps the
    `beams` likeliest beginnings and answers with the finished one of the highest log-likelihood over its number of
    tokens to the power `length`: 1 is the mean, 0 the sum. `sample` draws from the likeliest tokens whose probabilities
    make up `share`, at `temperature`.
    """

    decoding: Decoding = "greedy"
    beams: int = 5
    length: float = 1.0
    temperature: float = 0.7
    share: float = 0.9
    least: int = 3
    most: int = 40


@dataclass(frozen=True)
class Written:
    """Captions as tokens and the log-probability, in nats, of each token as the language model gives it."""

    tokens: Tokens
    log_probabilities: Float[Tensor, "b t"]

    @property
    def log_likelihood(self) -> Float[Tensor, "b"]:
        """Nats a token, the end included where it was reached."""
        return self.log_probabilities.sum(1) / self.tokens.lengths.clamp_min(1)


@torch.no_grad()
def write(language: LanguageModel, prompt: Float[Tensor, "b p w"], how: Decode, generators: Generators = ()) -> Written:
    """Return a caption for each row of a prompt; sampling needs one generator a row.

    Rows do not touch each other, but the last digits of their numbers may change with how many there are.
    """
    if how.decoding == "beam":
        return _beam(language, prompt, how)
    return _row_by_row(language, prompt, how, generators)


class _Reader:
    """A language model reading on: the log-probabilities after each token, its keys and values kept."""

    def __init__(self, language: LanguageModel, prompt: Float[Tensor, "b p w"], how: Decode) -> None:
        from transformers import DynamicCache

        self.language, self.how = language, how
        self.cache: Any = DynamicCache()
        table: Tensor = language.network.get_input_embeddings().weight
        self.last = self._read(prompt.to(table.dtype))
        self.banned = torch.tensor(language.banned, dtype=torch.long, device=table.device)

    def allowed(self, written: int) -> Float[Tensor, "b v"]:
        """Return the log-probabilities of the next token, -inf for those that may not come after so many."""
        found = self.last.index_fill(1, self.banned, -torch.inf)
        if written < self.how.least:
            found[:, self.language.end] = -torch.inf
        return found

    def step(self, token: Int[Tensor, "b"], rows: Int[Tensor, "b"] | None = None) -> None:
        """Read one token a row; of earlier ones, those that `rows` names go on."""
        if rows is not None:
            self.cache.batch_select_indices(rows)
        self.last = self._read(self.language.embed(token[:, None]))

    def _read(self, embedded: Tensor) -> Float[Tensor, "b v"]:
        logits: Tensor = self.language.network(
            inputs_embeds=embedded, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        ).logits
        return logits[:, -1].float().log_softmax(1)


def _row_by_row(language: LanguageModel, prompt: Tensor, how: Decode, generators: Generators) -> Written:
    choose: Callable[[Tensor], Tensor] = lambda scores: scores.argmax(1)  # noqa: E731  one of two ways
    if how.decoding == "sample":
        choose = _sampler(how, generators)
    reader, end = _Reader(language, prompt, how), language.end
    done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    ids, found = [], []
    for written in range(how.most):
        scores = reader.allowed(written)
        token = choose(scores).masked_fill(done, end)
        ids.append(token)
        found.append(reader.last.gather(1, token[:, None])[:, 0].masked_fill(done, 0.0))
        done = done | (token == end)
        if done.all() or written + 1 == how.most:
            break
        reader.step(token)
    return _written(torch.stack(ids, 1), torch.stack(found, 1), end)


def _sampler(how: Decode, generators: Generators) -> Callable[[Tensor], Tensor]:
    """Return the choice of a token by one number from each row's generator."""

    def choose(scores: Float[Tensor, "b v"]) -> Int[Tensor, "b"]:
        # On the CPU in double: a row's draw is then the same wherever it is computed.
        ranked = (scores.double().cpu() / how.temperature).softmax(1)
        order = torch.arange(ranked.shape[1]).expand(ranked.shape)
        if how.share < 1:  # of all tokens none is left out, in whatever order they stand
            ranked, order = likeliest(ranked, how.share)
        before = ranked.cumsum(1) - ranked
        kept = torch.where(before < how.share, ranked, 0.0)
        kept = kept.cumsum(1) / kept.sum(1, keepdim=True)
        drawn = [torch.randint(_DIGITS, (1,), generator=generator) for generator in generators]
        places = torch.searchsorted(kept, torch.stack(drawn).double() / _DIGITS, right=True)
        chosen: Tensor = order.gather(1, places.clamp_max(order.shape[1] - 1))[:, 0]
        return chosen.to(scores.device)

    return choose


def likeliest(
    shares: Float[Tensor, "b v"], wanted: float, few: int = 256
) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    """Return at least the tokens that make up the wanted share of each row, the likeliest first, equals by number.

    To put all of a vocabulary in order takes longer than the language model does.
    """
    few = min(few, shares.shape[1])
    order = shares.topk(few, 1).indices.sort(1).values
    ranked, places = shares.gather(1, order).sort(dim=1, descending=True, stable=True)
    # The last of them is out already, and so is all that is as likely as it.
    if bool(((ranked.cumsum(1) - ranked >= wanted) | (ranked > ranked[:, -1:])).all()):
        return ranked, order.gather(1, places)
    return torch.sort(shares, dim=1, descending=True, stable=True)


@dataclass
class _Ended:
    """A finished caption of a beam search."""

    value: float
    ids: Int[Tensor, "t"]
    found: Float[Tensor, "t"]


def _beam(language: LanguageModel, prompt: Float[Tensor, "b p w"], how: Decode) -> Written:
    rows, beams, end = len(prompt), how.beams, language.end
    reader = _Reader(language, prompt.repeat_interleave(beams, 0), how)
    device = prompt.device
    ids = torch.zeros(rows * beams, 0, dtype=torch.long, device=device)
    found = torch.zeros(rows * beams, 0, device=device)
    total = torch.full((rows, beams), -torch.inf, device=device)
    total[:, 0] = 0.0  # beams that begin alike would stay alike
    ended: list[list[_Ended]] = [[] for _ in range(rows)]
    first = torch.arange(rows, device=device)[:, None] * beams
    for written in range(how.most):
        scores = reader.allowed(written).view(rows, beams, -1) + total[:, :, None]
        size = scores.shape[2]
        best, flat = scores.flatten(1).topk(2 * beams, 1)
        parents, tokens = first + flat // size, flat % size
        last = reader.last[parents.flatten(), tokens.flatten()].view(rows, -1)
        for row in range(rows):
            _take_ended(ended[row], how, best[row], parents[row], tokens[row], last[row], ids, found, end)
        going = torch.stack([(tokens[row] != end).nonzero().flatten()[:beams] for row in range(rows)])
        total = best.gather(1, going)
        parent, token = parents.gather(1, going).flatten(), tokens.gather(1, going).flatten()
        ids = torch.cat([ids[parent], token[:, None]], 1)
        found = torch.cat([found[parent], last.gather(1, going).flatten()[:, None]], 1)
        if all(len(own) >= beams for own in ended) or written + 1 == how.most:
            break
        reader.step(token, parent)
    for row, own in enumerate(ended):
        if len(own) < beams:  # those that had no room for an end
            mine = range(row * beams, (row + 1) * beams)
            values = total[row].tolist()
            own += [
                _Ended(_value(value, ids.shape[1], how), ids[i], found[i])
                for i, value in zip(mine, values, strict=True)
                if math.isfinite(value)
            ]
    best_of = [max(own, key=lambda item: item.value) for own in ended]
    longest = max(len(item.ids) for item in best_of)
    padded = torch.stack([_filled(item.ids, longest, end) for item in best_of])
    probabilities = torch.stack([_filled(item.found, longest, 0.0) for item in best_of])
    return _written(padded, probabilities, end)


def _take_ended(
    own: list[_Ended],
    how: Decode,
    best: Float[Tensor, "k"],
    parents: Int[Tensor, "k"],
    tokens: Int[Tensor, "k"],
    last: Float[Tensor, "k"],
    ids: Int[Tensor, "n t"],
    found: Float[Tensor, "n t"],
    end: int,
) -> None:
    """Note the captions that one of the likeliest steps ended, until there are as many as beams."""
    for place in range(how.beams):
        value = float(best[place])
        if int(tokens[place]) == end and math.isfinite(value) and len(own) < how.beams:
            parent = int(parents[place])
            whole = torch.cat([ids[parent], tokens[place : place + 1]])
            own.append(
                _Ended(_value(value, len(whole), how), whole, torch.cat([found[parent], last[place : place + 1]]))
            )


def _value(total: float, length: int, how: Decode) -> float:
    return total / float(length**how.length)


def _filled(row: Tensor, length: int, value: float) -> Tensor:
    return torch.cat([row, row.new_full((length - len(row),), value)])


def _written(ids: Int[Tensor, "b t"], found: Float[Tensor, "b t"], end: int) -> Written:
    """Return captions with their lengths, the first end counted in."""
    ends = ids == end
    lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, ids.shape[1])
    return Written(Tokens(ids, lengths), found)


def captions(language: LanguageModel, written: Written) -> tuple[str, ...]:
    """Return what was written as text."""
    return tuple(language.caption(row) for row in written.tokens.ids.tolist())


@torch.no_grad()
def log_likelihood(
    language: LanguageModel,
    prompt: Float[Tensor, "p n w"],
    texts: Sequence[str],
    most: int,
    after: Sequence[int] | None = None,
    at_once: int = 32,
) -> Float[Tensor, "b"]:
    """Return nats a token of each caption, its end included; of longer ones, of the first `most` tokens.

    `after` says which row of the prompt each caption follows; without, they go row by row. `at_once` are computed side
    by side.
    """
    places = range(len(texts)) if after is None else after
    tokens = language.tokens(texts, most)
    found = torch.zeros(len(texts), device=prompt.device)
    # Captions are computed to the end of the longest beside them.
    order = sorted(range(len(texts)), key=lambda row: int(tokens.lengths[row]))
    for start in range(0, len(order), at_once):
        rows = torch.tensor(order[start : start + at_once], device=tokens.ids.device)
        longest = int(tokens.lengths[rows].max())
        part = Tokens(tokens.ids[rows, :longest], tokens.lengths[rows])
        used = sorted({places[row] for row in rows.tolist()})
        owner = torch.tensor([used.index(places[row]) for row in rows.tolist()], device=prompt.device)
        total = language.log_probabilities(prompt[used], part, after=owner).sum(1)
        found[rows] = total / part.lengths
    return found
