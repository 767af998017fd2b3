"""A learned decoder: a network trained to give pictures for features, by an attacker who may only ask."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..priors import dead_leaves
from ..priors.ridge import Layout
from ..registry import register
from ..types import (
    Access,
    Auxiliary,
    Generators,
    Images,
    Knowledge,
    Leak,
    NotRunError,
    Progress,
    Recoverer,
    Recovers,
    Recovery,
    Shape,
    Status,
)
from .blocks import Residual, Spread, coarse
from .chores import Chore
from .inversion import recover_rows
from .learning import Course, Lesson, Moments, Pairs, Source, drawing, kept_back, public, rows_to_select_on, synthetic
from .networks import SLOPE, SavedAttackError, drawn, read, write
from .parameters import within
from .trained import FromFile, Origin, origin_of, said_of

_THINNEST = 16


@register("attack", "decoder")
@dataclass(frozen=True)
class Decoder(FromFile):
    """Train a convolutional network d on pairs of leak and picture to minimise |d(leak) - x|_1 + |d(leak) - x|^2.

    Both terms are means over pixels. Learned inversion: Dosovitskiy & Brox (CVPR 2016), and as a black-box attack on
    split inference He et al. (ACSAC 2019). `train=synthetic` asks the victim about `pictures` dead-leaves pictures
    (auxiliary: synthetic), `train=public` uses the leaks of pictures that the attacker owns, as they were received
    (auxiliary: public). Features are standardised by channel; a grid of them is decoded at its own size by residual
    blocks of `width` maps and doubled until it is the picture's, maps getting fewer; of tokens, leading ones that lie
    nowhere are left out; a vector is spread over a coarse grid first. At most `steps` steps of Adam of `batch` pictures
    each, the rate falling from `lr` along a cosine; the weights kept are those that did best on held-out pairs.

    Black-box: it sees leaks of pictures of its own and no prefix, or its own runs of the prefix where it has that
    alone. Recovering takes no pass through the victim, so a row is never checked against its leak and always `stopped`.
    `adapter=FILE` is what `seepage train decoder` wrote, for one victim and layer.
    """

    train: Source = "synthetic"
    pictures: int = within(384, least=2)
    steps: int = within(800, least=1)
    batch: int = within(8, least=1)
    lr: float = 3e-3
    width: int = within(64, least=1)
    adapter: Path | None = None

    recovers: ClassVar[Recovers] = "images"
    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {
        "quick": {"pictures": 96, "steps": 100},
        "standard": {},
        "full": {"pictures": 1536, "steps": 6000},
    }

    @property
    def access(self) -> Access:
        """Answers of the victim are enough."""
        return "black-box"

    @property
    def auxiliary(self) -> Auxiliary:
        """Whatever it is trained on; what `seepage train` wrote has learned from public pictures."""
        return self.train if self.adapter is None else "public"

    @property
    def budget(self) -> int:
        """Recovering needs no pass."""
        return 0

    def fit(
        self,
        knowledge: Knowledge,
        generator: torch.Generator,
        *,
        workdir: Path | None = None,
        progress: Progress | None = None,
    ) -> Recoverer:
        """Train the network.

        Raises:
            NotRunError: the attacker can neither ask nor owns pairs.
            TrainingError: nothing could be learned.
            SavedAttackError: the file that `adapter` names holds no decoder.
        """
        if self.adapter is not None:
            return self.load(self.adapter, knowledge)
        tell = progress or (lambda done, what: None)
        lessons, held = self._lessons(knowledge, generator)
        shape, device = next(((tuple(f.shape[1:]), f.device) for f, _ in lessons), ((1,), torch.device("cpu")))
        layout = Layout.of(shape, knowledge.image_shape)
        moments = Moments()
        for features, _ in lessons:
            moments.add(layout.arrange(features))
        mean, spread = moments.result()
        plan = Plan(shape, knowledge.image_shape, self.width)
        network = drawn(lambda: DecoderNetwork(plan), generator, device)
        network.mean.copy_(mean)
        network.spread.copy_(spread)
        course = Course(self.steps, self.lr, self.batch)
        course.teach(network, network.loss, lessons, held, generator, lambda done: tell(done, "decoder"))
        return DecoderRecoverer(self, plan, network)

    def chores(self, knowledge: Knowledge, rows: int) -> Sequence[Chore]:
        """Return drawing and asking, or the attacker's own pairs, then training and decoding.

        Raises:
            NotRunError: the attacker can neither ask nor owns pairs.
        """
        if self.adapter is not None:
            return ()
        generator = torch.Generator().manual_seed(0)
        if self.train == "public":
            pairs = public(knowledge, "decoder").train
            lesson, held = next(iter(Pairs(pairs)), None), rows_to_select_on(knowledge)
            if lesson is None:
                raise NotRunError("decoder with train=public learns from pictures that the attacker owns, and has none")
            # Pairs are read each time that training comes to them.
            given = [Chore(lambda: next(iter(pairs)), fitting=self.steps * self.batch / len(lesson[0]))]
        else:
            ask = _asking(knowledge)
            images = dead_leaves(1, knowledge.image_shape, generator)
            lesson, held = (ask(images), images), kept_back(self.pictures)
            given = [drawing(self.pictures, knowledge.image_shape), Chore(lambda: ask(images), fitting=self.pictures)]
        features, images = (part[:1].expand(self.batch, *part.shape[1:]) for part in lesson)
        plan = Plan(tuple(features.shape[1:]), knowledge.image_shape, self.width)
        network = drawn(lambda: DecoderNetwork(plan), generator, features.device)
        network.mean.zero_()
        network.spread.fill_(1.0)
        course = Course(self.steps, self.lr, self.batch)
        training = course.rehearsal(network, network.loss, (features, images), held)

        @torch.no_grad()
        def decode() -> Tensor:
            decoded: Tensor = network(features[:1])
            return decoded

        return *given, training, Chore(decode, each=1)

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        """Return the recoverer that was saved to `path`; nothing of the victim is needed.

        Raises:
            SavedAttackError: the file holds no decoder, or one for pictures of another size.
        """
        tensors, said = read(path)
        try:
            attack = Decoder(**said["decoder"])
            plan = Plan(tuple(said["leak_shape"]), tuple(said["image_shape"]), attack.width)
            network = drawn(lambda: DecoderNetwork(plan), torch.Generator(), torch.device("cpu"))
            network.load_state_dict(tensors)
            origin = origin_of(said)
        except (KeyError, TypeError, RuntimeError) as error:
            raise SavedAttackError(f"{path} holds no decoder: {str(error).partition(chr(10))[0]}") from error
        if plan.image_shape != knowledge.image_shape:
            raise SavedAttackError(f"{path} decodes to {plan.image_shape}, wanted are {knowledge.image_shape}")
        return DecoderRecoverer(attack, plan, network, origin)

    def _lessons(self, knowledge: Knowledge, generator: torch.Generator) -> tuple[Pairs | list[Lesson], ...]:
        if self.train == "public":
            examples = public(knowledge, "decoder")
            return Pairs(examples.train), Pairs(examples.select)
        asked = _asking(knowledge)
        parts = synthetic(self.pictures, knowledge.image_shape, generator)
        return tuple([(asked(images), images) for images in part] for part in parts)


def _asking(knowledge: Knowledge) -> Callable[[Tensor], Tensor]:
    """Return pictures -> features as the attacker can have them.

    Raises:
        NotRunError: in no way.
    """
    query, prefix = knowledge.query, knowledge.prefix
    if query is None and prefix is None:
        raise NotRunError("decoder with train=synthetic asks the victim about pictures: it needs a way to query it")

    @torch.no_grad()
    def asked(images: Tensor) -> Tensor:
        if query is not None:
            answer: Tensor = query(images).features
            return answer.float()
        assert prefix is not None
        features: Tensor = prefix(images.to(next(prefix.parameters(), images).device))
        return features.float()

    return asked


@dataclass(frozen=True)
class Plan:
    """What a decoder's network is built for: a leak's row, a picture, and how wide it starts."""

    leak_shape: Shape
    image_shape: tuple[int, int, int]
    width: int


class DecoderRecoverer(Recoverer):
    """A trained decoder."""

    def __init__(self, attack: Decoder, plan: Plan, network: DecoderNetwork, origin: Origin | None = None) -> None:
        self.attack, self.origin = attack, origin
        self.plan = plan
        self.network = network.eval().requires_grad_(False)

    def recover(self, leak: Leak, generators: Generators) -> Recovery:
        """Decode each row; nothing is drawn.

        Raises:
            OriginError: it was trained on leaks of something else.
        """
        if self.origin is not None:
            self.origin.require(leak.header)

        def search(features: Tensor, rows: object) -> tuple[Tensor, list[Status], Tensor]:
            self.network.to(features.device)
            images = torch.cat([self.network(row) for row in torch.split(features.float(), 1)])
            return images, [Status("stopped", "decoded")] * len(images), torch.zeros(len(images)).long()

        return recover_rows(leak, self.plan.leak_shape, self.plan.image_shape, search)

    def prior(self, n: int, generators: Generators) -> Recovery:
        """Return what the mean training leak is decoded to."""
        image = self.network.decode(torch.zeros_like(self.network.mean).expand(1, *self.network.layout.grid))
        return Recovery(Images(image.repeat(n, 1, 1, 1)), (Status("stopped", "no leak"),) * n, torch.zeros(n).long())

    def save(self, path: Path) -> None:
        """Write the weights and what they are for."""
        plan = {"leak_shape": self.plan.leak_shape, "image_shape": self.plan.image_shape}
        attack = {key: value for key, value in asdict(self.attack).items() if key != "adapter"}
        write(path, self.network.state_dict(), {"decoder": attack, **plan, **said_of(self.origin)})


class DecoderNetwork(nn.Module):
    """From features "b ..." to pictures "b 3 h w" in [0, 1]; `mean` and `spread` are those of the channels."""

    mean: Tensor
    spread: Tensor

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.layout = Layout.of(plan.leak_shape, plan.image_shape)
        channels, rows, columns = self.layout.grid
        self.size = plan.image_shape[1:]
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("spread", torch.ones(1, channels, 1, 1))
        self.start: nn.Module
        if self.layout.order == "vector":
            rows, columns = coarse(*self.size)
            self.start = Spread(channels, plan.width, rows, columns)
        else:
            self.start = nn.Conv2d(channels, plan.width, 3, padding=1)
        doublings = max(math.ceil(math.log2(max(self.size[0] / rows, self.size[1] / columns))), 0)
        widths = [max(_THINNEST, min(plan.width, _THINNEST * 2**left)) for left in reversed(range(doublings))]
        stages: list[nn.Module] = [Residual(plan.width), Residual(plan.width)]
        for given, made in zip([plan.width, *widths], widths):
            stages += [
                nn.Conv2d(given, 4 * made, 3, padding=1),
                nn.PixelShuffle(2),
                nn.LeakyReLU(SLOPE),
                Residual(made),
            ]
        self.stages = nn.Sequential(*stages)
        self.end = nn.Conv2d([plan.width, *widths][-1], plan.image_shape[0], 3, padding=1)

    def forward(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        """Return pictures."""
        return self.decode((self.layout.arrange(features) - self.mean) / self.spread)

    def loss(self, lesson: Lesson) -> Float[Tensor, ""]:
        """Return the mean over pixels of |off| + off^2 on features and their pictures."""
        features, images = lesson
        off: Tensor = self(features) - images.to(features)
        return off.abs().mean() + off.square().mean()

    def decode(self, grid: Float[Tensor, "b k r s"]) -> Float[Tensor, "b c h w"]:
        """Return pictures of standardised features."""
        x = self.stages(self.start(grid))
        if tuple(x.shape[2:]) != tuple(self.size):
            x = nn.functional.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
        picture: Tensor = self.end(x)
        return picture.sigmoid()
