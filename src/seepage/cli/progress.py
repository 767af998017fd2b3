"""How far an audit is, as a bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..schema import Spec
from .console import bar, note

if TYPE_CHECKING:
    from ..audit.run import Event


def attacker(spec: Spec) -> str:
    """Return what the attacker of a cell knows, and how many sends of a picture he has where that is more than one."""
    return spec.attacker + (f" ×{spec.sends}" if spec.sends > 1 else "")


class AuditBar:
    """Listens to an audit: a cell weighs the seconds it is expected to take."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._bar = bar()
        self._weights = weights
        self._done = dict.fromkeys(weights, 0.0)

    def __enter__(self) -> AuditBar:
        self._bar.start()
        self._task = self._bar.add_task("audit", total=sum(self._weights.values()))
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Listen to an audit."""
        self._done[event.job.key] = max(event.fraction, self._done[event.job.key])
        spec = event.job.spec
        name = f"{spec.layer}  {spec.attack.partition(':')[0]}" + (f"  {attacker(spec)}" if spec.defenses else "")
        done = sum(self._weights[key] * fraction for key, fraction in self._done.items())
        self._bar.update(self._task, description=f"{name}  {event.words}".rstrip(), completed=done)
        if event.cell is not None and self._bar.disable:
            note(f"{name}: {event.cell.status} {event.cell.message}")
