"""How many directions of a picture a leak tells, whoever attacks it: the singular values of its derivative."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from seepage.types import Prefix

LEAST = 1e-3
_ROWS = 64


def told(prefix: Prefix, image: Tensor) -> float:
    """Return the share of directions at `image`, "3 h w", along which the leak moves at least `LEAST` of the most.

    That is the share of the Jacobian's singular values above `LEAST` of the largest. It holds near the picture alone:
    1 says that no near neighbour leaks the same, not that the picture can be found.
    """
    jacobian = []
    basis = torch.eye(image.numel()).view(-1, *image.shape)
    for tangents in basis.split(_ROWS):
        rows = image.repeat(len(tangents), 1, 1, 1)
        # On first use torch warns of what its own forward mode imports.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            jacobian.append(torch.func.jvp(prefix, (rows,), (tangents,))[1].flatten(1).double())
    whole = torch.cat(jacobian)
    # Squared, in double precision: values down to 1e-7 of the largest are told from rounding.
    squares = torch.linalg.eigvalsh(whole @ whole.T).clamp_min(0)
    return float((squares >= LEAST**2 * squares[-1]).double().mean())
