"""One rule a block kind: from what a segment gave back to what it was given."""

from __future__ import annotations

from .constrained import Constrained
from .generic import Generic
from .identity_residual import IdentityResidual
from .rule import FALLBACK, Inverse, Target, better, followed, misfit, rule, serving, sizes, unknowns
from .split import Split
from .step import Step, joined, steps
from .transformer import Transformer

__all__ = [
    "FALLBACK",
    "Constrained",
    "Generic",
    "IdentityResidual",
    "Inverse",
    "Split",
    "Step",
    "Target",
    "Transformer",
    "better",
    "followed",
    "joined",
    "misfit",
    "rule",
    "serving",
    "sizes",
    "steps",
    "unknowns",
]
