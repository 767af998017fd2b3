"""What defenses share: their header line, what they learn, what they add to the bytes, secrets that are used once."""

from __future__ import annotations

import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .. import registry
from ..types import Defense, Generators, Law, Leak, LeakHeader, Noise, Secret, SeepageError, Shape

EAVESDROPPER, STORAGE, PROVIDER = "eavesdropper", "storage", "provider"
EVERYONE = (EAVESDROPPER, STORAGE, PROVIDER)

T = TypeVar("T")


class DefenseError(SeepageError):
    """A defense that cannot serve this leak, or whose strength makes no sense."""


class SecretError(SeepageError):
    """A secret that is missing, was used already, or belongs to another leak."""


@dataclass(frozen=True)
class Saving:
    """What of a payload need not travel, and the bytes that its reader needs instead: gone once the payload is filled.

    `tokens`, `channels` and `numbers` are the shares of each that are not known to be zero, `marks` the bytes that say
    which; `bits` is what tells a number's level and `ranges` the bytes that say where the levels lie. In a `subspace`
    the share `channels` is of directions.
    """

    tokens: float = 1.0
    channels: float = 1.0
    numbers: float = 1.0
    marks: int = 0
    bits: float = math.inf
    ranges: int = 0
    subspace: bool = False


@dataclass(frozen=True)
class Payload:
    """What one picture weighs on the wire: whole, so many numbers of so many bits; less what is saved of that.

    `extra` bytes travel beside it whatever is done to the numbers: what carries secrets, the wire's scale. A defense
    says what it does to the numbers by one of the methods; shares are between 0 and 1, counts are in bytes.
    """

    numbers: float
    bits: float
    extra: int = 0
    saving: Saving = Saving()

    @property
    def bytes(self) -> int:
        """The sum, rounded up."""
        saved = self.saving
        # What is largest may lie in the tokens and channels that are sent, all of it.
        share = min(saved.tokens * saved.channels, saved.numbers)
        # Rounded first, because a count over a total times the total may be a little more than the count.
        sent = round(self.numbers * share * min(self.bits, saved.bits) / 8, 6)
        return math.ceil(sent) + saved.marks + saved.ranges + self.extra

    @property
    def rounded(self) -> bool:
        """Whether numbers travel as levels."""
        return self.saving.bits < self.bits

    def filled(self) -> Payload:
        """Return the whole payload, since any number may be anything now; what carries secrets stays."""
        return Payload(self.numbers, self.bits, self.extra)

    def entrywise(self) -> Payload:
        """Return what is left of it after numbers change each by itself, zeros staying zeros: all but a subspace."""
        return self.filled() if self.saving.subspace else self

    def projected(self, share: float) -> Payload:
        """Return as many real numbers as this share of directions has in every place."""
        before = self.saving.channels if self.saving.subspace else 1.0
        return dataclasses.replace(self.filled(), saving=Saving(channels=min(before, share), subspace=True))

    def keeping(self, share: float, marks: int) -> Payload:
        """Return the payload with zeros but for this share of all numbers, and the bytes that say which."""
        left = self.entrywise().marked(marks)
        return left._saving(numbers=min(left.saving.numbers, share))

    def keeping_channels(self, share: float) -> Payload:
        """Return the payload with zeros but for this share of channels, which their reader knows."""
        left = self.entrywise()
        return left._saving(channels=min(left.saving.channels, share))

    def keeping_tokens(self, share: float, marks: int) -> Payload:
        """Return the payload with zeros but for this share of tokens, drawn by chance, and the bytes that say which."""
        left = self.entrywise().marked(marks)
        return left._saving(tokens=left.saving.tokens * share)

    def rounding(self, bits: float, ranges: int) -> Payload:
        """Return the payload with levels of so many bits for numbers, and the bytes that say where these lie."""
        left = self.entrywise()
        return left._saving(bits=min(left.saving.bits, bits), ranges=ranges)

    def marked(self, count: int) -> Payload:
        """Return the payload with so many bytes to say which numbers are zero: the finest such map says it all."""
        return self._saving(marks=max(self.saving.marks, count))

    def beside(self, count: int) -> Payload:
        """Return the payload with so many bytes more, whatever is done to its numbers later."""
        return dataclasses.replace(self, extra=self.extra + count)

    def _saving(self, **changes: float) -> Payload:
        return dataclasses.replace(self, saving=dataclasses.replace(self.saving, **changes))  # type: ignore[arg-type]


