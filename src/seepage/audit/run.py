"""Run what a request asks for: finish what is missing, recompute nothing, lose nothing."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..defenses import DefenseError
from ..schema import Cell
from ..store import IMAGES, Store, StoreError
from ..types import NotRunError, SeepageError
from .assemble import record
from .cell import CellRun
from .exposure import Exposure
from .plan import Job, jobs
from .request import Request
from .workbench import Workbench


@dataclass(frozen=True)
class Event:
    """What happens while an audit runs: a cell starts, its attack learns, it advances by a fraction, or ends.

    `words` say how far learning is; the fraction of the cell is not known of it.
    """

    kind: Literal["start", "learn", "advance", "end"]
    job: Job
    fraction: float = 0.0
    cell: Cell | None = None
    words: str = ""


Listener = Callable[[Event], None]


def run_audit(
    request: Request,
    folder: Path,
    *,
    listener: Listener | None = None,
    bench: Workbench | None = None,
    grid: Sequence[Job] | None = None,
    debug: bool = False,
) -> list[Cell]:
    """Run a request's cells into a folder and return their records, in the grid's order.

    `grid` are those of its cells that are wanted, all of them unless told.

    Cells that the folder holds already, done or not to be run, are not run again; failed ones are. With `debug` an
    unexpected error is raised instead of recorded as a failed cell.

    Raises:
        SeepageError: the request cannot be served, or the folder cannot be written.
    """
    bench = bench or Workbench(request)
    tell = listener or (lambda event: None)
    grid = jobs(bench) if grid is None else grid
    with Store(folder).opened() as store:
        known = store.cells()
        _refuse_mixture(request, known.values(), folder)
        missing = [job for job in grid if job.key not in known or known[job.key].status == "failed"]
        for job in grid:
            if job not in missing:
                tell(Event("end", job, 1.0, known[job.key]))
        runner = _alone if request.workers == 1 or len(missing) < 2 else _pool
        for cell in runner(request, bench, missing, store, tell, debug):
            store.append(cell)
            known[cell.key] = cell
            tell(Event("end", next(job for job in missing if job.key == cell.key), 1.0, cell))
        store.close_journals(known)
    return [known[job.key] for job in grid]


def run_cell(bench: Workbench, job: Job, store: Store, tell: Listener, debug: bool = False) -> Cell:
    """Run one cell and return its record; an attack's error becomes a failed record that names it."""
    try:
        split = bench.split(job.spec.layer)
        lines = store.finished(job.key)
        pending = [index for index in range(len(bench.source)) if index not in lines]

        def finish(line: Any) -> None:
            store.finish(job.key, line)
            lines[line.index] = line

        fit_seconds = 0.0
        if pending:
            exposure = Exposure(bench, split, job.spec.attacker, job.spec.sends)
            cell = CellRun(
                *(bench, job.key, exposure, job.spec.attack, store.folder, store.workdir(job.key), finish),
                advance=lambda fraction: tell(Event("advance", job, fraction)),
                learn=lambda done, words: tell(Event("learn", job, words=words)),
            )
            fit_seconds = cell.run(pending)
        return record(bench, job.key, job.spec, split, list(lines.values()), fit_seconds)
    except StoreError:
        raise
    except (NotRunError, DefenseError) as error:
        return Cell(key=job.key, status="not_run", message=str(error), spec=job.spec)
    except SeepageError as error:
        return Cell(key=job.key, status="failed", message=str(error), spec=job.spec)
    # An attack or victim is foreign code: whatever it raises must cost its own cell, not the sweep.
    except Exception as error:
        if debug:
            raise
        reason = (str(error).splitlines() or [""])[0]
        return Cell(key=job.key, status="failed", message=f"{type(error).__name__}: {reason}", spec=job.spec)


def _alone(
    request: Request, bench: Workbench, missing: Sequence[Job], store: Store, tell: Listener, debug: bool
) -> Iterator[Cell]:
    for job in missing:
        tell(Event("start", job))
        yield run_cell(bench, job, store, tell, debug)


def _pool(
    request: Request, bench: Workbench, missing: Sequence[Job], store: Store, tell: Listener, debug: bool
) -> Iterator[Cell]:
    """Run cells in spawned processes; this one alone writes the results."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // request.workers)
    with ExitStack() as stack:
        manager = stack.enter_context(context.Manager())
        said: Any = manager.Queue()
        pool = concurrent.futures.ProcessPoolExecutor(
            request.workers, context, initializer=_begin, initargs=(request, store.folder, said, threads)
        )
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        running = {pool.submit(_work, job, debug): job for job in missing}
        while running:
            done, _ = concurrent.futures.wait(running, 0.2, concurrent.futures.FIRST_COMPLETED)
            _retell(said, missing, tell)
            for future in done:
                del running[future]
                try:
                    yield future.result()
                except concurrent.futures.process.BrokenProcessPool as error:
                    raise SeepageError(
                        "a worker process was killed (out of memory?); the same command resumes, "
                        f"with fewer --workers than {request.workers} if it happens again"
                    ) from error


_worker: dict[str, Any] = {}


def _begin(request: Request, folder: Path, said: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    _worker.update(bench=Workbench(request), store=Store(folder), said=said)


def _work(job: Job, debug: bool) -> Cell:
    said = _worker["said"]

    def tell(event: Event) -> None:
        said.put((job.key, event.kind, event.fraction, event.words))

    tell(Event("start", job))
    return run_cell(_worker["bench"], job, _worker["store"], tell, debug)


def _retell(said: Any, missing: Sequence[Job], tell: Listener) -> None:
    by_key = {job.key: job for job in missing}
    while True:
        try:
            key, kind, fraction, words = said.get_nowait()
        except queue.Empty:
            return
        tell(Event(kind, by_key[key], fraction, words=words))


def _refuse_mixture(request: Request, known: Any, folder: Path) -> None:
    """A redacted audit must not land beside pictures, whoever put them there."""
    shown = any(sample.recovered is not None for cell in known for sample in cell.samples)
    if request.redact and (shown or (folder / IMAGES).exists()):
        raise StoreError(f"{folder} holds records that show pictures; choose another folder with -o for --redact")
