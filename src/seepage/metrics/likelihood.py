"""How likely an attack's own language model finds captions under a leak: no word of theirs is compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..registry import register
from ..types import Captions, Pictures, Recovery, SeepageError, Shape
from .base import Judge


class Likelihood:
    """A `types.Metric` on the log-likelihoods that captions carry, in nats a token.

    Whoever hands captions in has asked `Recoverer.log_likelihood` for them: which captions, and under which leak, is
    what the metrics differ in. NaN where the attack gave none.
    """

    reads: ClassVar[tuple[type, ...]] = (Captions,)
    unit: ClassVar[str] = "nat/token"
    higher_means_more_leakage: ClassVar[bool]
    perfect: ClassVar[float | None] = None

    def unavailable(self, image_shape: Shape) -> str | None:
        """Return None: whether the attack has a language model only it can tell."""
        return None

    def corpus(self, truth: Pictures, recovery: Recovery) -> float | None:
        """Return None: the mean over pictures is the mean."""
        return None

    def _carried(self, truth: Pictures, recovery: Recovery) -> Float[Tensor, "b"]:
        name, value = type(self).__name__, recovery.value
        if not isinstance(value, Captions):
            raise SeepageError(f"{name} reads captions, got {type(value).__name__}")
        if len(value.texts) != len(truth):
            raise SeepageError(f"{name} got {len(value.texts)} captions of {len(truth)} pictures")
        return value.log_likelihood.detach().double().cpu()


@register("metric", "nll")
@dataclass(frozen=True)
class Nll(Likelihood):
    """Mean surprise a token of the picture's reference captions under its own leak; lower is more leakage.

    The captions handed in are the references, with their log-likelihoods under the picture's own leak. Beside it stands
    that under another picture's: the difference is what the language model learns from the leak.
    """

    higher_means_more_leakage: ClassVar[bool] = False

    def __call__(
        self, truth: Pictures, recovery: Recovery, judge: Judge | None = None, gallery: Pictures | None = None
    ) -> Float[Tensor, "b"]:
        """Score every caption; float64, on the CPU.

        Raises:
            SeepageError: the recovery holds no captions, or another number of them than the truth.
        """
        return -self._carried(truth, recovery)


@register("metric", "nll_gap")
@dataclass(frozen=True)
class NllGap(Likelihood):
    """Log-likelihood a token of the recovered caption under its own leak, minus that under another picture's.

    The captions handed in carry that difference. It asks for no reference; 0 is a caption that fits any leak.
    """

    higher_means_more_leakage: ClassVar[bool] = True

    def __call__(
        self, truth: Pictures, recovery: Recovery, judge: Judge | None = None, gallery: Pictures | None = None
    ) -> Float[Tensor, "b"]:
        """Score every caption; float64, on the CPU.

        Raises:
            SeepageError: the recovery holds no captions, or another number of them than the truth.
        """
        return self._carried(truth, recovery)