@runtime_checkable
class Weighed(Protocol):
    """A defense that changes what a row weighs, or whose secret has to reach the next stage."""

    def payload(self, payload: Payload, shape: Shape) -> Payload: ...


@runtime_checkable
class Showing(Protocol):
    """A law whose draw shows in zeros, by which `matched` goes, though more was done to the send since.

    `shown` is what was sent, zero where it may be what was done to a zero since; `told` says of which rows that leaves
    enough, and `untold` is the best guess where it does not. `blur` is how far each row's numbers are off, as a
    standard deviation, by what was done since. `share` is a number's chance to be sent.
    """

    @property
    def share(self) -> float: ...
    def shown(self, sent: Leak, blur: Float[Tensor, "b"]) -> Leak: ...
    def told(self, sent: Leak, blur: Float[Tensor, "b"]) -> Bool[Tensor, "b"]: ...
    def untold(self, sends: Sequence[Leak], blur: Float[Tensor, "b"]) -> Leak: ...


@runtime_checkable
class Blurring(Protocol):
    """A law that says how far what it estimates from one send is off.

    `carried` is what `blur`, a row's standard deviation before, becomes, and `exact` says of which rows nothing else is
    lost.
    """

    def carried(self, sent: Leak, blur: Float[Tensor, "b"]) -> Float[Tensor, "b"]: ...
    def exact(self, sent: Leak) -> Bool[Tensor, "b"]: ...


@runtime_checkable
class Unbiased(Protocol):
    """A law whose estimate leans on what leaks are like: `unbiased` does not, so that means of it come ever nearer.

    Sends are `plain` where nothing was done to them since.
    """

    def unbiased(self, sends: Sequence[Leak], *, plain: bool = True) -> Leak: ...


@runtime_checkable
class Denoising(Unbiased, Protocol):
    """A law of noise: `guess` is its best, of sends that are off by `blur` since, each the mean of `behind` others."""

    def guess(
        self, sends: Sequence[Leak], blur: Float[Tensor, "b"], *, behind: float = 1.0, plain: bool = True
    ) -> Leak: ...


class BuiltIn(ABC):
    """Base of the built-in defenses, which are frozen dataclasses.

    `randomised`: two sends of a leak differ. `affine`: a mean goes through it as the leak does. `keeps_secret`:
    `restore` undoes it with what `protect` kept. `moves_zeros`: a zero may come out as another number. `gathers`: of a
    pipeline's stages that draw, several sends are made one at the one where it is largest.
    """

    holder: ClassVar[str]
    protects_from: ClassVar[tuple[str, ...]]
    randomised: ClassVar[bool] = False
    affine: ClassVar[bool] = False
    keeps_secret: ClassVar[bool] = False
    moves_zeros: ClassVar[bool] = False
    gathers: ClassVar[int] = 0

    def fit(self, leaks: Iterator[Leak]) -> Defense:
        """Return the defense as it is: there is nothing to learn."""
        return self

    @abstractmethod
    def protect(self, leak: Leak, generators: Generators) -> tuple[Leak, Secret | None]:
        """Return what is sent and what is kept."""

    def restore(self, leak: Leak, secret: Secret | None) -> Leak:
        """Return the leak as it is: nothing is undone."""
        return leak

    @abstractmethod
    def law(self) -> Law:
        """Return what an aware attacker may know."""

    def payload(self, payload: Payload, shape: Shape) -> Payload:
        """Return what a row of this shape weighs after the defense: all of it, since any number may have changed."""
        return payload.filled()

    @property
    def continuous(self) -> str | None:
        """What names the defense as a continuous map of the features, drawing nothing; None where it is none."""
        return None

    def noise(self) -> Noise | None:
        """Return the law of the noise that stays on every number; None where the defense is something else."""
        return None


