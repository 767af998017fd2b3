"""Whether somebody has learned from the very pictures under audit."""

from __future__ import annotations

from collections.abc import Collection

from .. import data
from ..attacks.equipped import Learned
from ..data.disjoint import OverlapError
from ..data.source import PictureSource
from ..pictures import recalled
from ..types import Attack, SeepageError
from ..victims.victim import Victim
from .request import RequestError


def unaudited(public: str, audited: Collection[str]) -> tuple[PictureSource, str]:
    """Return the attacker's own pictures without those under audit, by hash, and a sentence on the latter.

    Raises:
        RequestError: none is left.
    """
    source = data.open_source(public)
    kept = [place for place, entry in enumerate(source.entries) if entry.file_sha256 not in audited]
    if not kept:
        raise RequestError(f"--public {public}: every picture of it is under audit too")
    both = len(source) - len(kept)
    said = f"{both} of the {len(source)} pictures of --public are under audit too: nobody learns from them"
    return source.subset(kept), said if both else ""


def require_unseen(attack: Attack, text: str, source: PictureSource) -> None:
    """Refuse to audit with pictures that an attack has learned from.

    Raises:
        OverlapError: it has seen one of them.
    """
    try:
        hashes = [entry.file_sha256 for entry in source.entries]
        seen = set(attack.learned_from(hashes)) if isinstance(attack, Learned) else set()
    except SeepageError:
        return  # its cells will fail with this reason; the others can be run
    if seen:
        first = next(entry.id for entry in source.entries if entry.file_sha256 in seen)
        raise OverlapError(
            f"{text.partition(',')[0]} has learned from {len(seen)} of the {len(source)} pictures under audit, the "
            f"first {first}: audit others, or train without them"
        )


def require_untaught(victim: Victim, source: PictureSource) -> None:
    """Refuse to audit with pictures that a victim's trained defense has learned to hide.

    Raises:
        OverlapError: it has learned from one of them.
    """
    if not victim.seen:
        return
    known = frozenset(victim.seen)
    taught = [entry.id for entry in source.entries if recalled([entry.file_sha256], known)]
    if taught:
        raise OverlapError(
            f"the defense of {victim.name} was trained on {len(taught)} of the {len(source)} pictures under audit, the "
            f"first {taught[0]}: audit others, or train without them"
        )
