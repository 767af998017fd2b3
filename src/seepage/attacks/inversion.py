"""What attacks that search for a picture share: refusing what they cannot serve, and how each row ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import seeding
from ..inverses import sizes
from ..priors import NaturalPrior
from ..types import Images, Knowledge, Law, Leak, NotRunError, Prefix, Recovery, SeepageError, Shape, Status, Telling

GREY = 0.5
_NOT_FINITE = Status("failed", "the leak holds NaN or infinity")
_SILENT = Status(
    "failed",
    "the leak is all zeros: no picture fits it better than another that gives zeros too, and what is left is the "
    "attack's prior, a null control",
)


def white_box(knowledge: Knowledge, name: str) -> Prefix:
    """Return the prefix.

    Raises:
        NotRunError: the attacker has none.
    """
    if knowledge.prefix is None:
        raise NotRunError(f"{name} is a white-box attack: it needs the victim's prefix")
    return knowledge.prefix


def device_of(prefix: Prefix) -> torch.device:
    """Return the device that a prefix computes on."""
    return next((weight.device for weight in prefix.parameters()), torch.device("cpu"))


def leak_shape(prefix: Prefix) -> Shape:
    """Return the shape of one row of the prefix's leak."""
    return prefix.segments[-1].out_shape


def determined(prefix: Prefix) -> bool:
    """Return whether a leak has at least as many numbers as a picture: below that, many pictures explain it."""
    return math.prod(leak_shape(prefix)) >= math.prod(prefix.segments[0].in_shape)


def refusals(features: Float[Tensor, "b ..."], expected: Shape) -> list[Status | None]:
    """Return why a row cannot be searched for, None where it can.

    A row of zeros may be a legal leak, of a ReLU that nothing excites. But a residual relative to it is infinite for
    every picture that does not give zeros as well, and so nothing tells one picture from another: what an attack would
    answer is its prior, which is a null control already and no recovery. Such a row fails, for all attacks alike, so
    that their results stay of the same pictures.

    Raises:
        SeepageError: the rows are not of the prefix's shape.
    """
    given = tuple(features.shape[1:])
    if given != expected:
        raise SeepageError(f"a row of the leak has shape {given}, this attack was fitted to {expected}")
    flat = features.flatten(1)
    kinds = zip(torch.isfinite(flat).all(1).tolist(), (flat != 0).any(1).tolist(), strict=True)
    return [(None if spoken else _SILENT) if finite else _NOT_FINITE for finite, spoken in kinds]


def recover_rows(
    leak: Leak,
    expected: Shape,
    image_shape: tuple[int, int, int],
    search: Callable[[Tensor, Sequence[int]], tuple[Tensor, Sequence[Status], Tensor]],
) -> Recovery:
    """Run `search` on the rows of a leak that are finite and not all zeros; the others have failed and are grey.

    `search` maps features and their row numbers to pictures in [0, 1], statuses and passes.
    """
    refused = refusals(leak.features, expected)
    rows = [row for row, reason in enumerate(refused) if reason is None]
    device = leak.features.device
    images = torch.full((len(leak), *image_shape), GREY, device=device)
    passes: Int[Tensor, "b"] = torch.zeros(len(leak), dtype=torch.long)
    status = {row: reason for row, reason in enumerate(refused) if reason is not None}
    if rows:
        found, ended, spent = search(leak.features[rows], rows)
        images[rows] = found.to(images)
        passes[rows] = spent.to(passes)
        status |= dict(zip(rows, ended, strict=True))
    return Recovery(Images(images), tuple(status[row] for row in range(len(leak))), passes)


def ended(residual: Float[Tensor, "b"], solved: Sequence[Status], tolerance: float) -> list[Status]:
    """Return how each row ended by its residual relative to the leak; a failure of the solver stays one."""
    found = []
    for value, one in zip(residual.tolist(), solved, strict=True):
        if one.kind == "failed":
            found.append(one)
        else:
            found.append(Status("converged" if value <= tolerance else "stopped", f"residual {value:.2e} of the leak"))
    return found


@dataclass(frozen=True)
class Target:
    """What a search aims at: a leak's features, each row in its own unit, and what would be sent for others.

    `expected` takes features and a leak: the law's mean of what is sent for them, given what the leak shows of the
    draw; the features themselves where no law is known. `guess` is the law's best guess at the undefended leak, where a
    search starts. The unit is a row's norm. Under a law with a likelihood it is the deviation of the noise, and `prior`
    is minus twice the log density of natural pictures (`priors.NaturalPrior`): residual and prior together are then
    minus twice the log of the posterior, the noise taken to be Gaussian, and what is searched for is the likeliest
    picture.
    """

    features: Float[Tensor, "b ..."]
    unit: Float[Tensor, "b 1"]
    expected: Callable[[Tensor, Tensor], Tensor]
    guess: Float[Tensor, "b ..."]
    prior: Callable[[Tensor], Tensor] | None = None

    @staticmethod
    def of(leak: Leak, features: Float[Tensor, "b ..."], law: Law | None, image_shape: tuple[int, int, int]) -> Target:
        """Return what to search for behind some rows of a leak."""
        if law is None:
            return Target.of_clean(features)
        sent = leak.with_features(features)
        guess = law.estimate([sent]).features

        def expected(clean: Tensor, shown: Tensor) -> Tensor:
            found = told(law, sent.with_features(clean), sent.with_features(shown))
            return clean if found is None else found.features

        if law.log_likelihood(sent, sent) is None:
            return Target(features, sizes(features), expected, guess)
        draws = seeding.generators(0, "law", seeding.row_hashes(features))
        again = law.sample(sent, draws).features
        deviation = sizes(again - expected(features, again)) / math.sqrt(features[0].numel())
        return Target(features, deviation, expected, guess, NaturalPrior(image_shape).surprise)

    @staticmethod
    def of_clean(features: Float[Tensor, "b ..."]) -> Target:
        """Return what to search for where nothing was done to a leak, or nothing is known of it."""
        return Target(features, sizes(features), lambda clean, shown: clean, features)

    @property
    def z(self) -> tuple[Tensor, Tensor]:
        """What `residual` takes beside a picture."""
        return self.features, self.unit

    def rows(self, index: Int[Tensor, "k"]) -> Target:
        """Return the same target for some of its rows, where no law is known."""
        return replace(self, features=self.features[index], unit=self.unit[index], guess=self.guess[index])

    def residual(self, prefix: Prefix) -> Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]:
        """Return x, z -> (what is expected of x - leak) / unit: one weight then suits every layer."""
        return scaled(lambda x, leak: self.expected(prefix(x), leak))

    def relative(self, residual: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Return a residual in units of the leak."""
        return residual * (self.unit / sizes(self.features))[:, 0].to(residual)


def told(law: Law, clean: Leak, sent: Leak) -> Leak | None:
    """Return what a law expects to be sent for a leak, given what a send shows of the draw; None where nothing."""
    found = law.matched(clean, sent) if isinstance(law, Telling) else None
    return law.expected(clean) if found is None else found


def scaled(expected: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]:
    """Return x, (leak, size) -> (expected(x, leak) - leak) / size."""

    def residual(x: Tensor, z: tuple[Tensor, Tensor]) -> Tensor:
        leak, size = z
        off: Tensor = expected(x, leak) - leak
        return off.flatten(1) / size

    return residual
