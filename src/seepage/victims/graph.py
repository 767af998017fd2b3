"""Questions to autograd's graph of one run: what every path goes through, and how a value came about."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from torch import Tensor

from .kinds import Ending

Vertex = tuple[Any, int]
"""A tensor as autograd knows it: the operation that made it, and which of its results it is."""

_ACTIVATIONS = {
    name: name.lower()
    for name in ("Relu", "Gelu", "Silu", "Hardtanh", "Hardswish", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "ClampMin")
}
_JOINS = {"Add": "add", "Cat": "cat"}
_COPIES = ("Clone", "Alias")


def vertex(tensor: Tensor) -> Vertex | None:
    """Return where a tensor stands in the graph, None where no operation under gradient made it."""
    return None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


def depends(results: Iterable[Tensor], leaf: Tensor) -> bool:
    """Return whether autograd knows a path from the leaf to any of the results."""
    return bool(dominators(results, leaf))


def dominators(results: Iterable[Tensor], leaf: Tensor) -> set[Vertex]:
    """Return the vertices that every path from the leaf to the results goes through; none where there is no path."""
    roots = [root for root in map(vertex, results) if root is not None]
    order = _between(roots, leaf)
    position = {item: index for index, item in enumerate(order)}
    # An edge leaves out whatever stands strictly between its ends, in any topological order.
    skipped = [0] * (len(order) + 1)
    edges = [(-1, position[root]) for root in roots if root in position]
    edges += [(position[item], position[source]) for item in order for source in _sources(item) if source in position]
    for start, end in edges:
        skipped[start + 1] += 1
        skipped[end] -= 1
    return {item for item, count in zip(order, accumulate(skipped)) if count == 0}


def ending(made: Vertex, given: Vertex | None) -> Ending:
    """Return how the value `made` came about from the value `given`, read backwards."""
    last = _original(made, given)
    activation = _ACTIVATIONS.get(_operation(last))
    if activation is not None and last != given:
        last = _original(_sources(last)[0], given)
    joins = _JOINS.get(_operation(last)) if last != given and len(_sources(last)) > 1 else None
    if joins is None:
        return Ending(activation)
    return Ending(activation, joins, given is not None and _carried(last, given))


def _between(roots: Iterable[Vertex], leaf: Tensor) -> list[Vertex]:
    """Every vertex on a path from a root down to the leaf, those nearer the roots first."""
    reaches: dict[Vertex, bool] = {}
    finished: list[Vertex] = []
    pending = [(root, False) for root in roots]
    while pending:
        item, expanded = pending.pop()
        if expanded:
            sources = _sources(item)
            reaches[item] = _is_leaf(item, leaf) or any(reaches[source] for source in sources)
            finished.append(item)
        elif item not in reaches:
            reaches[item] = False
            pending.append((item, True))
            pending.extend((source, False) for source in _sources(item) if source not in reaches)
    return [item for item in reversed(finished) if reaches[item]]


def _sources(item: Vertex) -> list[Vertex]:
    return [(operation, result) for operation, result in item[0].next_functions if operation is not None]


def _is_leaf(item: Vertex, leaf: Tensor) -> bool:
    return getattr(item[0], "variable", None) is leaf


def _operation(item: Vertex) -> str:
    name: str = item[0].name()
    return name.partition("Backward")[0]


def _original(item: Vertex, given: Vertex | None) -> Vertex:
    """Follow copies back to what was copied, no further than `given`."""
    while item != given and _operation(item) in _COPIES:
        item = _sources(item)[0]
    return item


def _carried(item: Vertex, given: Vertex) -> bool:
    """Whether `given` reaches this value by copies and additions alone, or stands in this concatenation."""
    item = _original(item, given)
    if item == given:
        return True
    return _operation(item) in _JOINS and any(_carried(source, given) for source in _sources(item))
