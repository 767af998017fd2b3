"""Which attacks a study runs where none is named."""

from __future__ import annotations

from ..attacks.caprecover import adapter
from ..audit.workbench import Workbench


def strongest(bench: Workbench) -> tuple[str, ...]:
    """Return the strongest attacks on pictures, words and labels that can be run on what a request names.

    `joint` always; `caprecover` with the adapter that ships for the victim, else trained at each cut on public pictures
    with captions; `probe` where public pictures and those under audit have labels.
    """
    attacks = ["joint"]
    known = frozenset() if bench.public is None else bench.public.known
    shipped = adapter.ready_for(bench.victim.name)
    if shipped and bench.request.size is None:
        attacks += shipped
    elif "captions" in known:
        attacks.append("caprecover")
    if "label" in known & bench.source.known:
        attacks.append("probe")
    return tuple(attacks)
