"""Running a network up to one call of one module, or from there on, by hooks that live for one run."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..types import SeepageError
from .structure import first, with_first


class CutError(SeepageError):
    """A layer where this victim cannot be cut; the message says why, and the nearest ones where it can."""


@dataclass(frozen=True)
class Site:
    """One call of one module: its name in the victim's model, and which of its calls, counted from 1."""

    module: str
    call: int = 1


class Network(nn.Module):
    """A victim from RGB in [0, 1] to its outputs: its normalisation, then its model."""

    def __init__(self, normalise: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise
        self.model = model

    def forward(self, images: Tensor) -> object:
        """Map "b 3 h w" to whatever the model returns."""
        return self.model(self.normalise(images))


class _Reached(BaseException):
    """Ends a run at its stop; no `except Exception` inside a model catches it."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def outputs(network: Network, images: Tensor, inject: tuple[Site, Tensor] | None = None) -> object:
    """Run the network to its end; from `inject` on, its features take the place of those that the pictures gave."""
    with _injected(network, inject):
        return network(images)


def features(network: Network, images: Tensor, site: Site, inject: tuple[Site, Tensor] | None = None) -> Tensor:
    """Run the network until the call at `site` has returned, and give the first tensor of what it returned.

    Raises:
        CutError: that call never came, or it returned no tensor.
    """

    def stop(output: object) -> object:
        found = first(output)
        if found is None:
            raise CutError(f"{site.module!r} returns a {type(output).__name__} without a tensor: nothing to send")
        raise _Reached(found)

    try:
        with _injected(network, inject), hooked(network, site, stop):
            network(images)
    except _Reached as reached:
        return reached.features
    raise CutError(f"call {site.call} of {site.module!r} never came while the victim ran")


def capture(network: Network, images: Tensor, sites: Iterable[Site]) -> tuple[object, dict[Site, Tensor]]:
    """Run the network once and keep the features at every site that it passes."""
    kept: dict[Site, Tensor] = {}

    def keep(site: Site, output: object) -> None:
        found = first(output)
        if found is not None:
            # A later in-place operation would overwrite what is kept.
            kept[site] = found.clone()

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(hooked(network, site, partial(keep, site)))
        result = network(images)
    return result, kept


@contextmanager
def hooked(network: Network, site: Site, act: Callable[[object], object]) -> Iterator[None]:
    """Hand what the call at `site` returns to `act`, whose result replaces it unless that is None."""
    calls = itertools.count(1)

    def hook(module: nn.Module, arguments: object, output: object) -> object:
        return act(output) if next(calls) == site.call else None

    handle = network.model.get_submodule(site.module).register_forward_hook(in_this_thread(hook))
    try:
        yield
    finally:
        handle.remove()


def in_this_thread(hook: Callable[..., object]) -> Callable[..., object]:
    """Return the hook, deaf to other threads that run the same modules at the same time."""
    thread = threading.get_ident()
    return lambda *arguments: hook(*arguments) if threading.get_ident() == thread else None


@contextmanager
def _injected(network: Network, inject: tuple[Site, Tensor] | None) -> Iterator[None]:
    if inject is None:
        yield
        return
    site, leak = inject
    # The network may go on in place, and the leak is not its own.
    with hooked(network, site, lambda output: with_first(output, leak.clone())):
        yield


def probe(network: Network, image_shape: tuple[int, int, int], rows: int, seed: int) -> Tensor:
    """Return noise pictures in [0, 1] of the network's own type, on its device, the same ones for a seed."""
    weight = next((item for item in network.parameters() if item.is_floating_point()), torch.zeros(()))
    noise = torch.rand(rows, *image_shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(weight.device, weight.dtype)


@contextmanager
def running(name: str, image_shape: tuple[int, int, int]) -> Iterator[None]:
    """Say in one line that a victim does not run on pictures of its own shape, and why.

    Raises:
        CutError: it raised what a network raises on inputs that do not suit it.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        shape = "x".join(map(str, image_shape))
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CutError(f"{name} does not run on pictures of {shape}: {reason}") from error
