"""Victims with a trained defense in them: whoever attacks one knows the defense's weights as he knows the victim's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ..files import printable
from ..registry import register
from ..seeding import state_sha256
from ..types import SeepageError
from .bottleneck import inserted, read
from .load import network
from .source import Network, Request
from .victim import UnknownVictimError, WeightsError


@register("victim", "defended")
@dataclass(frozen=True)
class Defended:
    """What `seepage train defense` wrote, put into the victim that it was trained for."""

    about: ClassVar[str] = "a victim with a trained defense in it: the file that `seepage train defense` wrote"

    def names(self) -> tuple[str, ...]:
        """Return nothing: the files are the user's."""
        return ()

    def examples(self) -> dict[str, str]:
        """Return the form of a name."""
        return {
            "defended/path/to/defense.safetensors": "the victim that the file names, with the file's bottleneck in it; "
            "an absolute path has two slashes"
        }

    def build(self, request: Request) -> Network:
        """Build the victim, check that its weights are those that were defended, and put the bottleneck into it.

        Raises:
            UnknownVictimError: other weights or pictures than the file's are asked for.
            WeightsError: the file is absent or damaged, or what it defends is not to be had as it was.
        """
        path = Path(request.name).expanduser()
        if request.weights is not None:
            raise UnknownVictimError(
                f"defended/{request.name} brings its weights, got @{request.weights}: train a defense of that victim"
            )
        bottleneck, said = read(path)
        if said.victim.startswith("defended/"):
            raise WeightsError(f"{printable(path)} is damaged: it defends {said.victim}, which is defended already")
        if request.size not in (None, said.size):
            trained = "the victim's own size" if said.size is None else f"{said.size} pixels"
            raise UnknownVictimError(f"defended/{request.name} was trained at {trained}, got a size of {request.size}")
        try:
            _, base = network(said.victim, said.size)
        except SeepageError as error:
            raise WeightsError(f"the victim that {printable(path)} defends cannot be had: {error}") from error
        found = state_sha256(base.model.float())
        if found != said.weights_sha256:
            raise WeightsError(
                f"{printable(path)} defends {said.victim} with weights {said.weights_sha256[:12]}, and those at hand "
                f"are {found[:12]}: train a defense of these"
            )
        if said.layer not in dict(base.model.named_modules()):
            raise WeightsError(f"{printable(path)} is damaged: {said.victim} has no layer {said.layer!r}")
        return replace(
            base,
            name=request.name,
            model=inserted(base.model, said.layer, bottleneck),
            boundaries=None if base.boundaries is None else _between(base.boundaries, said.layer),
            defaults=(f"{said.layer}.encoder",),
            undefended=base.model,
            seen=said.seen,
        )


def _between(boundaries: tuple[str, ...], layer: str) -> tuple[str, ...]:
    """Put what the bottleneck takes and what it sends before the layer, which ends in what it gives."""
    names: list[str] = []
    for name in boundaries if layer in boundaries else (*boundaries, layer):
        names += [f"{name}.inner", f"{name}.encoder", name] if name == layer else [name]
    return tuple(names)
