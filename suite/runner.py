"""Run an experiment: each cell written as one piece, finished ones skipped.

Cells run in parallel processes, those of a backend that measures real time one by one in this process. Under
every second seed the schedulers come in the opposite order (A B, B A, A B, ...), so that a machine that grows
slower or faster meanwhile favours nobody.

OUT/cells/<slug>/    a run folder (see `suite.results`) and clients.csv, the per-client table
OUT/logs/<slug>/     what the backend left there; kept whatever becomes of the cell
OUT/broken/<slug>/   what was measured of a run that broke off; a later, whole run of the cell removes it
OUT/experiment.json  {"name", "command", "slo", "cells": [slugs of the finished cells, in their order],
                     "failed": [{"cell": slug, "labels", "reason"} of those that failed, now or earlier, and
                     are not finished since]}
OUT/.lock            held while a run writes here
OUT/report.html ...  see `suite.report`
"""

from __future__ import annotations

import fcntl
import itertools
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import suite
from suite import display, policies, ray_cluster, results, workers
from suite.backends.base import KEPT, Incomplete, Progress
from suite.backends.base import Outcome as Served
from suite.errors import BadInput
from suite.experiment import Cell, Experiment, generate
from suite.files import DRAFT, probe, write_atomically, writing
from suite.metrics import sharing, summary
from suite.plugins import blame
from suite.report.experiment import failures
from suite.results import Manifest, Run
from suite.trace import Trace

if TYPE_CHECKING:
    from suite.report.html import Report

RUNS = Path("results/runs")
"""Where runs go unless told otherwise, below the working directory."""

_SAMPLE = 200
"""Requests of a trace that are served to estimate the time for all."""


@dataclass(frozen=True)
class Job:
    """A cell whose trace is known. `digest` is the cell's, `trace` its trace's; `folder` is where it goes."""

    cell: Cell
    folder: Path
    digest: str
    trace: str
    requests: int
    command: str
    span: float
    """Seconds from the first to the last arrival that the trace knows of."""

    @property
    def logs(self) -> Path:
        """Where its backend may leave files."""
        return self.folder.parents[1] / "logs" / self.folder.name

    @property
    def broken(self) -> Path:
        """Where what was measured goes if the run breaks off."""
        return self.folder.parents[1] / "broken" / self.folder.name

    @property
    def is_finished(self) -> bool:
        """True if the folder holds this very cell, whole."""
        try:
            found = results.read_manifest(self.folder)
        except BadInput:
            return False
        same = (found.cell, found.labels) == (self.digest, self.cell.labels)
        return same and (self.folder / "clients.csv").exists()


@dataclass
class Outcome:
    """What became of the jobs: counts, and the reason of each failure by slug."""

    out: Path
    jobs: int
    skipped: int = 0
    finished: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    report: Report | None = None


def plan(experiment: Experiment, out: Path, command: str = "") -> Iterator[Job]:
    """The experiment's cells as jobs. Each trace is generated once, to know its digest and its size."""
    traces: dict[str, tuple[str, int, float]] = {}
    for cell in experiment.cells:
        if cell.trace_key not in traces:
            trace = generate(cell.trace_key)
            span = max(request.arrival for request in trace.requests)
            traces[cell.trace_key] = trace.digest, len(trace.requests), span
        digest, requests, span = traces[cell.trace_key]
        yield Job(cell, out / "cells" / cell.slug, cell.digest(digest), digest, requests, command, span)


def estimate(jobs: Sequence[Job]) -> dict[str, float]:
    """Seconds on one core that each job may take, by slug.

    Each trace's first requests are served under FCFS and the time is scaled up: too low where a long queue
    or another scheduler makes the real run slower. For real time it is the length of the trace, which a run
    exceeds by the start of the engine and by the backlog at the end.
    """
    per_request: dict[str, float] = {}
    for job in jobs:
        if not job.cell.exclusive and job.cell.trace_key not in per_request:
            per_request[job.cell.trace_key] = _sample(job.cell)
    return {
        job.cell.slug: job.span if job.cell.exclusive else job.requests * per_request[job.cell.trace_key]
        for job in jobs
    }


