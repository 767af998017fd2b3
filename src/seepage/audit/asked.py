"""Which metrics are asked of which cell: those that read what its attack recovers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .. import registry
from ..attacks.caprecover import adapter
from ..attacks.equipped import Placed
from ..attacks.parameters import require_sensible
from ..metrics.label import Agreement, TopLabels
from ..registry import PluginError
from ..types import Attack, Captions, Images, Labels, Metric, Recovers, Scores, SeepageError
from .request import (
    CAPTION_METRICS,
    DEFAULT_ATTACKS,
    IDENTITY_METRICS,
    LABEL_METRICS,
    PICTURE_METRICS,
    Request,
)

_UNASKED: Mapping[Recovers, tuple[str, ...]] = {
    "images": PICTURE_METRICS,
    "captions": CAPTION_METRICS,
    "labels": LABEL_METRICS,
}
# What was said or named may also be ranked: an attack on words can be asked which of several fits a leak best.
_READ: Mapping[Recovers, tuple[type, ...]] = {
    "images": (Images,),
    "captions": (Captions, Scores),
    "labels": (Labels, Scores),
}


def attack_of(request: Request, text: str) -> Attack:
    """Build an attack at the request's effort.

    Raises:
        SeepageError: no such attack or parameter, or a value that it cannot have.
    """
    name, _ = registry.parse(text)
    efforts = registry.get("attack", name).efforts
    built = registry.build("attack", text, efforts.get(request.effort, {}))
    if getattr(built, "recovers", None) not in _READ:
        wanted = ", ".join(map(repr, _READ))
        raise PluginError(f"attack {name!r} does not say what it recovers: its `recovers` is one of {wanted}")
    attack: Attack = built
    require_sensible(attack, name)
    return attack


def attacks_of(request: Request) -> tuple[str, ...]:
    """Return the attacks to run, each with all its parameters.

    Where none is named, those that every audit runs and, of a victim that an adapter ships for, `caprecover`.

    Raises:
        SeepageError: as `attack_of` does.
    """
    wanted = request.attacks or (*DEFAULT_ATTACKS, *_shipped(request))
    return tuple(dict.fromkeys(registry.spec("attack", attack_of(request, text)) for text in wanted))


def _shipped(request: Request) -> tuple[str, ...]:
    """Return what ships trained for the request's victim, where its captions would be scored."""
    scored = request.size is None and metrics_of(request, "captions")
    return adapter.ready_for(request.victim) if scored else ()


def metrics_of(request: Request, recovers: Recovers) -> dict[str, Metric]:
    """Return the metrics asked of a cell whose attack `recovers` this, by key; a gallery asks for its own.

    Raises:
        SeepageError: no such metric, of whatever it is asked.
    """
    wanted = request.metrics or _UNASKED[recovers]
    if request.gallery is not None and not set(wanted) & set(IDENTITY_METRICS):
        wanted = (*wanted, *IDENTITY_METRICS)
    built: dict[str, Metric] = {name: registry.build("metric", name) for name in dict.fromkeys(wanted)}
    return {name: metric for name, metric in built.items() if set(metric.reads) & set(_READ[recovers])}


def asks_label_judge(metrics: Iterable[Metric], recovers: Recovers) -> bool:
    """Return whether any of these metrics asks a label judge about what is recovered."""
    return recovers == "images" and any(isinstance(metric, Agreement | TopLabels) for metric in metrics)


def places_of(attack: Attack) -> tuple[str, ...]:
    """Return the cuts that an attack is made for; none where any will do, or where its cells will say what it lacks."""
    try:
        return (attack.places() if isinstance(attack, Placed) else None) or ()
    except SeepageError:
        return ()
