"""From `SOURCE/NAME[@WEIGHTS]` to a victim."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .. import registry
from ..seeding import state_sha256
from ..types import SeepageError
from .families import spread
from .source import Exemplary, File, Network, Random, Request, Source, Tag, Weights
from .victim import UnknownVictimError, Victim, WeightsError
from .weights import SUFFIXES, seeded

_GRAMMAR = "a victim is SOURCE/NAME[@WEIGHTS]"
# A path may hold an @, what stands after it may not.
_PATHS = {"module": r"(.*?:[^@/]*)(?:@(.*))?", "defended": r"(.*\.safetensors|[^@]*)(?:@(.*))?"}


@dataclass(frozen=True)
class KnownSource:
    """A source of victims: its name, a sentence, the names it knows by heart, and whole names to type."""

    name: str
    about: str
    names: tuple[str, ...]
    examples: dict[str, str]


def known() -> tuple[KnownSource, ...]:
    """Return the sources of victims, each with a sentence and the names it knows."""
    found = []
    for name in registry.names("victim"):
        source: Source = registry.build("victim", name)
        examples = source.examples() if isinstance(source, Exemplary) else {}
        found.append(KnownSource(name, source.about, source.names(), examples))
    return tuple(found)


def load(name: str, *, device: str | torch.device = "cpu", size: int | None = None) -> Victim:
    """Return the victim that `SOURCE/NAME[@WEIGHTS]` names, in eval mode, its weights without gradients.

    `size` is the side of a square input in pixels, where the network takes another than its own. The global random
    state is as it was before, whatever the constructor drew.

    Raises:
        UnknownVictimError: no such source or name.
        WeightsError: the weights cannot be had or do not fit. Whether they are finite is asked where they are used.
        SeepageError: the network does not take this size.
    """
    full, found = network(name, size)
    model = _ready(found.model, device)
    victim = Victim(
        name=full,
        model=model,
        normalise=found.preprocessing.normaliser().to(device),
        image_shape=found.preprocessing.image_shape,
        picture=found.preprocessing,
        preprocessing=found.preprocessing.describe(),
        weights_sha256=state_sha256(model),
        boundaries=found.boundaries,
        defaults=_defaults(found),
        classes=found.classes,
        scores=found.scores or found.classes is not None,
        undefended=None if found.undefended is None else _ready(found.undefended, device),
        seen=found.seen,
    )
    if size is not None:
        _check_size(victim, size)
    return victim


def network(name: str, size: int | None = None) -> tuple[str, Network]:
    """Return the full name of what `SOURCE/NAME[@WEIGHTS]` names, and the network as its source builds it.

    Raises:
        SeepageError: as `load` does.
    """
    source, request = parse(name)
    if size is not None and size < 1:
        raise SeepageError(f"a size is a whole number of pixels above 0, got {size}")
    request = Request(request.name, request.weights, size)
    seed = request.weights.seed if isinstance(request.weights, Random) else 0
    component: Source = registry.build("victim", source)
    with seeded(seed), _explained(name, size):
        found = component.build(request)
    return f"{source}/{found.name}", found


def _ready(model: nn.Module, device: str | torch.device) -> nn.Module:
    return model.float().eval().requires_grad_(False).to(device)


def parse(name: str) -> tuple[str, Request]:
    """Split `SOURCE/NAME[@WEIGHTS]` into the source and the request.

    Raises:
        UnknownVictimError: it is not of that form, or there is no such source.
    """
    source, slash, rest = name.partition("/")
    sources = registry.names("victim")
    if source not in sources:
        near = _with_source(name, sources) if not slash else registry.suggest(source, sources)
        raise UnknownVictimError(f"{_GRAMMAR} with a SOURCE of {', '.join(sources)}; got {name!r}{near}")
    pattern = _PATHS.get(source, r"([^@]*)(?:@(.*))?")
    match = re.fullmatch(pattern, rest, re.DOTALL)
    bare, weights = (match.group(1), match.group(2)) if match else (rest, None)
    if not bare or weights == "":
        raise UnknownVictimError(f"{_GRAMMAR}, got {name!r}")
    return source, Request(bare, _weights(name, weights))


def _weights(name: str, text: str | None) -> Weights:
    if text is None:
        return None
    if text == "random":
        return Random()
    if text.startswith("random:"):
        seed = text.removeprefix("random:")
        if not seed.isdecimal() or int(seed) >= 2**63:
            raise WeightsError(f"@random:SEED takes a whole number from 0 to 2^63 - 1, got {seed!r} in {name!r}")
        return Random(int(seed))
    if text.endswith(SUFFIXES):
        return File(Path(text).expanduser())
    return Tag(text)


def _with_source(name: str, sources: tuple[str, ...]) -> str:
    bare = name.partition("@")[0]
    full = [f"{source}/{bare}" for source in sources if bare in registry.build("victim", source).names()]
    return "; did you mean " + " or ".join(map(repr, full)) + "?" if full else ""


def _defaults(network: Network) -> tuple[str, ...] | None:
    if network.defaults is not None or network.boundaries is None:
        return network.defaults
    return spread(network.boundaries)


@torch.no_grad()
def _check_size(victim: Victim, size: int) -> None:
    """Run the network once: some take any size, and only a run tells."""
    device = next((weight.device for weight in victim.model.parameters()), None)
    with _explained(victim.name, size):
        victim.model(victim.normalise(torch.full((1, *victim.image_shape), 0.5, device=device)))


@contextlib.contextmanager
def _explained(name: str, size: int | None) -> Iterator[None]:
    """Turn what a library raises over an impossible size or setting into one line."""
    try:
        yield
    except (RuntimeError, ValueError, AssertionError, TypeError, LookupError, ArithmeticError, OSError) as error:
        what = "cannot be built" if size is None else f"does not take pictures of {size}x{size}"
        reason = str(error).partition("\n")[0]
        raise SeepageError(f"{name} {what}: {reason}") from error