def run(
    experiment: Experiment,
    jobs: Sequence[Job],
    out: Path,
    *,
    processes: int,
    ray: str | None = None,
    fresh: bool = False,
    report: bool = True,
    console: Console,
) -> Outcome:
    """Run those of the experiment's jobs that are not finished (with `fresh`, all), then write the report.

    They run in so many processes, or on the Ray cluster at the address `ray` (see `suite.ray_cluster`). A job
    that fails is noted and does not stop the others. KeyboardInterrupt stops the workers; what is
    finished stays, nothing half-written does. Raises `BadInput` before any work if `out` cannot be written,
    or if another run writes there.
    """
    _check_place(out)
    with _locked(out):
        todo = [job for job in jobs if fresh or not job.is_finished]
        outcome = Outcome(out, len(jobs), skipped=len(jobs) - len(todo))
        try:
            _work_off(_interleaved(experiment, todo), outcome, processes, ray, console)
            if _write_index(experiment, jobs, outcome) and report:
                outcome.report = _report(out, console)
        except KeyboardInterrupt:
            outcome.interrupted = True
            # a cell may be whole whose worker could not say so any more
            whole = _write_index(experiment, jobs, outcome)
            outcome.finished = len(whole) - outcome.skipped
        return outcome


def _interleaved(experiment: Experiment, jobs: Iterable[Job]) -> list[Job]:
    """The jobs in the order A B B A: the schedulers of one trace reversed under every second seed."""
    rounds = itertools.groupby(jobs, key=lambda job: (job.cell.trace_key, str(job.cell.settings)))
    ordered = (list(found) for _, found in rounds)
    return [
        job
        for one in ordered
        for job in (reversed(one) if experiment.seeds.index(one[0].cell.seed) % 2 else one)
    ]


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder, so that two runs do not write the same cells and the same index."""
    path = out / ".lock"
    with writing(path):
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{out}: another run writes here; wait for it, or choose another --out") from None
        yield


def _check_place(out: Path) -> None:
    probe(out / "cells")
    figures = out / "figures"
    if figures.exists() and not figures.is_dir():
        raise BadInput(f"{figures}: cannot be written: a file is in the way; move it or choose another --out")
    for path in (out / name for name in ("experiment.json", "summary.csv", "report.html")):
        if path.is_dir():
            raise BadInput(
                f"{path}: cannot be written: a folder is in the way; move it or choose another --out"
            )


def _report(out: Path, console: Console) -> Report:
    from suite.report import html  # here, as worker processes load this module and draw nothing

    with console.status("writing the report"):
        return html.write_report(out)


def _work_off(
    jobs: Sequence[Job], outcome: Outcome, processes: int, ray: str | None, console: Console
) -> None:
    exclusive = any(job.cell.exclusive for job in jobs)
    try:
        with display.Cells([job.requests for job in jobs], console) as shown:
            if ray:
                _follow(ray_cluster.run(_execute, jobs, ray, processes), jobs, outcome, shown)
            elif exclusive:
                _one_by_one(jobs, outcome, shown)
            else:
                _follow(workers.run(_execute, jobs, processes), jobs, outcome, shown)
    finally:
        _sweep(outcome.out / "cells")


def _follow(
    work: Generator[workers.Event, None, None], jobs: Sequence[Job], outcome: Outcome, shown: display.Cells
) -> None:
    with closing(work) as events:
        for event in events:
            slug = jobs[event.index].cell.slug
            match event:
                case workers.Progressed():
                    shown.update(event.index, event.share, event.note)
                case workers.Retried():
                    shown.update(event.index, 0.0)
                    shown.say(f"{slug}: {event.reason}")
                case _:
                    shown.update(event.index, 1.0)
                    _note(event, slug, outcome)


def _one_by_one(jobs: Sequence[Job], outcome: Outcome, shown: display.Cells) -> None:
    """In this process, so that an interrupt reaches the backend and ends what it has started."""
    with KEPT:
        for index, job in enumerate(jobs):
            try:
                problem = _attempt(job, partial(shown.update, index))
            except Exception as error:
                problem = blame(error, *job.cell.scheduler.files)
            shown.update(index, 1.0)
            _note(workers.Finished(index, problem), job.cell.slug, outcome)


def _note(event: workers.Event, slug: str, outcome: Outcome) -> None:
    if isinstance(event, workers.Lost):
        outcome.failed[slug] = event.reason
    elif isinstance(event, workers.Finished) and event.result is not None:
        outcome.failed[slug] = event.result
    elif isinstance(event, workers.Finished):
        outcome.finished += 1


def _write_index(experiment: Experiment, jobs: Sequence[Job], outcome: Outcome) -> list[str]:
    """Write experiment.json and return the finished cells it lists."""
    path = outcome.out / "experiment.json"
    cells = [job.cell.slug for job in jobs if job.is_finished]
    reasons = {**_failed_before(outcome.out), **outcome.failed}
    failed = [
        {"cell": job.cell.slug, "labels": job.cell.labels, "reason": reasons[job.cell.slug]}
        for job in jobs
        if job.cell.slug in reasons and job.cell.slug not in cells
    ]
    slo = experiment.slo.model_dump(exclude_none=True) if experiment.slo else None
    index = {
        "name": experiment.name,
        "command": jobs[0].command,
        "cells": cells,
        "failed": failed,
        "slo": slo,
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
    return cells


def _failed_before(out: Path) -> dict[str, str]:
    """The reasons of the failures that the index there lists, by slug; none if there is none to be read."""
    try:
        return {failure.cell: failure.reason for failure in failures(out)}
    except BadInput:
        return {}


def _sweep(cells: Path) -> None:
    """Remove the drafts of workers that were stopped, and nothing else."""
    for draft in [*cells.glob(f"{DRAFT}*"), *cells.glob(f"*/{DRAFT}*")]:
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


# -- one cell, in a worker process -----------------------------------------------------------------------


def _execute(job: Job, progress: Progress) -> str | None:
    """Run one job in a worker and write it. Returns the reason if it fails.

    Whatever a scheduler raises is its failure, SystemExit and KeyboardInterrupt too: a real Ctrl-C never
    arrives here, as workers ignore it and the parent stops them.
    """
    try:
        return _attempt(job, progress)
    except BaseException as error:
        return blame(error, *job.cell.scheduler.files)


def _attempt(job: Job, progress: Progress) -> str | None:
    """Run one job and write it. Returns the reason if the run could not be made, or broke off."""
    try:
        try:
            _write(_run(job, progress), job.folder)
        except _BrokenOff as error:
            _write(error.run, job.broken)
            return f"{error}; what was measured is in {job.broken}"
    except BadInput as error:
        return str(error)
    shutil.rmtree(job.broken, ignore_errors=True)
    return None


class _BrokenOff(Exception):
    """The run broke off; `run` is what there is of it."""

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


def _run(job: Job, progress: Progress) -> Run:
    cell = job.cell
    trace = generate(cell.trace_key)
    if trace.digest != job.trace:
        raise BadInput(f"workload {cell.labels['workload']!r}: its trace changed while the experiment ran")
    started, start = datetime.now(UTC), time.perf_counter()

    def described(outcome: Served) -> Run:
        times = {"started": started.isoformat(), "seconds": time.perf_counter() - start}
        manifest = _manifest(job, trace, outcome, times)
        shared = sharing.shared(trace, outcome.requests)
        return Run(manifest, outcome.requests, outcome.service, outcome.streams, shared)

    try:
        return described(cell.backend().run(trace, cell.scheduler, job.logs, progress))
    except Incomplete as error:
        raise _BrokenOff(str(error), described(error.outcome)) from error


def _manifest(job: Job, trace: Trace, outcome: Served, times: dict[str, Any]) -> Manifest:
    return Manifest(
        cell=job.digest,
        labels=job.cell.labels,
        trace={"digest": trace.digest, "header": asdict(trace.header)},
        scheduler=job.cell.scheduler.record,
        backend=job.cell.settings,
        engine=outcome.engine,
        versions=_versions(),
        command=job.command,
        invalid=list(outcome.invalid),
        times=times,
    )


def _write(run: Run, folder: Path) -> None:
    """Write the run folder, then the per-client table; with the table in it the folder is whole."""
    table = summary.clients(run)
    results.write(run, folder)
    write_atomically(folder / "clients.csv", lambda file: table.to_csv(file, index=False))


def _sample(cell: Cell) -> float:
    """Seconds per request over the first requests of the cell's trace."""
    trace = generate(cell.trace_key)
    sample = replace(trace, requests=trace.requests[:_SAMPLE])
    scheduler = policies.parse("round-robin+fcfs" if cell.scheduler.router else "fcfs")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as logs:
        cell.backend().run(sample, scheduler, Path(logs), lambda share, note="": None)
    return (time.perf_counter() - start) / len(sample.requests)


def _versions() -> dict[str, str]:
    libraries = {name: version(name) for name in ("numpy", "pandas", "pyarrow")}
    return {"suite": suite.__version__, "python": platform.python_version(), **libraries}
