"""Cutting a victim in two at any layer that everything goes through."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..pictures import read_picture
from ..registry import suggest
from ..types import PictureFile, Prefix, Segment, Shape, SplitModel
from .graph import depends
from .hooks import CutError, Network, Site, capture, features, in_this_thread, outputs, probe, running
from .layers import boundaries, look
from .segments import TOLERANCE, grey, relative_error, segments
from .structure import first, tensors
from .victim import Victim
from .weights import check_finite

__all__ = ["CutError", "Law", "NonFiniteError", "cut", "law", "onward"]

# One picture alone is not computed as two are, to the last bit, and a deep network amplifies that.
_ROWS_TOLERANCE = 1e-3


class NonFiniteError(CutError):
    """Features or outputs with NaN or infinities, though the weights are finite."""


@dataclass(frozen=True)
class Law:
    """How the law of the cut holds at one site.

    Attributes:
        error: |suffix(prefix(x)) - model(x)| / |model(x)|, the largest over the outputs, where the suffix starts from
            other pictures than x.
        bypassed: autograd knows a way from those pictures to the outputs.
        rows: the features have a row a picture, the same as for that picture alone.
        shape: the features of two pictures.
    """

    error: float
    bypassed: bool
    rows: bool
    shape: Shape

    @property
    def holds(self) -> bool:
        """Whether the victim can be cut here."""
        return self.rows and not self.bypassed and self.error <= TOLERANCE


class HookedPrefix(Prefix):
    """A victim up to a site, stopped there by a hook that lives for one run."""

    def __init__(self, victim: Victim, network: Network, site: Site) -> None:
        super().__init__()
        self.victim = victim
        self.network = network
        self.site = site
        self.training = False

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b ..."]:
        """Map RGB in [0, 1] to the features at the site."""
        return features(self.network, images, self.site)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The steps, one a block, that called in turn equal the prefix to 1e-5."""
        return segments(self.victim, self.network, self.site)


class Suffix(nn.Module):
    """A victim from a site on: it runs on grey pictures until a hook puts the leak in the place of their features."""

    def __init__(self, network: Network, site: Site, image_shape: Shape) -> None:
        super().__init__()
        self.network = network
        self.site = site
        self.image_shape = image_shape
        self.training = False

    def forward(self, leak: Float[Tensor, "b ..."]) -> Tensor:
        """Map features to the first tensor of the victim's outputs."""
        found = first(outputs(self.network, grey(leak, self.image_shape), (self.site, leak)))
        if found is None:
            raise CutError(f"the model returns no tensor after {self.site.module!r}")
        return found


