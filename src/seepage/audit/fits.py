"""What is fitted once for all cells that ask for the same."""

from __future__ import annotations

import shutil
import time
from collections.abc import Hashable
from pathlib import Path

from .. import seeding
from ..attacks.checkpoints import seconds_spent
from ..files import OutputError
from ..types import Attack, Progress, Recoverer
from .exposure import RETRAINED, Exposure
from .workbench import Workbench


def fit(exposure: Exposure, attack: Attack, text: str, workdir: Path, progress: Progress) -> tuple[Recoverer, float]:
    """Return an attack fitted to what this attacker knows, and the seconds that it took.

    All who learn from undefended leaks of a cut learn the same, whatever defense they meet then: those of one cut are
    kept until another's are asked for, and whoever finds what he needs there spends nothing. `workdir` holds what an
    attack needs to go on where it was stopped.

    Seconds include those that were spent before it was stopped, up to the checkpoint it goes on from.

    Raises:
        NotRunError: the attack lacks something that it needs.
        SeepageError: the attack refuses this cut.
    """
    bench, layer, knowledge = exposure.bench, exposure.split.layer, exposure.knowledge()
    name = shared(bench, layer, text, exposure.attacker)
    known = None if name is None else bench.fits.get(name)
    if known is not None and knowledge.law is not None:
        known = known.under(knowledge.law)
    if known is not None:
        return known, 0.0
    before, began = seconds_spent(workdir), time.perf_counter()

    def learn(where: Path | None) -> Recoverer:
        generator = seeding.generator(bench.request.seed, "fit", exposure.split.name, layer, text)
        return attack.fit(knowledge, generator, workdir=where, progress=progress)

    try:
        recoverer = learn(workdir)
    except OutputError:  # no room for checkpoints
        shutil.rmtree(workdir, ignore_errors=True)
        recoverer = learn(None)
    if name is not None and knowledge.law is None:
        for other in [key for key in bench.fits if key[0] != layer]:
            del bench.fits[other]
        bench.fits[name] = recoverer
    return recoverer, before + time.perf_counter() - began


def shared(bench: Workbench, layer: str, text: str, attacker: str) -> tuple[Hashable, ...] | None:
    """Return what names a fit, its layer first; None where an attacker learns from defended leaks."""
    return None if attacker == RETRAINED else (layer, text, bench.wire, bench.request.public, bench.request.seed)
