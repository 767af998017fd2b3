"""Distance correlation: how far two things depend on each other, whatever their dimensions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

LEAST = 4
"""The fewest rows that it is defined for."""
_TINY = 1e-12


def distance_correlation(one: Float[Tensor, "b ..."], other: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """Return the squared distance correlation of paired rows, corrected for its bias; differentiable.

    1 where the distances between rows of one are those of the other times a number, 0 in the mean where the two are
    independent, down to -1. The plain estimate, which NoPeek names, goes to 1 for independent rows as their dimension
    grows. 0 where all rows of one are alike. Source: Szekely and Rizzo 2013, The distance correlation t-test of
    independence in high dimension; Szekely and Rizzo 2014, Partial distance correlation, definition 2.

    Raises:
        ValueError: fewer than four rows.
    """
    if len(one) < LEAST:
        raise ValueError(f"a distance correlation takes at least {LEAST} rows, got {len(one)}")
    left, right = _centred(one), _centred(other)
    return (left * right).sum() / (left.square().sum() * right.square().sum() + _TINY).sqrt()


def _centred(rows: Tensor) -> Float[Tensor, "b b"]:
    """Return the distances between rows, less what each row and all rows have in common; zeros on the diagonal."""
    flat = rows.flatten(1)
    count = len(flat)
    # By products of rows, distances between near ones are rounded to nothing, and their slopes with them.
    distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    sums = distance.sum(1)
    centred = distance - (sums[:, None] + sums) / (count - 2) + sums.sum() / ((count - 1) * (count - 2))
    return centred * (1 - torch.eye(count, dtype=flat.dtype, device=flat.device))
