"""What features tell of a picture to first order: the singular values of the prefix's Jacobian there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..solvers import Problem
from ..solvers.linearise import Linearised
from .estimate import Estimate, half_width

Function = Callable[[Tensor], Tensor]
Product = Callable[[Tensor], Tensor]
EXACT_UP_TO = 4096
"""The most inputs of a Jacobian that is computed whole."""
ROUNDING = 1e-6
"""A singular value this small beside the largest is float32's rounding: it does not count towards the rank."""
LEVELS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
"""The shares of directions at which a spectrum is written down, the most telling first."""
_ROWS = 32
# What is left of a direction once those before it are taken out is noise below this.
_EXHAUSTED = 1e-5


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a Jacobian, outputs x inputs.

    Attributes:
        values: at each of `LEVELS`, the singular value that this share of the directions reach; falling.
        low: the lower ends of their 95 % intervals; the values themselves where they are exact.
        high: the upper ends. That of the largest holds the probes' spread alone: no Ritz value lies above it.
        exact: they are all known. Otherwise they are a stochastic Lanczos estimate of their density.
        energy: the sum of their squares.
        rank: how many are above `ROUNDING` of the largest.
        condition: largest over smallest, infinite where the rank is below the inputs; a lower bound unless exact.
        passes: runs of the prefix, forward and back, that it took.
    """

    inputs: int
    outputs: int
    exact: bool
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    energy: Estimate
    rank: Estimate
    condition: float
    passes: int


def spectrum(
    function: Function,
    picture: Float[Tensor, "1 ..."],
    generator: torch.Generator,
    *,
    probes: int = 8,
    steps: int = 48,
    exact_up_to: int = EXACT_UP_TO,
) -> Spectrum:
    """Return the spectrum of a function's Jacobian at one picture.

    Up to `exact_up_to` inputs it is computed whole, in float32, its singular values in float64. Above, `probes` random
    directions each take `steps` of Golub & Kahan's bidiagonalisation, which gives the Gauss quadrature of the density
    that the direction sees; over directions their mean is the density (stochastic Lanczos quadrature: Ubaru, Chen &
    Saad, SIAM J. Matrix Anal. Appl. 2017). Intervals hold the probes' spread and, for density and rank, what the
    quadrature leaves open (Chebyshev, Markov & Stieltjes; Szego 1939, 3.41). Ritz values lie between the extremes,
    hence the condition is a lower bound.
    """
    if picture.numel() <= exact_up_to:
        return _exact(function, picture)
    return _estimated(function, picture, generator, probes, steps)


def at(function: Function, pictures: Float[Tensor, "b ..."]) -> Linearised:
    """Return the function's first-order model at each of some pictures; its products take and give flat rows."""
    return Linearised(*Problem.of(lambda x, _: function(x.clone()), pictures, ()))


def jacobian(function: Function, picture: Float[Tensor, "1 ..."]) -> Float[Tensor, "m n"]:
    """Return the whole Jacobian at one picture, outputs x inputs, by whichever products are fewer."""
    with torch.no_grad():
        outputs = function(picture.clone()).numel()
    inputs, forward = picture.numel(), picture.numel() <= outputs
    parts = []
    every = torch.eye(min(inputs, outputs), dtype=picture.dtype, device=picture.device)
    for ways in torch.split(every, _ROWS):
        model = at(function, picture.expand(len(ways), *picture.shape[1:]))
        parts.append((model.forward(ways) if forward else model.transposed(ways)).detach())
    whole = torch.cat(parts)
    return whole.T if forward else whole


def singular_values(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "n"]:
    """Return the singular values in falling order, as many as columns: zeros where there are fewer rows."""
    # Rows that do not move add nothing; squares of float32 numbers lose nothing in float64.
    moving = matrix[matrix.abs().amax(1) > 0].double()
    gram = moving.T @ moving if len(moving) >= matrix.shape[1] else moving @ moving.T
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)
    return torch.cat([values, values.new_zeros(matrix.shape[1] - len(values))])


def _exact(function: Function, picture: Float[Tensor, "1 ..."]) -> Spectrum:
    matrix = jacobian(function, picture)
    outputs, inputs = matrix.shape
    values = singular_values(matrix)
    rank = int((values > ROUNDING * values[0]).sum())
    places = [min(math.ceil(level * inputs), inputs - 1) for level in LEVELS]
    levels = tuple(values[places].tolist())
    return Spectrum(
        inputs,
        outputs,
        exact=True,
        values=levels,
        low=levels,
        high=levels,
        energy=Estimate.exactly(float(values.square().sum())),
        rank=Estimate.exactly(rank),
        condition=float(values[0] / values[-1]) if rank == inputs else math.inf,
        passes=min(inputs, outputs),
    )