class Onward(nn.Module):
    """A victim from one site to a later one: what whoever holds its suffix can make of a leak."""

    def __init__(self, network: Network, start: Site, end: Site, image_shape: Shape, given: Shape) -> None:
        super().__init__()
        self.network = network
        self.start, self.end = start, end
        self.image_shape = image_shape
        self.given = given
        self.training = False

    def forward(self, leak: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Map features at the one site to those at the other, on the network's device.

        Raises:
            CutError: they are of another shape than the features there.
        """
        shape = tuple(leak.shape[1:])
        if shape != self.given:
            expected = f"features of shape {self.given} at {self.start.module!r}"
            raise CutError(f"the network goes on from {expected}, not {shape}")
        weight = next(self.network.parameters(), leak)
        leak = leak.to(weight.device)
        if self.start == self.end:
            return leak
        return features(self.network, grey(leak, self.image_shape), self.end, (self.start, leak))


def cut(victim: Victim, layer: str) -> SplitModel:
    """Return the victim cut at `layer`, after checking the law of the cut there.

    `layer` is a module of the model as `named_modules` names it; `module#2` is the second call of one that is called
    more than once. Modes, hooks and weights of the victim stay as they are.

    Raises:
        CutError: no such layer, or no legal cut; the message names the nearest that are.
        NonFiniteError: the features or outputs of a noise picture are not finite.
        NonFiniteWeightsError: a weight is not finite.
    """
    check_finite(victim.model, victim.name)
    _check_mode(victim)
    network = Network(victim.normalise, victim.model)
    with running(victim.name, victim.image_shape):
        site, label = _resolve(victim, network, layer)
        found = law(victim, [site]).get(site)
    if found is None or not found.holds:
        _check_steady(victim, network)
        raise CutError(f"{victim.name} cannot be cut at {label!r}: {_why(found)}{_nearest(victim, site)}")
    return SplitModel(
        name=victim.name,
        layer=label,
        image_shape=victim.image_shape,
        prefix=HookedPrefix(victim, network, site),
        suffix=Suffix(network, site, victim.image_shape),
        load=partial(_load, victim),
        weights_sha256=victim.weights_sha256,
        preprocessing=victim.preprocessing,
    )


def onward(victim: Victim, start: str, end: str) -> Onward:
    """Return the victim from the cut at `start` on to the cut at `end`.

    Raises:
        CutError: no such layer, or `end` does not follow from the features at `start` alone.
    """
    network = Network(victim.normalise, victim.model)
    with running(victim.name, victim.image_shape):
        sites, labels = zip(*(_resolve(victim, network, layer) for layer in (start, end)), strict=True)
        with torch.no_grad():
            _, seen = capture(network, probe(network, victim.image_shape, 2, seed=2), sites)
            missing = next((label for site, label in zip(sites, labels, strict=True) if site not in seen), None)
            if missing is not None:
                raise CutError(f"{victim.name} returns no features at {missing!r}")
            found = Onward(network, sites[0], sites[1], victim.image_shape, tuple(seen[sites[0]].shape[1:]))
            error = relative_error(found(seen[sites[0]]), seen[sites[1]])
    if error > TOLERANCE:
        raise CutError(
            f"{victim.name} cannot be run on from {labels[0]!r} to {labels[1]!r}: what is there does not follow from "
            "the features at the former; name a later cut that is legal"
        )
    return found


def law(victim: Victim, sites: Iterable[Site]) -> dict[Site, Law]:
    """Check the law of the cut at every site that returns features, with two pictures and two others to start from.

    All are noise. The runs up to the sites are shared.

    Raises:
        NonFiniteError: the features at a site, or the outputs, are not finite.
    """
    network = Network(victim.normalise, victim.model)
    images, others = (probe(network, victim.image_shape, 2, seed=seed) for seed in (2, 3))
    sites = tuple(sites)
    with torch.no_grad():
        expected, leaks = capture(network, images, sites)
        _, alone = capture(network, images[:1], sites)
    for site, leak in leaks.items():
        if not torch.isfinite(leak).all():
            raise NonFiniteError(f"{victim.name} gives NaN or infinite features at {site.module!r} for noise pictures")
    if not all(torch.isfinite(tensor).all() for tensor in tensors(expected)):
        raise NonFiniteError(f"{victim.name} gives NaN or infinite outputs for noise pictures")
    real = {site: leak for site, leak in leaks.items() if leak.is_floating_point()}
    return {site: _law(network, others, site, leak, expected, alone[site]) for site, leak in real.items()}


def _law(network: Network, others: Tensor, site: Site, leak: Tensor, expected: object, alone: Tensor) -> Law:
    shape = tuple(leak.shape)
    if shape[:1] != others.shape[:1] or relative_error(alone, leak[:1]) > _ROWS_TOLERANCE:
        return Law(float("inf"), bypassed=False, rows=False, shape=shape)
    leaf = others.clone().requires_grad_()
    with torch.enable_grad():
        found = tensors(outputs(network, leaf, (site, leak)))
    wanted = tensors(expected)
    error = float("inf")
    if len(found) == len(wanted) > 0:
        error = max(relative_error(given.detach(), right) for given, right in zip(found, wanted))
    return Law(error, bypassed=depends(found, leaf), rows=True, shape=shape)


def _check_mode(victim: Victim) -> None:
    training = next((name for name, module in victim.model.named_modules() if module.training), None)
    if training is not None:
        raise CutError(f"{victim.name} is in training mode at {training or 'its root'}: call .eval() before cutting it")


def _resolve(victim: Victim, network: Network, layer: str) -> tuple[Site, str]:
    """Return the call that a layer names, and its name in full."""
    given, hash_sign, number = layer.partition("#")
    modules = {name: module for name, module in network.model.named_modules(remove_duplicate=False) if name}
    if given not in modules:
        near = list(modules)
        if not difflib.get_close_matches(given, near, cutoff=0.5):
            near = [call.label for call in boundaries(victim, look(victim))]
        raise CutError(f"{victim.name} has no layer {given!r}{suggest(given, near)}")
    # A module that goes by several names is known by its first.
    name = next(name for name, module in modules.items() if module is modules[given])
    times = _times(network, victim.image_shape, name)
    if times == 0:
        raise CutError(f"{victim.name} never runs {name!r} on a picture: a cut has to be at a layer that runs")
    if times == 1 and (not hash_sign or number == "1"):
        return Site(name), name
    if number.isdecimal() and 1 <= int(number) <= times:
        return Site(name, int(number)), f"{name}#{int(number)}"
    choice = f"{times} times: name a call, {name}#1 to {name}#{times}" if times > 1 else f"once: name it {name}"
    raise CutError(f"{victim.name} runs {name!r} {choice}; got {layer!r}")


@torch.no_grad()
def _times(network: Network, image_shape: tuple[int, int, int], name: str) -> int:
    """Return how often a module runs for one picture."""
    calls: list[str] = []
    hook = in_this_thread(lambda *_: calls.append(name))
    handle = network.model.get_submodule(name).register_forward_hook(hook)
    try:
        network(probe(network, image_shape, 1, seed=5))
    finally:
        handle.remove()
    return len(calls)


@torch.no_grad()
def _check_steady(victim: Victim, network: Network) -> None:
    images = probe(network, victim.image_shape, 1, seed=6)
    once, again = (tensors(outputs(network, images)) for _ in range(2))
    if not all(torch.equal(left, right) for left, right in zip(once, again)):
        raise CutError(
            f"{victim.name} gives other outputs each time for the same picture: a cut needs one without chance"
        )


def _why(found: Law | None) -> str:
    if found is None:
        return "it returns no features, that is no tensor of real numbers"
    if not found.rows and found.shape[:1] == (2,):
        return "the features of one picture depend on the others in its batch"
    if not found.rows:
        return f"two pictures give features of shape {found.shape}, whose first axis is not the pictures'"
    return f"something goes around it (same features, other pictures: the outputs differ by {found.error:.2g})"


def _nearest(victim: Victim, site: Site) -> str:
    """Name the legal cuts next to a site, in a few words."""
    try:
        seen = look(victim)
    except CutError:
        return ""
    place = next((index for index, call in enumerate(seen.calls) if call.site == site), len(seen.calls))
    beside = [call for call in seen.calls[:place] if call.legal][-1:]
    beside += [call for call in seen.calls[place + 1 :] if call.legal][:1]
    # Of the names of one value the shortest is the block's.
    names = [min((c.label for c in seen.legal if c.gives == call.gives), key=len) for call in beside]
    return f"; nearest legal cuts: {' and '.join(map(repr, names))}" if names else "; it has no legal cut"


def _load(victim: Victim, file: PictureFile) -> Float[Tensor, "3 h w"]:
    return victim.picture(read_picture(file))
