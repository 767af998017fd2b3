"""The values and contracts of one way through: images -> prefix -> Leak -> attack -> Recovery -> metrics."""

from __future__ import annotations

import dataclasses
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

Access = Literal["white-box", "black-box"]
Auxiliary = Literal["none", "synthetic", "public"]
Recovers = Literal["images", "captions", "labels"]
Shape = tuple[int, ...]
Generators = Sequence[torch.Generator]
Progress = Callable[[float, str], None]
"""Called with the fraction done, in [0, 1], and a word on what is being done."""


class SeepageError(Exception):
    """An error for the person who made it: one line that names what was given, what was expected, what works."""


class NotRunError(SeepageError):
    """What was asked for cannot be run here; the message is the reason a `not_run` record carries."""


@dataclass(frozen=True)
class Pictures:
    """RGB pictures in [0, 1] and what is known of them. Those under audit are the truth."""

    images: Float[Tensor, "b 3 h w"]
    ids: tuple[str, ...]
    labels: Int[Tensor, "b"] | None = None
    classes: tuple[str, ...] | None = None
    captions: tuple[tuple[str, ...], ...] | None = None
    identities: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True)
class LeakHeader:
    """What a leak says of itself: who made it, where it was cut, how it travelled.

    `preprocessing` is the victim's own description of how a picture becomes its input, `wire` the number format on the
    way, `scale` one factor a row where that format has one, `defenses` what was applied, in order.
    """

    victim: str
    weights_sha256: str
    layer: str
    preprocessing: str
    wire: str = "fp32"
    scale: tuple[float, ...] | None = None
    defenses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Leak:
    """Intermediate features, one row a picture, and their header. `ids` where the sender named its rows."""

    features: Tensor
    header: LeakHeader
    ids: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.features.shape[0]

    def with_features(self, features: Tensor) -> Leak:
        """Return the same leak carrying other features."""
        return dataclasses.replace(self, features=features)

    def rows(self, start: int, stop: int) -> Leak:
        """Return rows `start` to `stop`, header and names with them."""
        scale, ids = self.header.scale, self.ids
        header = dataclasses.replace(self.header, scale=None if scale is None else scale[start:stop])
        return Leak(self.features[start:stop], header, None if ids is None else ids[start:stop])


@dataclass(frozen=True)
class Segment:
    """One step of a prefix, from one legal cut to the next.

    `kind` is the block's type, None where code lies between modules. Shapes are those of one sample, without the batch.
    Calling `module` on the previous cut's features gives this one's.
    """

    name: str
    kind: str | None
    module: nn.Module
    in_shape: Shape
    out_shape: Shape


class Prefix(nn.Module, ABC):
    """From pictures, RGB in [0, 1], to the features at the cut; the victim's normalisation lies inside."""

    @property
    @abstractmethod
    def segments(self) -> tuple[Segment, ...]:
        """The steps whose modules, called in turn, equal the prefix to 1e-5."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Map "b 3 h w" to "b ..."."""


PictureFile = str | Path | BinaryIO | io.BufferedIOBase | Image.Image


@dataclass(frozen=True)
class SplitModel:
    """A victim cut in two at `layer`: `suffix(prefix(x))` equals the uncut model.

    `load` reads one picture, resizes and crops it as the victim does and returns "3 h w" in [0, 1]; it raises a
    SeepageError for what is no readable picture.
    """

    name: str
    layer: str
    image_shape: tuple[int, int, int]
    prefix: Prefix
    suffix: nn.Module
    load: Callable[[PictureFile], Tensor]
    weights_sha256: str
    preprocessing: str

    @property
    def device(self) -> torch.device:
        """Where the prefix's weights are."""
        weight = next(self.prefix.parameters(), None)
        return torch.device("cpu") if weight is None else weight.device

    @torch.no_grad()
    def leak(self, images: Float[Tensor, "b 3 h w"]) -> Leak:
        """Return what crosses the split for these pictures, in float32, before any defense or wire format."""
        header = LeakHeader(self.name, self.weights_sha256, self.layer, self.preprocessing)
        return Leak(self.prefix(images.to(self.device)), header)

    @torch.no_grad()
    def finish(self, leak: Leak) -> Tensor:
        """Run the suffix on a leak and return the model's outputs."""
        outputs: Tensor = self.suffix(leak.features.to(self.device))
        return outputs


@dataclass(frozen=True)
class Status:
    """How an attack or a solver ended on one sample. `failed` needs a sentence that says why."""

    kind: Literal["converged", "stopped", "failed"]
    message: str = ""


@dataclass(frozen=True)
class Images:
    """Recovered pictures, RGB in [0, 1]."""

    images: Float[Tensor, "b 3 h w"]


@dataclass(frozen=True)
class Captions:
    """Recovered sentences, each with its log-likelihood in nats a token."""

    texts: tuple[str, ...]
    log_likelihood: Float[Tensor, "b"]


@dataclass(frozen=True)
class Labels:
    """Recovered classes, as scores over all of them (any scale, higher is likelier).

    `classes` names the columns; without names they are numbered as the labels under audit are. `texts` are the words
    that classes were read from, where it was words.
    """

    scores: Float[Tensor, "b classes"]
    classes: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Scores:
    """How well each of k candidates fits, and the column that is the match."""

    scores: Float[Tensor, "b k"]
    match: Int[Tensor, "b"]


@dataclass(frozen=True)
class Recovery:
    """What an attack got back, one row a leak.

    `passes` counts forward and backward runs through the prefix a row; `trace` holds recovered features, the segment
    nearest the leak first.
    """

    value: Images | Captions | Labels | Scores
    status: tuple[Status, ...]
    passes: Int[Tensor, "b"]
    trace: tuple[Tensor, ...] = ()


