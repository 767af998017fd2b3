"""Training of a defense: a bottleneck behind one layer that hides pictures and keeps the frozen victim's answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ..attacks.loop import Loop
from ..pictures import remembered
from ..types import Progress
from ..victims.bottleneck import Bottleneck, Said
from .distance_correlation import LEAST
from .hiding import Hiding, TrainedDefense
from .material import Material, MaterialError
from .outcome import Outcome
from .stages import Watched

_HELD = 256
_UNIT = "what is lost of the answers, and what is seen of the pictures"


def train_defense(
    defense: TrainedDefense,
    material: Material,
    size: int | None,
    loop: Loop,
    header: Mapping[str, object],
    folder: Path,
    progress: Progress,
) -> tuple[Bottleneck, Said, Outcome]:
    """Return a bottleneck trained behind the material's one layer, what its file is to say, and what it does.

    The victim's own weights stay as they are. The bottleneck's are those of the last step; nothing is chosen by
    held-out pictures.

    Raises:
        MaterialError: the layer runs more than once, the victim has a trained defense, or there are too few pictures.
        TrainingError: nothing could be learned.
        CheckpointError: the folder holds another training.
    """
    ((layer, _),) = material.splits.items()
    _require_place(material, layer)
    hiding = Hiding(defense, material, layer, int(str(header["seed"])))
    held = hiding.lesson(material.select, material.select.few(_HELD), None)
    stage = Watched("bottleneck", _UNIT, loop, folder / "bottleneck").run(
        hiding, hiding.batch_loss, lambda: {"held-out": float(hiding.loss(held))}, header, progress
    )
    said = Said(
        victim=material.victim.name,
        weights_sha256=material.victim.weights_sha256,
        layer=layer,
        size=size,
        plan=hiding.bottleneck.plan,
        defense=asdict(defense),
        seen=tuple(sorted(remembered(material.train.hashes()))),
    )
    kept = "agreement" if material.victim.scores else "cosine"
    columns = ("what is sent", kept, "distance correlation", "numbers", "pictures")
    outcome = Outcome((stage,), f"Held-out pictures, sent at {layer}", columns, hiding.rows(held))
    return hiding.bottleneck, said, outcome


def _require_place(material: Material, layer: str) -> None:
    name = material.victim.name
    if "#" in layer:
        raise MaterialError(f"{name} runs {layer!r} as one call of several: a bottleneck stands at what runs once")
    if material.victim.undefended is not None:
        raise MaterialError(f"{name} has a trained defense: train one of the victim that it defends")
    for part in (material.train, material.select):
        if len(part.rows) < LEAST:
            raise MaterialError(
                f"{len(part.rows)} pictures of {part.source.name} gave features: a defense takes at least {LEAST} to "
                "learn from and as many to measure on"
            )
