"""What noise on the features leaves unknown of a picture: Fisher information, and the bound it sets on attackers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..priors.natural import NaturalPrior
from ..solvers.cg import cg
from ..solvers.linearise import Linearised
from ..types import Noise
from .estimate import Estimate
from .jacobian import Function, at

# Fisher information of a location under noise of variance 1.
_INFORMATION = {"gaussian": 1.0, "laplace": 2.0}
_TOLERANCE = 1e-4
_MOST_ROWS = 256
_MOST_PIXELS = 16 * 224 * 224


def unbounded(noise: Noise | None) -> str:
    """Return why no bound on the error follows from this noise; empty where one does."""
    if noise is None:
        return "no noise: nothing keeps an attacker from what the features determine"
    if noise.kind not in _INFORMATION:
        return f"{noise.kind} noise has no Fisher information: its density jumps at the ends of its range"
    return "" if noise.scale > 0 else f"{noise.kind} noise of scale 0 is none"


def information(noise: Noise, sends: int = 1) -> float:
    """Return the Fisher information that a number has of its mean under this noise, sent `sends` times afresh.

    1/s^2 for a Gaussian of standard deviation s, 2/s^2 for a Laplace (1/b^2, b = s / sqrt(2)).

    Raises:
        ValueError: this noise has none.
    """
    if reason := unbounded(noise):
        raise ValueError(reason)
    return sends * _INFORMATION[noise.kind] / noise.scale**2


def dfil(
    function: Function,
    picture: Float[Tensor, "1 ..."],
    noise: Noise,
    generator: torch.Generator,
    *,
    probes: int = 16,
    sends: int = 1,
) -> Estimate:
    """Return the diagonal Fisher information leakage at one picture: the mean over pixels of what is known of each.

    tr(J^T J) / n times the noise's information; 1 / dFIL bounds the mean squared error of unbiased attackers (Maeng,
    Guo, Kariyappa & Suh, arXiv 2305.04146, equations 4 and 5). The trace is that of `probes` random signs on the
    outputs, one backward run each, with the interval of their spread.

    Raises:
        ValueError: this noise has no Fisher information.
    """
    weight = information(noise, sends)
    model = at(function, picture.expand(probes, *picture.shape[1:]))
    signs = torch.randint(2, tuple(model.residual.shape), generator=generator).to(picture) * 2 - 1
    energy = model.transposed(signs).detach().double().square().sum(1)
    return Estimate.of(energy).times(weight / picture.numel()).within(0.0, float("inf"))


def van_trees(
    function: Function,
    noise: Noise,
    prior: NaturalPrior,
    generator: torch.Generator,
    *,
    probes: int = 16,
    steps: int = 24,
    draws: int = 1,
    sends: int = 1,
    like: Tensor | None = None,
) -> Estimate:
    """Return a lower bound on any attacker's mean squared error a pixel, over pictures of `prior`, with its interval.

    Van Trees' inequality (1968; Gill & Levit, Bernoulli 1995): of n pixels x ~ prior with Fisher information P, seen as
    f(x) + noise of information w a number, every estimate x' has

        E |x' - x|^2 / n  >=  tr(A^-1) / n,    A = w E[J(x)^T J(x)] + P,    the expectation over the prior.

    It asks that the prior's density is smooth and vanishes at infinity, which a Gaussian's does, and that the leak's
    density is absolutely continuous in x with that information, which holds where f is locally Lipschitz (ReLU and
    maximum pooling are, rounding is not) and the noise is Gaussian or Laplace. It bounds the mean over the prior: at
    one picture an attacker may be better, and pictures of a narrower prior may be told better.

    A is never formed. For any vector u, however it was found, z.A^-1 z >= 2 z.u - u.A u; random signs z make the mean
    of the left side the trace. Here u is a mixture of the prior's own shrinkage of z and of `steps` conjugate gradients
    on w J^T J + P, its J^T J the mean over `draws` of the prior for each probe. u.A u is then measured at another draw,
    so that the mean is a bound however few the probes, the steps and the draws: they make it looser, never wrong, but
    for its interval. How the two are mixed is chosen for each half of the probes on the other half. `like` says device
    and type.

    Raises:
        ValueError: this noise has no Fisher information, or there are fewer than 2 probes.
    """
    weight = information(noise, sends)
    near, fresh = prior.draw(probes * draws, generator), prior.draw(probes, generator)
    signs = prior.signs(probes, generator)
    if like is not None:
        near, fresh, signs = near.to(like), fresh.to(like), signs.to(like)
    together = max(1, _together(prior) // draws)
    parts = []
    for start in range(0, probes, together):
        z = signs[start : start + together]
        found = _directions(function, near[start * draws : (start + together) * draws], z, weight, prior, steps)
        parts.append(_forms(found.u, z, at(function, fresh[start : start + together]), weight, prior))
    return _best(parts, signs[0].numel())


def at_picture(
    function: Function,
    picture: Float[Tensor, "1 3 h w"],
    noise: Noise,
    prior: NaturalPrior,
    generator: torch.Generator,
    *,
    probes: int = 16,
    steps: int = 24,
    sends: int = 1,
) -> Estimate:
    """Return the same formula with the information at one picture in place of its mean over the prior.

    It is the error of the best attacker on the prefix as it is linear there: the bound itself where the prefix is
    linear, a guide to what is possible at this picture, and no bound, where it is not.

    Raises:
        ValueError: this noise has no Fisher information, or there are fewer than 2 probes.
    """
    weight = information(noise, sends)
    signs = prior.signs(probes, generator).to(picture)
    parts = []
    for z in torch.split(signs, _together(prior)):
        found = _directions(function, picture.expand(len(z), *picture.shape[1:]), z, weight, prior, steps)
        parts.append(_forms(found.u, z, found.model, weight, prior))
    return _best(parts, signs[0].numel())


def _together(prior: NaturalPrior) -> int:
    """How many pictures are linearised together."""
    return max(1, min(_MOST_ROWS, _MOST_PIXELS // (prior.image_shape[1] * prior.image_shape[2])))


@dataclass(frozen=True)
class _Directions:
    """Vectors u for each probe, as flat rows, and the model that they were found on."""

    u: Float[Tensor, "b k n"]
    model: Linearised


def _directions(
    function: Function, pictures: Tensor, signs: Tensor, weight: float, prior: NaturalPrior, steps: int
) -> _Directions:
    model = at(function, pictures)
    z, draws = signs.flatten(1), len(pictures) // len(signs)
    told = (
        weight
        * float(model.forward(z.repeat_interleave(draws, 0)).detach().double().square().sum(1).mean())
        / z.shape[1]
    )

    def shrink(v: Tensor) -> Tensor:
        return prior.shrink(v.view_as(signs), told).flatten(1)

    def operator(v: Tensor) -> Tensor:
        seen = model.transposed(model.forward(v.repeat_interleave(draws, 0))).detach()
        return weight * seen.view(len(z), draws, -1).mean(1) + prior.precision(v.view_as(signs)).flatten(1)

    ways = [shrink(z)]
    if steps > 1:
        ways.append(cg(operator, z, steps=steps, tolerance=_TOLERANCE, preconditioner=shrink).x)
    return _Directions(torch.stack(ways, 1), model)


def _forms(
    ways: Float[Tensor, "b k n"], signs: Tensor, model: Linearised, weight: float, prior: NaturalPrior
) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k k"]]:
    """Return z.u and u.A u of each probe's directions, A by this model."""
    seen = torch.stack([model.forward(way).detach() for way in ways.unbind(1)], 1).double()
    smooth = torch.stack([prior.precision(way.reshape_as(signs)).flatten(1) for way in ways.unbind(1)], 1).double()
    gains = torch.einsum("bkn,bn->bk", ways.double(), signs.flatten(1).double())
    costs = weight * seen @ seen.mT + ways.double() @ smooth.mT
    return gains, (costs + costs.mT) / 2


def _best(parts: Sequence[tuple[Tensor, Tensor]], pixels: int) -> Estimate:
    """Return the mean of 2 z.u - u.A u over the probes, a pixel, u mixed as serves the other half of them best."""
    gains, costs = (torch.cat(both) for both in zip(*parts, strict=True))
    if len(gains) < 2:
        raise ValueError(f"a bound takes at least 2 probes, got {len(gains)}: each half mixes for the other")
    halves = torch.arange(len(gains), device=gains.device) % 2 == 0
    values = []
    for half in (halves, ~halves):
        mix = torch.linalg.pinv(costs[~half].mean(0), hermitian=True) @ gains[~half].mean(0)
        values.append(2 * gains[half] @ mix - torch.einsum("k,bkl,l->b", mix, costs[half], mix))
    return Estimate.of(torch.cat(values)).times(1 / pixels)