def _estimated(
    function: Function, picture: Float[Tensor, "1 ..."], generator: torch.Generator, probes: int, steps: int
) -> Spectrum:
    inputs = picture.numel()
    model = at(function, picture.expand(probes, *picture.shape[1:]))
    outputs = model.residual.shape[1]
    # From the narrower side: directions that cannot be told for want of outputs need not be found out.
    size, products = min(inputs, outputs), (model.forward, model.transposed)
    start = torch.randn(probes, size, generator=generator).to(picture)
    nodes, weights = quadrature(products if size == inputs else products[::-1], start, min(steps, size))
    seen = weights > 0
    largest, smallest = float(nodes[seen].max()), float(nodes[seen].min())
    threshold = ROUNDING * largest
    share = (weights / probes * size / inputs)[seen]
    values = _levels(torch.cat([nodes[seen], nodes.new_zeros(1)]), torch.cat([share, (1 - share.sum())[None]]))
    low, high = _ends(nodes, weights * size / inputs, values)
    return Spectrum(
        inputs,
        outputs,
        exact=False,
        values=values,
        low=low,
        high=high,
        energy=Estimate.of((weights * nodes.square()).sum(1)).times(size).within(0.0, math.inf),
        rank=_mass_above(threshold, nodes, weights).times(size).within(0.0, size),
        condition=math.inf if size < inputs or smallest <= threshold else largest / smallest,
        passes=2 * probes * steps,
    )


def quadrature(
    products: Sequence[Product], start: Float[Tensor, "b n"], steps: int
) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Return each start's singular values on its Krylov space, falling, and the squared share of it that lies on each.

    They are the nodes and weights of Gauss quadrature for the density of the singular values as the start sees it.
    `products` are those with the matrix and with its transpose.
    """
    forward, transposed = products
    v = start / start.norm(dim=1, keepdim=True)
    known, left = [v], forward(v).detach()
    bands = start.new_zeros(len(start), steps, steps, dtype=torch.float64)
    length = left.norm(dim=1)
    bands[:, 0, 0] = length
    for step in range(1, steps):
        left = left / length.clamp_min(torch.finfo(left.dtype).tiny)[:, None]
        back = transposed(left).detach()
        before, basis = back.norm(dim=1), torch.stack(known, 1)
        for _ in range(2):  # once leaves what rounding put back
            back = back - torch.einsum("bkn,bk->bn", basis, torch.einsum("bkn,bn->bk", basis, back))
        beyond = back.norm(dim=1)
        # A row whose space is exhausted goes on with zeros: nodes of weight zero.
        beyond = torch.where(beyond > _EXHAUSTED * before, beyond, 0.0)
        v = torch.where(beyond[:, None] > 0, back / beyond.clamp_min(torch.finfo(back.dtype).tiny)[:, None], 0.0)
        known.append(v)
        left = forward(v).detach() - beyond[:, None] * left
        length = left.norm(dim=1)
        bands[:, step - 1, step], bands[:, step, step] = beyond.double(), length.double()
    _, nodes, right = torch.linalg.svd(bands)
    weights = right[:, :, 0].square()
    return nodes, torch.where(weights > torch.finfo(torch.float64).eps, weights, 0.0)


def _levels(nodes: Float[Tensor, "k"], weights: Float[Tensor, "k"]) -> tuple[float, ...]:
    order = nodes.argsort(descending=True)
    reached = weights[order].cumsum(0)
    wanted = torch.tensor(LEVELS, dtype=reached.dtype, device=reached.device) * reached[-1]
    places = torch.searchsorted(reached, wanted).clamp_max(len(order) - 1)
    return tuple(nodes[order][places].tolist())


def _ends(
    nodes: Float[Tensor, "b k"], weights: Float[Tensor, "b k"], values: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The intervals of the values at `LEVELS`: a start's true one lies between the nodes around the one it names."""
    none = nodes.new_zeros(len(nodes), 1)
    nodes, weights = torch.cat([nodes, none], 1), torch.cat([weights, 1 - weights.sum(1, keepdim=True)], 1)
    reached, last = weights.cumsum(1), nodes.shape[1] - 1
    low, high = list[float](), list[float]()
    for level, value in zip(LEVELS, values, strict=True):
        place = (reached < level - torch.finfo(torch.float32).eps).sum(1, keepdim=True).clamp_max(last)
        above = nodes.gather(1, (place - 1).clamp_min(0))[:, 0]
        below = nodes.gather(1, (place + 1).clamp_max(last))[:, 0]
        low.append(min(value, max(float(below.mean()) - half_width(below), 0.0)))
        high.append(max(value, float(above.mean()) + half_width(above)))
    return tuple(low), tuple(high)


def _mass_above(threshold: float, nodes: Float[Tensor, "b k"], weights: Float[Tensor, "b k"]) -> Estimate:
    """The share of directions above: its true place lies within the weights of the two nodes around the threshold."""
    above = nodes > threshold
    mass = (weights * above).sum(1)
    count = above.sum(1)
    rows = torch.arange(len(nodes), device=nodes.device)
    last = torch.where(count > 0, weights[rows, (count - 1).clamp_min(0)], 0.0)
    first = torch.where(count < nodes.shape[1], weights[rows, count.clamp_max(nodes.shape[1] - 1)], 0.0)
    low, high = mass - last, mass + first
    return Estimate(
        float((low + high).mean()) / 2, float(low.mean()) - half_width(low), float(high.mean()) + half_width(high)
    )
