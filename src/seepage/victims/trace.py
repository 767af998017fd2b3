"""One run of a victim, read afterwards: its module calls, what each costs, and where it can be cut."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..types import Shape
from .graph import Vertex, dominators, ending, vertex
from .hooks import CutError, Network, Site, in_this_thread, probe
from .kinds import Ending
from .structure import first, tensors, with_first


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module that returned features.

    Attributes:
        site: which call of which module.
        label: its name as a layer: the module's, and `#call` where there are several.
        shape: the shape of the first tensor it returned, without the batch.
        macs: multiply-adds a picture that were done when it returned.
        legal: every path from the pictures to the outputs goes through that tensor, and its rows are the pictures.
        takes: the number of the value it was called on; None where no module gave that, or where it took more that
            depends on the pictures.
        gives: the number of the value it returned; a value handed on as it came keeps its number.
        reshapes: its input had another shape than its output.
        bare: it returned that tensor and nothing around it.
        arguments: what it was called with, `(args, kwargs)`, an empty tensor in the place of the value it takes.
        ending: how its output came about.
    """

    site: Site
    label: str
    shape: Shape
    macs: int
    legal: bool
    takes: int | None
    gives: int
    reshapes: bool
    bare: bool
    arguments: Any
    ending: Ending


@dataclass(frozen=True)
class Trace:
    """All calls of a victim's modules in the order they returned, and its multiply-adds a picture.

    `pictures` is the number of the value its first module is given, `shape` that of its first output without the batch.
    """

    calls: tuple[Call, ...]
    pictures: int
    macs: int
    shape: Shape

    @property
    def legal(self) -> tuple[Call, ...]:
        """Every legal cut, in the order they run."""
        return tuple(call for call in self.calls if call.legal)


def trace(network: Network, image_shape: tuple[int, int, int], name: str) -> Trace:
    """Run the victim on one picture, then on two, and return what was seen.

    A cut is legal where autograd's graph knows no way around its tensor; the ways that the graph does not know of (a
    detached tensor, an index) are found by the law of the cut.

    Raises:
        CutError: the outputs carry no gradient to the pictures.
    """
    leaf = probe(network, image_shape, 1, seed=0).requires_grad_()
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        # Without a normalisation the leaf itself would reach the model, and no operation made that.
        given = network.normalise(leaf.clone())
        watch = _Watch(counter, given)
        with watch.over(network.model):
            result = network.model(given)
        macs = counter.get_total_flops() // 2
    through = dominators(tensors(result), leaf)
    if not through:
        raise CutError(
            f"the outputs of {name} carry no gradient to its pictures, so that its cuts cannot be listed: "
            f"its forward must neither detach them nor run under no_grad"
        )
    shapes = _shapes_of_two(network, image_shape, [call.site for call in watch.calls])
    calls = tuple(
        dataclasses.replace(
            call,
            label=watch.label(call.site),
            legal=place in through and rows == 1 and shapes.get(call.site) == (2, *call.shape),
        )
        for call, place, rows in zip(watch.calls, watch.places, watch.rows)
    )
    output = first(result)
    return Trace(calls, watch.pictures, macs, () if output is None else tuple(output.shape[1:]))


class _Watch:
    """Sees every module called and returning, and numbers the values that pass between them."""

    def __init__(self, counter: FlopCounterMode, given: Tensor) -> None:
        self.calls: list[Call] = []
        self.places: list[Vertex] = []
        self.rows: list[int] = []
        self._counter = counter
        self._numbers: dict[Vertex, int] = {}
        self._times: Counter[str] = Counter()
        self._entered: list[tuple[tuple[Tensor, ...], Vertex | None, Any]] = []
        start = vertex(given)
        assert start is not None
        self.pictures = self._number(start)

    def over(self, model: nn.Module) -> ExitStack:
        """Hook every module of a model for as long as the context lasts."""
        with ExitStack() as stack:
            for name, module in model.named_modules():
                if name:
                    enter, leave = in_this_thread(self._enter), in_this_thread(partial(self._leave, name))
                    stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                    stack.callback(module.register_forward_hook(leave).remove)
            return stack.pop_all()

    def label(self, site: Site) -> str:
        """Return a site's name as a layer."""
        return site.module if self._times[site.module] == 1 else f"{site.module}#{site.call}"

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = tensors((args, kwargs))
        # Noted now: the module may change its input in place.
        start = vertex(given[0]) if given else None
        alone = start in self._numbers and not any(tensor.requires_grad for tensor in given[1:])
        self._entered.append((given, start, (args, kwargs) if alone else None))

    def _leave(self, name: str, module: nn.Module, args: object, output: Any) -> Any:
        given, start, arguments = self._entered.pop()
        self._times[name] += 1
        raw = first(output)
        made = None if raw is None else vertex(raw)
        if raw is None or made is None or raw.ndim == 0:
            return None
        # A copy, as at a cut: what uses the module's output depends on the copy, what goes around it does not.
        copy = raw.clone()
        place, number = vertex(copy), self._number(made)
        assert place is not None
        self._numbers[place] = number
        call = Call(
            site=Site(name, self._times[name]),
            label=name,
            shape=tuple(raw.shape[1:]),
            macs=self._counter.get_total_flops() // 2,
            legal=False,
            takes=None if arguments is None or start is None else self._numbers[start],
            gives=number,
            reshapes=not given or given[0].shape != raw.shape,
            bare=isinstance(output, Tensor),
            arguments=None if arguments is None else with_first(arguments, given[0].new_empty(0)),
            ending=ending(made, start),
        )
        self.calls.append(call)
        self.places.append(place)
        self.rows.append(raw.shape[0])
        return with_first(output, copy)

    def _number(self, place: Vertex) -> int:
        return self._numbers.setdefault(place, len(self._numbers))


@torch.no_grad()
def _shapes_of_two(network: Network, image_shape: tuple[int, int, int], sites: list[Site]) -> dict[Site, Shape]:
    """The shapes of the features of two pictures: a cut's first axis is the pictures'."""
    shapes: dict[Site, Shape] = {}
    times: Counter[str] = Counter()

    def see(name: str, module: nn.Module, args: object, output: object) -> None:
        times[name] += 1
        found = first(output)
        if found is not None:
            shapes[Site(name, times[name])] = tuple(found.shape)

    with ExitStack() as stack:
        for name in {site.module for site in sites}:
            hook = in_this_thread(partial(see, name))
            stack.callback(network.model.get_submodule(name).register_forward_hook(hook).remove)
        network(probe(network, image_shape, 2, seed=1))
    return shapes
