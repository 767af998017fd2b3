"""Where a victim can be cut, and what a cut there sends and costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from .. import wire
from ..types import Leak, LeakHeader, Shape
from .families import spread
from .hooks import Network, running
from .kinds import RESIDUAL, kind_of
from .trace import Call, Trace, trace
from .victim import Victim

_FORMATS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Layer:
    """A legal cut.

    Attributes:
        name: the module, and `#call`, counted from 1, where it is called more than once.
        index: its position among all legal cuts, in the order they run.
        shape: the features of one picture.
        bytes: what one picture's features weigh on the wire, by number format.
        macs_before: multiply-adds a picture up to the cut.
        macs_after: multiply-adds a picture from the cut on; with `macs_before` those of the whole victim.
        kind: the kind of block that ends here, None where none does.
    """

    name: str
    index: int
    shape: Shape
    bytes: dict[str, int]
    macs_before: int
    macs_after: int
    kind: str | None


def layers(victim: Victim, every: bool = False) -> tuple[Layer, ...]:
    """Return the legal cuts at block boundaries, or every legal cut, in the order they run.

    The victim runs twice. That a cut is legal is read off autograd's graph; `cut` checks the law itself.

    Raises:
        CutError: the victim does not run on pictures of its own shape, or its outputs carry no gradient to them.
    """
    seen = look(victim)
    order = {call.site: index for index, call in enumerate(seen.legal)}
    kinds = value_kinds(victim.model, seen)
    return tuple(
        Layer(
            name=call.label,
            index=order[call.site],
            shape=call.shape,
            bytes={wire_format: _bytes(call.shape, wire_format) for wire_format in _FORMATS},
            macs_before=call.macs,
            macs_after=seen.macs - call.macs,
            kind=kinds.get(call.gives),
        )
        for call in (seen.legal if every else boundaries(victim, seen))
    )


def default_layers(victim: Victim) -> tuple[str, ...]:
    """Return the cuts that an audit takes unless it is told: the victim's own, else about five over its blocks.

    Of a module that the victim calls more than once, its first legal call.

    Raises:
        CutError: the victim does not run, or its outputs carry no gradient to the pictures.
    """
    seen = look(victim)
    if victim.defaults is not None:
        first = {call.site.module: call.label for call in reversed(seen.legal)}
        return tuple(first[name] for name in victim.defaults if name in first)
    blocks: dict[int, str] = {}
    for call in boundaries(victim, seen, tail=False):
        blocks.setdefault(call.gives, call.label)
    return spread(tuple(blocks.values()))


def look(victim: Victim) -> Trace:
    """Run the victim on noise and return what was seen."""
    with running(victim.name, victim.image_shape):
        return trace(Network(victim.normalise, victim.model), victim.image_shape, victim.name)


def boundaries(victim: Victim, seen: Trace, *, tail: bool = True) -> tuple[Call, ...]:
    """Return the legal cuts at block boundaries; `tail` adds a classifier's pooled vector and logits."""
    names = set(victim.boundaries if victim.boundaries is not None else _containers(victim.model))
    found = [call for call in seen.legal if call.site.module in names]
    if not found or (victim.boundaries is None and isinstance(victim.model, nn.Sequential)):
        found = [call for call in seen.legal if call in found or "." not in call.site.module]
    ends = _classifier(seen, found) if tail else ()
    return tuple(call for call in seen.legal if call in found or call in ends)


def value_kinds(model: nn.Module, seen: Trace) -> dict[int, str]:
    """Return the kind of block that each value ends, by the value's number; a block before a step within it."""
    kinds: dict[int, str] = {}
    for call in seen.calls:
        kind = call_kind(model, call)
        if kind is not None and kinds.get(call.gives) not in RESIDUAL:
            kinds[call.gives] = "stem" if kind == "conv" and call.takes == seen.pictures else kind
    return kinds


def call_kind(model: nn.Module, call: Call) -> str | None:
    """Return the kind of block that one call's module is."""
    kind = kind_of(model.get_submodule(call.site.module), call.ending, reshapes=call.reshapes)
    # A classifier may be a convolution by 1x1.
    return "head" if kind == "conv" and len(call.shape) == 1 else kind


def _containers(model: nn.Module, prefix: str = "") -> Iterator[str]:
    """The children of every outermost Sequential or ModuleList, and its own end."""
    for name, child in model.named_children():
        path = prefix + name
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from (f"{path}.{grandchild}" for grandchild, _ in child.named_children())
            yield path
        else:
            yield from _containers(child, path + ".")


def _classifier(seen: Trace, blocks: list[Call]) -> tuple[Call, ...]:
    """The pooled vector and the logits, where the outputs are one vector a picture and no block ends in them."""
    if len(seen.shape) != 1:
        return ()
    known = {call.gives for call in blocks}
    after = seen.legal[seen.legal.index(blocks[-1]) + 1 :] if blocks else seen.legal
    vectors = [call for call in after if _is_vector(call.shape) and call.gives not in known]
    return tuple({call.gives: call for call in (*vectors[:1], *vectors[-1:])}.values())


def _is_vector(shape: Shape) -> bool:
    """Whether it is one vector a picture, with or without axes of one pixel after it."""
    return shape[:1] == (math.prod(shape),)


def _bytes(shape: Shape, wire_format: str) -> int:
    leak = Leak(torch.zeros(1, *shape), LeakHeader("", "", "", ""))
    return wire.bytes_per_image(wire.encode(leak, wire_format))