def learned(defense: T, name: str, value: object) -> T:
    """Return a copy of a frozen defense that has learned the value of one of its fields without a parameter."""
    found = copy.copy(defense)
    object.__setattr__(found, name, value)
    return found


def randomised(stage: Defense) -> bool:
    """A defense that does not say is taken to draw."""
    return bool(getattr(stage, "randomised", True))


def applied(leak: Leak, defense: object, features: Tensor) -> Leak:
    """Return the leak with other features and one more defense in its header."""
    header = dataclasses.replace(leak.header, defenses=(*leak.header.defenses, registry.spec("defense", defense)))
    return dataclasses.replace(leak, features=features, header=header)


def undone(leak: Leak, defense: object, features: Tensor) -> Leak:
    """Return the leak with other features, one defense in its header taken back."""
    text, left = registry.spec("defense", defense), list(leak.header.defenses)
    if text in left:
        del left[len(left) - 1 - left[::-1].index(text)]
    header: LeakHeader = dataclasses.replace(leak.header, defenses=tuple(left))
    return dataclasses.replace(leak, features=features, header=header)


def drawn(leak: Leak, generators: Generators, draw: Callable[[Shape, torch.Generator], Tensor]) -> Tensor:
    """Return what `draw` gives for each row's shape and generator, on the leak's device."""
    shape = tuple(leak.features.shape[1:])
    rows = [draw(shape, generator) for generator in generators]
    return torch.stack(rows).to(leak.features.device)


def by_row(values: Tensor, like: Tensor) -> Tensor:
    """Return "b" values shaped to meet "b ..."."""
    return values.view(-1, *[1] * (like.ndim - 1))


def mean_of(sends: Sequence[Leak]) -> Tensor:
    """Return the mean of what was sent several times."""
    return torch.stack([send.features for send in sends]).mean(0)


def spend(secret: Secret | None, name: str, defense: str) -> Tensor:
    """Take a tensor out of a secret, which has it no more.

    Raises:
        SecretError: there is no secret, or it was used.
    """
    if secret is None:
        raise SecretError(f"{defense} is undone with its secret, and there is none")
    if name not in secret.tensors:
        raise SecretError(f"the secret of this {defense} was used already, or is another defense's: one leak, one use")
    return secret.tensors.pop(name)


def together(blur: Float[Tensor, "b"], other: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Return the standard deviation of the sum of two independent errors."""
    return (blur.square() + other.to(blur).square()).sqrt()


def towards(
    mean: Tensor | None, features: Float[Tensor, "b ..."], variance: float, noise: Float[Tensor, "b"]
) -> Float[Tensor, "b ..."]:
    """Return the best linear guess between what was seen and the mean of leaks that vary so much about it.

    `noise` is the variance of what was seen, row by row. The features themselves where no mean was learned.
    """
    if mean is None:
        return features
    weight = by_row(variance / (variance + noise).clamp_min(torch.finfo(torch.float32).tiny), features)
    usual = mean.to(features)
    return usual + weight.to(features) * (features - usual)


def require_positive(name: str, value: float, *, zero: bool = False) -> None:
    """Refuse a strength that is negative, NaN or infinite; zero where it is not allowed.

    Raises:
        ValueError: the name and what was given.
    """
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} is a finite number {'of at least' if zero else 'above'} 0, got {value:g}")


def require_share(name: str, value: float) -> None:
    """Refuse what is no share above 0 and at most 1.

    Raises:
        ValueError: the name and what was given.
    """
    if not 0 < value <= 1:
        raise ValueError(f"{name} is a share above 0 and at most 1, got {value:g}")


def channel_axis(shape: Shape) -> int:
    """Return the axis of a row that runs over channels: the first of a map, the last of tokens and of a map that has
    its channels last."""
    if len(shape) == 3:
        return 2 if shape[0] == shape[1] != shape[2] else 0
    return len(shape) - 1
