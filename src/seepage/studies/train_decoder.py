"""Training of a decoder from cached features, step by step, so that it can be stopped and gone on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .. import seeding
from ..attacks.decoder import Decoder, DecoderNetwork, DecoderRecoverer, Plan
from ..attacks.learning import Moments
from ..attacks.loop import Loop
from ..attacks.networks import drawn
from ..priors.ridge import Layout
from ..types import Progress
from .material import Material, Part
from .outcome import Outcome
from .stages import Watched

_HELD = 64


def train_decoder(
    attack: Decoder, material: Material, loop: Loop, header: Mapping[str, object], folder: Path, progress: Progress
) -> tuple[DecoderRecoverer, Outcome]:
    """Return a decoder trained at the material's one layer, and its loss on held-out pictures beside its controls.

    Pictures and their features are mirrored or cropped at random, where features of that were kept. The weights are
    those of the last step; nothing is chosen by the held-out loss.

    Raises:
        TrainingError: nothing could be learned.
        CheckpointError: the folder holds another training.
    """
    attack = replace(attack, train="public")
    ((layer, split),) = material.splits.items()
    train, select = material.train, material.select
    seed, device = int(str(header["seed"])), split.device
    plan = Plan(train.features[layer].shape, split.image_shape, attack.width)
    layout = Layout.of(plan.leak_shape, plan.image_shape)
    moments = Moments()
    for features in train.batches(layer):
        moments.add(layout.arrange(features))
    mean, spread = moments.result()
    network = drawn(lambda: DecoderNetwork(plan), seeding.generator(seed, "fit", "decoder", layer), device)
    network.mean.copy_(mean)
    network.spread.copy_(spread)
    held, pictures = _lesson(select, layer, select.few(_HELD), None)

    def loss(number: int) -> Tensor:
        generator = seeding.generator(seed, "fit", "decode", number)
        chosen = torch.randperm(len(train.rows), generator=generator)[: attack.batch].tolist()
        ways = train.features[layer].ways(torch.rand(len(chosen), generator=generator).tolist())
        features, images = _lesson(train, layer, [train.rows[row] for row in chosen], ways)
        where = next(network.parameters()).device
        return network.loss((features.to(where), images.to(where)))

    def test() -> dict[str, float]:
        where = next(network.parameters()).device

        def mean_loss(given: Tensor) -> float:
            rows = torch.split(torch.arange(len(held)), attack.batch)
            parts = [network.loss((given[part].to(where), pictures[part].to(where))) * len(part) for part in rows]
            return float(torch.stack(parts).sum()) / len(held)

        grey = network.decode(torch.zeros_like(network.mean).expand(1, *layout.grid)).cpu() - pictures
        nothing = float(grey.abs().mean() + grey.square().mean())
        return {"held-out": mean_loss(held), "shuffled": mean_loss(held.roll(1, 0)), "no features": nothing}

    stage = Watched("decoder", "|off| + off², mean over pixels", loop, folder / "decoder").run(
        network, loss, test, header, progress
    )
    ends = {name: values[-1][1] for name, values in stage.held.items()}
    rows = tuple(
        (said, f"{ends[name]:.4f}", str(len(held)))
        for name, said in (
            ("held-out", "its own features"),
            ("shuffled", "control: another picture's"),
            ("no features", "control: the mean features"),
        )
        if name in ends
    )
    outcome = Outcome((stage,), f"Held-out pictures decoded at {layer}", ("decoded from", "loss", "pictures"), rows)
    return DecoderRecoverer(attack, plan, network), outcome


def _lesson(part: Part, layer: str, rows: Sequence[int], ways: list[int] | None) -> tuple[Tensor, Tensor]:
    """Return features and pictures of some rows, both shown as `ways` says."""
    return part.features[layer].read(rows, ways), part.pictures(rows, ways).images