Pair = tuple[Leak, Pictures]


@dataclass(frozen=True)
class Examples:
    """Leaks with their pictures that the attacker owns: re-iterables, disjoint from each other and from the truth."""

    train: Iterable[Pair]
    select: Iterable[Pair]


@dataclass(frozen=True)
class Knowledge:
    """What an attacker knows. No prefix: black-box. Never the truth.

    `query` maps pictures to leaks where the attacker may ask, `law` is what is known of the defense, `public` what the
    attacker owns, `classes` the names of the victim's classes. `onward` gives the victim from this cut to a later one
    of that name, features to features; None where the attacker has no suffix.
    """

    image_shape: tuple[int, int, int]
    prefix: Prefix | None = None
    query: Callable[[Tensor], Leak] | None = None
    law: Law | None = None
    public: Examples | None = None
    classes: tuple[str, ...] | None = None
    onward: Callable[[str], Callable[[Tensor], Tensor]] | None = None


class Recoverer(ABC):
    """A fitted attack: leaks in, recoveries out. It holds no truth and needs none."""

    @abstractmethod
    def recover(self, leak: Leak, generators: Generators) -> Recovery:
        """Recover every row of a leak; one generator a row."""

    @abstractmethod
    def prior(self, n: int, generators: Generators) -> Recovery:
        """Return what the same attack gives with no leak at all: its prior, the null control."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write what `Attack.load` needs to return this recoverer."""

    def under(self, law: Law) -> Recoverer | None:
        """Return the same recoverer who knows a defense's law; None where that would have to be fitted anew."""
        return None

    def constant(self, n: int) -> Recovery | None:
        """Return `n` times the one caption or label that scores best on the training split; None for pictures."""
        return None

    def score(self, leak: Leak, candidates: Sequence[str] | Tensor) -> Float[Tensor, "b k"] | None:
        """Rank candidates by fit, on any scale; None where the attack cannot."""
        return None

    def log_likelihood(self, leak: Leak, captions: Sequence[str]) -> Float[Tensor, "b"] | None:
        """Return nats a token of each row's caption under its leak; None where the attack has no language model."""
        return None


@runtime_checkable
class Attack(Protocol):
    """A frozen dataclass whose fields are its configuration.

    `efforts` gives, for `quick`, `standard` and `full`, the parameters that differ from the defaults. `access` and
    `auxiliary` say what the attack needs, `recovers` what it brings back, by which an audit chooses its metrics; they
    may depend on the configuration. `budget` is the most passes through the prefix, forward or forward and backward,
    that recovering one picture may take: forecasts and progress go by it.
    """

    efforts: ClassVar[dict[str, dict[str, int | float | str]]]

    @property
    def access(self) -> Access: ...
    @property
    def auxiliary(self) -> Auxiliary: ...
    @property
    def recovers(self) -> Recovers: ...
    @property
    def budget(self) -> int: ...

    def fit(
        self,
        knowledge: Knowledge,
        generator: torch.Generator,
        *,
        workdir: Path | None = None,
        progress: Progress | None = None,
    ) -> Recoverer:
        """Learn what there is to learn without a leak.

        Raises:
            NotRunError: the knowledge lacks what this attack needs.
        """
        ...

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        """Return the recoverer that `Recoverer.save` wrote."""
        ...


@runtime_checkable
class Metric(Protocol):
    """A score a sample, in the truth's order; reduction is somebody else's job.

    `perfect` is the value at the truth where that is finite, else None. `reads` names the kinds of recovery it scores.
    """

    reads: ClassVar[tuple[type, ...]]
    unit: ClassVar[str]
    higher_means_more_leakage: ClassVar[bool]
    perfect: ClassVar[float | None]

    def __call__(
        self,
        truth: Pictures,
        recovery: Recovery,
        judge: Callable[[Tensor], Tensor] | None = None,
        gallery: Pictures | None = None,
    ) -> Float[Tensor, "b"]: ...

    def corpus(self, truth: Pictures, recovery: Recovery) -> float | None:
        """Return the value over the corpus where that is not the mean, else None."""
        ...

    def unavailable(self, image_shape: tuple[int, int, int]) -> str | None:
        """Return why the metric cannot be had for pictures of this shape, None where it can."""
        ...


@dataclass(frozen=True)
class Secret:
    """What the holder of a defense keeps to undo it. Never in records or logs."""

    tensors: dict[str, Tensor] = field(repr=False)


@dataclass(frozen=True)
class Noise:
    """Independent noise of mean zero on every entry of a leak: its law, and its standard deviation in feature units."""

    kind: Literal["gaussian", "laplace", "uniform"]
    scale: float


@runtime_checkable
class Law(Protocol):
    """What an aware attacker may know of a defense; never its secret."""

    def sample(self, clean: Leak, generators: Generators) -> Leak: ...
    def expected(self, clean: Leak) -> Leak | None: ...
    def estimate(self, sends: Sequence[Leak]) -> Leak: ...
    def log_likelihood(self, sent: Leak, clean: Leak) -> Float[Tensor, "b"] | None: ...


@runtime_checkable
class Telling(Protocol):
    """A law of which a send shows what was drawn: `matched` is what is expected of a leak, given that.

    None where it shows nothing.
    """

    def matched(self, clean: Leak, sent: Leak) -> Leak | None: ...


@runtime_checkable
class Defense(Protocol):
    """What is done to a leak before it is sent."""

    holder: ClassVar[str]
    protects_from: ClassVar[tuple[str, ...]]

    def fit(self, leaks: Iterator[Leak]) -> Defense: ...
    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, Secret | None]: ...
    def restore(self, leak: Leak, secret: Secret | None) -> Leak: ...
    def law(self) -> Law: ...
