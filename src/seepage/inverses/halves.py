"""A transformer block as its two residuals, x + attention(norm x), then u + mlp(norm u) for each token alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_ALIKE = 1e-4


class _Reached(Exception):
    """The second normalisation is about to run: the rest of the block is not wanted."""


@dataclass(frozen=True)
class Halves:
    """A block, run up to its last normalisation of all tokens, or from there on.

    What that normalisation is given is u: the first half ends with it, the second is u plus what the block adds to it.
    """

    module: nn.Module
    norm: nn.Module

    def first(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Return u = x + attention(norm x)."""
        seen: list[Tensor] = []

        def stop(part: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(args[0])
            raise _Reached

        with _before(self.norm, stop):
            try:
                self.module(x)
            except _Reached:
                return seen[0]
        raise AssertionError("the block ran without its normalisation")

    def second(self, u: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Return u + mlp(norm u)."""
        seen: list[Tensor] = []

        def put(part: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(args[0])
            return (u, *args[1:])

        with _before(self.norm, put):
            # What it is run on up to there is taken away again: the same for every u, so that tokens stay apart.
            out: Tensor = self.module(torch.zeros_like(u))
        return u + (out - seen[0])


@torch.no_grad()
def halves(module: nn.Module, like: Float[Tensor, "1 ..."]) -> Halves | None:
    """Return a block's halves, None where it has none; it is run on `like` to find out.

    They must make up the block, and the second must treat every token as if it were alone.
    """
    if like.ndim != 3:
        return None
    try:
        return _halves(module, like)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        # It takes no fewer tokens than all of them, as with positions relative to each other.
        return None


def _halves(module: nn.Module, like: Float[Tensor, "1 t d"]) -> Halves | None:
    calls: list[nn.Module] = []

    def note(part: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].shape == like.shape:
            calls.append(part)

    norms = [part for part in module.modules() if "norm" in type(part).__name__.lower()]
    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        expected = module(like)
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) < 2 or calls.count(calls[-1]) != 1:
        return None
    found = Halves(module, calls[-1])
    between = found.first(like)
    alone = found.second(between[:, -1:])
    whole = found.second(between)
    return found if _near(whole, expected) and _near(alone, expected[:, -1:]) else None


def _near(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).norm() <= _ALIKE * expected.norm())


@contextmanager
def _before(part: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = part.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
