"""What a trained defense learns: to keep a frozen victim's answers, and to hide what they come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .. import seeding
from ..attacks import decoder
from ..attacks.learning import Moments
from ..attacks.networks import drawn
from ..attacks.parameters import within
from ..data.source import UNLABELLED
from ..types import Shape
from ..victims.bottleneck import Bottleneck, Plan
from .distance_correlation import LEAST, distance_correlation
from .material import Material, Part
from .outcome import percent

_SHARE = 4
_ADVERSARY_WIDTH = 32
_TINY = 1e-12


@dataclass(frozen=True)
class TrainedDefense:
    """A bottleneck of `width` channels behind a layer, a quarter of the layer's own unless told.

    What is lost is KL(undefended || defended) of the victim's classes or, of outputs that are no scores of classes,
    their squared error in units of their variance; plus the cross-entropy of labels, where those of the pictures are
    the victim's classes; plus `strength` times what is seen of a picture. `kind=nopeek` (Vepakomma et al., arXiv
    2008.09161) counts that as the distance correlation, corrected for its bias, between a batch's pictures and what is
    sent for them; `kind=adversarial` as how well a decoder restores them that is trained beside it.
    """

    kind: Literal["nopeek", "adversarial"] = "nopeek"
    strength: float = 1.0
    width: int | None = field(default=None, metadata={"least": 1})
    hidden: int | None = field(default=None, metadata={"least": 1})
    steps: int = within(1500, least=1)
    batch: int = within(64, least=LEAST)
    lr: float = 3e-3

    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {
        "quick": {"steps": 300},
        "standard": {},
        "full": {"steps": 10000},
    }

    def plan(self, shape: Shape) -> Plan:
        """Return what is built behind a layer of this shape."""
        channels = Plan(shape, 1, 1).channels
        return Plan(shape, self.width or max(channels // _SHARE, 1), self.hidden or channels)


@dataclass(frozen=True)
class Lesson:
    """Some pictures with the features at the layer, and their labels where the victim knows such."""

    features: Float[Tensor, "b ..."]
    images: Float[Tensor, "b 3 h w"]
    labels: Tensor | None


class Hiding(nn.Module):
    """What is trained: the bottleneck and, beside an adversarial one, a decoder; the victim is no part of it."""

    def __init__(self, defense: TrainedDefense, material: Material, layer: str, seed: int) -> None:
        super().__init__()
        self.defense, self.material, self.layer, self.seed = defense, material, layer, seed
        self.split = material.splits[layer]
        plan = defense.plan(material.train.features[layer].shape)
        draws, device = seeding.generator(seed, "fit", "defense", layer), self.split.device
        self.bottleneck = drawn(lambda: Bottleneck(plan), draws, device)
        moments = Moments()
        for features in material.train.batches(layer):
            moments.add(_grid(plan, features))
        for half in (self.bottleneck.encoder, self.bottleneck.decoder):
            for buffer, values in zip((half.mean, half.spread), moments.result(), strict=True):
                buffer.copy_(values.flatten())
        self.adversary: decoder.DecoderNetwork | None = None
        if defense.kind == "adversarial":
            against = decoder.Plan(plan.sent_shape, self.split.image_shape, _ADVERSARY_WIDTH)
            self.adversary = drawn(lambda: decoder.DecoderNetwork(against), draws, device)
            self.adversary.mean.zero_()
            self.adversary.spread.fill_(1.0)

    def lesson(self, part: Part, rows: Sequence[int], ways: list[int] | None) -> Lesson:
        """Return some rows of a part, shown as `ways` says.

        Raises:
            MaterialError: the pictures are no longer what their features were computed of.
        """
        pictures = part.pictures(rows, ways)
        images, labels = pictures.images, pictures.labels
        classes, device = self.material.victim.classes, self.split.device
        if classes is None or classes != part.source.classes or labels is None or not (labels != UNLABELLED).any():
            labels = None
        features = part.features[self.layer].read(rows, ways)
        return Lesson(features.to(device), images.to(device), None if labels is None else labels.to(device))

    def batch_loss(self, number: int) -> Tensor:
        """Return the loss of batch `number` of the pictures to train on."""
        train = self.material.train
        generator = seeding.generator(self.seed, "fit", "hide", number)
        chosen = torch.randperm(len(train.rows), generator=generator)[: self.defense.batch].tolist()
        ways = train.features[self.layer].ways(torch.rand(len(chosen), generator=generator).tolist())
        return self.loss(self.lesson(train, [train.rows[row] for row in chosen], ways))

    def loss(self, lesson: Lesson) -> Tensor:
        """Return what is lost of the answers and what is seen of the pictures."""
        with torch.no_grad():
            wanted = self._answers(lesson.features)
        sent = self.bottleneck.encoder(lesson.features)
        found = self._answers(self.bottleneck.decoder(sent))
        if self.material.victim.scores:
            loss = F.kl_div(found.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
        else:
            loss = (found - wanted).square().mean() / wanted.var(0).mean().clamp_min(_TINY)
        if lesson.labels is not None:
            loss = loss + F.cross_entropy(found, lesson.labels, ignore_index=UNLABELLED)
        if self.adversary is None:
            return loss + self.defense.strength * distance_correlation(lesson.images, sent)
        return loss + self.adversary.loss((_turned(sent, self.defense.strength), lesson.images))

    @torch.no_grad()
    def rows(self, held: Lesson) -> tuple[tuple[str, ...], ...]:
        """Return what is kept and what is seen of the layer's features, of what is sent instead, and of a control."""
        wanted = self._answers(held.features)
        sent = self.bottleneck.encoder(held.features)
        found = self._answers(self.bottleneck.decoder(sent))
        half = len(sent) // 2
        told = (
            ("the layer's features", wanted, held.features),
            ("the bottleneck's", found, sent),
            ("control: another picture's", found.roll(half, 0), sent.roll(half, 0)),
        )
        return tuple(
            (
                name,
                self._kept(answers, wanted),
                f"{float(distance_correlation(held.images, features)):.3f}",
                str(math.prod(features.shape[1:])),
                str(len(features)),
            )
            for name, answers, features in told
        )

    def _answers(self, features: Tensor) -> Float[Tensor, "b k"]:
        answers: Tensor = self.split.suffix(features)
        return answers.flatten(1).float()

    def _kept(self, found: Tensor, wanted: Tensor) -> str:
        if self.material.victim.scores:
            return percent(float((found.argmax(1) == wanted.argmax(1)).float().mean()))
        return f"{float(F.cosine_similarity(found, wanted).mean()):.3f}"


def _grid(plan: Plan, features: Tensor) -> Float[Tensor, "b c r s"]:
    """Return features as a grid whose second axis is that of the channels."""
    arranged = plan.arrange(features)
    if len(plan.shape) == 3:
        return arranged
    return arranged.reshape(len(features), -1, plan.channels).mT[..., None]


class _Turned(torch.autograd.Function):
    """The same forwards; backwards the gradient turned around and times a number."""

    @staticmethod
    def forward(ctx: Any, sent: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return sent.view_as(sent)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def _turned(sent: Tensor, strength: float) -> Tensor:
    """Return what was sent, so that whoever learns to restore it teaches whoever sends it the contrary.

    Source: Ganin et al. 2016, Domain-adversarial training of neural networks, section 4.2.
    """
    turned: Tensor = _Turned.apply(sent, strength)
    return turned
