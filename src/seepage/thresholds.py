"""From which value on a recovered picture is called recognisable: measured, not chosen. No torch in here."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

_SOURCE = (
    "half of the degraded pictures with this value keep the label that EfficientNet-lite0 gives their originals: "
    "logistic fit to 2,100 versions of 150 ImageNet photographs of 224 px in seven families of degradation "
    "(benchmarks/results/recognisable.md)"
)


@dataclass(frozen=True)
class Threshold:
    """A recovered picture is recognisable from `value` of `metric` on; `low, high` is the value's 95 % interval.

    `source` says in words where the value comes from.
    """

    metric: str
    value: float
    low: float
    high: float
    source: str


RECOGNISABLE = Threshold("ms_ssim", 0.855, 0.838, 0.877, _SOURCE)
"""The metric that best foretells the label of the three that were compared."""

RECOGNISABLE_SMALL = Threshold("ssim", 0.663, 0.627, 0.700, _SOURCE)
"""For pictures of less than 161 px, where there is no MS-SSIM; measured at 224 px like the other, so extrapolated."""


def recognisable_by(metrics: Container[str]) -> Threshold | None:
    """Return the best threshold whose metric is among those at hand, None where there is none."""
    return next((found for found in (RECOGNISABLE, RECOGNISABLE_SMALL) if found.metric in metrics), None)
