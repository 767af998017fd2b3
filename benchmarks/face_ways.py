"""Ways to learn the linear map from a network's cells to embeddings that tell people apart."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from face_judge import CELLS, STAGES, WIDTH
from seepage.victims.weights import seeded

Map = tuple[Float[Tensor, "k d"], Float[Tensor, "d"]]


class Way(NamedTuple):
    """A way to learn the map: from which columns, seen through `view` ("3072 k"), and how."""

    name: str
    view: str
    learn: Callable[[Float[Tensor, "n k"], Int[Tensor, "n"]], Map]


def whitening(shrinkage: float, features: Float[Tensor, "n k"], who: Int[Tensor, "n"]) -> Map:
    """Return the map to their principal directions, whitened by how a person's own pictures differ there."""
    mean, spread = features.mean(0).double(), features.std(0).double() + 1e-6
    standard = (features.double() - mean) / spread
    axes = torch.linalg.eigh(standard.T @ standard)[1][:, -WIDTH:]
    along = standard @ axes
    own = along - torch.stack([along[who == person].mean(0) for person in range(int(who.max()) + 1)])[who]
    scatter = own.T @ own / len(own)
    values, vectors = torch.linalg.eigh(scatter + shrinkage * scatter.diag().mean() * torch.eye(len(scatter)))
    matrix = (axes @ vectors * values.rsqrt()) / spread[:, None]
    return matrix, -mean @ matrix


def margin(features: Float[Tensor, "n k"], who: Int[Tensor, "n"], steps: int = 250) -> Map:
    """Return the map that tells the people from each other by a cosine margin of 0.3."""
    mean, spread = features.mean(0), features.std(0) + 1e-6
    standard, generator = (features - mean) / spread, torch.Generator().manual_seed(0)
    people = int(who.max()) + 1
    with seeded(0):
        linear, centres = nn.Linear(features.shape[1], 128, bias=False), nn.Linear(128, people, bias=False)
    learned = [*linear.parameters(), *centres.parameters()]
    optimiser = torch.optim.AdamW(learned, 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(features), (128,), generator=generator)
        kept = 2.0 * (torch.rand(128, features.shape[1], generator=generator) < 0.5)
        cosine = F.normalize(linear(kept * standard[rows]), dim=1) @ F.normalize(centres.weight, dim=1).T
        loss = F.cross_entropy(16 * (cosine - 0.3 * F.one_hot(who[rows], people)), who[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    matrix = (linear.weight.detach() / spread).T.double()
    return matrix, -mean.double() @ matrix


def views() -> dict[str, Float[Tensor, "3072 k"]]:
    """Return what the ways see of the cells: those of a stage or of both, or the mean over each stage."""
    fourth, area = STAGES[0] * CELLS**2, CELLS**2
    everything = torch.eye(sum(STAGES) * area)
    means = torch.eye(sum(STAGES)).repeat_interleave(area, 0) / area
    return {"means": means, "stage 4": everything[:, :fourth], "stage 5": everything[:, fourth:], "both": everything}


WAYS = (
    *(Way(f"{view}, whitened, shrinkage 0.3", view, functools.partial(whitening, 0.3)) for view in views()),
    *(Way(f"both, whitened, shrinkage {s:g}", "both", functools.partial(whitening, s)) for s in (0.1, 1.0)),
    Way("both, cosine margin", "both", margin),
)
