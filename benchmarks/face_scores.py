"""How well a judge knows people from their true pictures, with intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional as F

from face_judge import JUDGED, KNOWN, PICTURES, TARGETS
from seepage.audit.judges import FaceJudge

RESAMPLES = 2000


def judged(judge: FaceJudge, known: Tensor, probes: Tensor) -> dict[str, Any]:
    """Return how a judge knows the people "p 10 ..." of `probes` among their own pictures `known`."""
    people = len(known)
    gallery, asked = (judge(part.flatten(0, 1)).double() for part in (known, probes))
    cosine = (F.normalize(asked, dim=1) @ F.normalize(gallery, dim=1).T).view(people, PICTURES, people, PICTURES)
    away = torch.cdist(asked, gallery).view(people, PICTURES, people, PICTURES)
    owner, numbers = torch.arange(people), torch.arange(PICTURES)
    itself = (owner[:, None, None, None] == owner[:, None]) & (numbers[:, None, None] == numbers)

    def right(nearest: Tensor) -> Tensor:
        """Whether the person whose gallery holds the nearest picture is the true one."""
        return nearest.argmax(-1) == owner[:, None]

    left_out = right(cosine.masked_fill(itself, -2).amax(-1))
    of_gallery = right(cosine[:, KNOWN:, :, :KNOWN].amax(-1))
    single = torch.stack([right(cosine[..., number])[:, numbers != number] for number in range(PICTURES)], -1)
    nearest = away[:, KNOWN:, :, :KNOWN].amin(-1)
    mine = nearest[owner, :, owner]
    others = nearest.transpose(1, 2)[~torch.eye(people, dtype=torch.bool)].view(people, people - 1, -1)
    targets = torch.tensor([person in TARGETS for person in JUDGED])
    return {
        "leave_one_out": _share(left_out),
        "gallery": _share(of_gallery),
        "targets": _share(of_gallery[targets]),
        "one_picture": _over_people(single.double(), lambda rows: float(rows.mean())),
        "own_distance": _over_people(mine, lambda rows: float(rows.mean())),
        "other_distance": _over_people(others, lambda rows: float(rows.mean())),
        "in_order": _over_people(
            torch.cat([mine[:, None], others], 1), lambda rows: _in_order(rows[:, 0].flatten(), rows[:, 1:].flatten())
        ),
    }


def told_apart(clean: Tensor, probes: Tensor, who: Tensor) -> tuple[float, float]:
    """How often a pair of one person is nearer than a pair of two, for clean and for degraded probes."""
    same, itself = who[:, None] == who, torch.eye(len(who), dtype=torch.bool)
    found = []
    for asked in (clean, probes):
        cosine = F.normalize(asked.double(), dim=1) @ F.normalize(clean.double(), dim=1).T
        found.append(_in_order(-cosine[same & ~itself], -cosine[~same]))
    return found[0], found[1]


def _in_order(own: Tensor, others: Tensor) -> float:
    ordered = others.sort().values
    return 1 - float(torch.searchsorted(ordered, own).double().mean()) / len(ordered)


def _share(hits: Tensor) -> dict[str, float]:
    test = binomtest(int(hits.sum()), hits.numel())
    interval = test.proportion_ci(method="wilson")
    return {"value": test.statistic, "low": interval.low, "high": interval.high, "n": test.n}


def _over_people(rows: Float[Tensor, "p ..."], value: Callable[[Tensor], float]) -> dict[str, float]:
    """The value with its interval over people drawn anew: pictures of one person are no independent ones."""
    draws = torch.randint(len(rows), (RESAMPLES, len(rows)), generator=torch.Generator().manual_seed(0))
    found = torch.tensor([value(rows[draw]) for draw in draws])
    low, high = found.quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"value": value(rows), "low": low, "high": high, "n": len(rows)}
