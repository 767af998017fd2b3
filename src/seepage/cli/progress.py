"""How far an audit is, as a bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .console import bar, note

if TYPE_CHECKING:
    from ..audit.run import Event


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
        name = f"{event.job.spec.layer}  {event.job.spec.attack.partition(':')[0]}"
        done = sum(self._weights[key] * fraction for key, fraction in self._done.items())
        self._bar.update(self._task, description=name, completed=done)
        if event.cell is not None and self._bar.disable:
            note(f"{name}: {event.cell.status} {event.cell.message}")
