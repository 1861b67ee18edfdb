"""Run an experiment: its cells in parallel processes, each written as one piece, finished ones skipped.

OUT/cells/<slug>/    a run folder (see `suite.results`) and clients.csv, the per-client table
OUT/experiment.json  {"name", "command", "cells": [slugs of the finished cells, in the experiment's order]}
OUT/report.html ...  see `suite.report`
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

import suite
from suite import display, policies, results, workers
from suite.errors import BadInput
from suite.experiment import Cell, Experiment, generate
from suite.files import DRAFT, probe, write_atomically
from suite.metrics import summary
from suite.results import Manifest, Run

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
    report: Path | None = None


def plan(experiment: Experiment, out: Path, command: str = "") -> Iterator[Job]:
    """The experiment's cells as jobs. Each trace is generated once, to know its digest and its size."""
    traces: dict[str, tuple[str, int]] = {}
    for cell in experiment.cells:
        if cell.trace_key not in traces:
            trace = generate(cell.trace_key)
            traces[cell.trace_key] = trace.digest, len(trace.requests)
        digest, requests = traces[cell.trace_key]
        yield Job(cell, out / "cells" / cell.slug, cell.digest(digest), digest, requests, command)


def estimate(jobs: Sequence[Job]) -> dict[str, float]:
    """Seconds on one core that each job may take, by slug.

    Each trace's first requests are served under FCFS and the time is scaled up: too low where a long queue
    or another scheduler makes the real run slower.
    """
    per_request: dict[str, float] = {}
    for job in jobs:
        if job.cell.trace_key not in per_request:
            per_request[job.cell.trace_key] = _sample(job.cell)
    return {job.cell.slug: job.requests * per_request[job.cell.trace_key] for job in jobs}


def run(
    name: str, jobs: Sequence[Job], out: Path, *, processes: int, fresh: bool = False, console: Console
) -> Outcome:
    """Run the jobs that are not finished (with `fresh`, all), then write the report.

    A job that fails is noted and does not stop the others. KeyboardInterrupt stops the workers; what is
    finished stays, nothing half-written does. Raises `BadInput` before any work if `out` cannot be written.
    """
    _check_place(out)
    todo = [job for job in jobs if fresh or not job.is_finished]
    outcome = Outcome(out, len(jobs), skipped=len(jobs) - len(todo))
    try:
        _work_off(todo, outcome, processes, console)
        if _write_index(name, jobs, out):
            outcome.report = _report(out, console)
    except KeyboardInterrupt:
        outcome.interrupted = True
        whole = _write_index(name, jobs, out)  # a cell may be whole whose worker could not say so any more
        outcome.finished = len(whole) - outcome.skipped
    return outcome


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


def _report(out: Path, console: Console) -> Path:
    from suite.report import html  # here, as worker processes load this module and draw nothing

    with console.status("writing the report"):
        return html.write_report(out)


def _work_off(jobs: Sequence[Job], outcome: Outcome, processes: int, console: Console) -> None:
    try:
        with (
            display.Cells([job.requests for job in jobs], console) as shown,
            closing(workers.run(_execute, jobs, processes)) as events,
        ):
            for event in events:
                shown.update(event.index, event.share if isinstance(event, workers.Progressed) else 1.0)
                _note(event, jobs[event.index].cell.slug, outcome)
    finally:
        _sweep(outcome.out / "cells")


def _note(event: workers.Event, slug: str, outcome: Outcome) -> None:
    if isinstance(event, workers.Lost):
        outcome.failed[slug] = f"its process died with exit code {event.exit_code} (out of memory, killed?)"
    elif isinstance(event, workers.Finished) and event.result is not None:
        outcome.failed[slug] = event.result
    elif isinstance(event, workers.Finished):
        outcome.finished += 1


def _write_index(name: str, jobs: Sequence[Job], out: Path) -> list[str]:
    """Write experiment.json and return the finished cells it lists."""
    cells = [job.cell.slug for job in jobs if job.is_finished]
    index = {"name": name, "command": jobs[0].command, "cells": cells}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    write_atomically(out / "experiment.json", lambda file: file.write_text(text, encoding="utf-8"))
    return cells


def _sweep(cells: Path) -> None:
    """Remove the drafts of workers that were stopped, and nothing else."""
    for draft in [*cells.glob(f"{DRAFT}*"), *cells.glob(f"*/{DRAFT}*")]:
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


# -- one cell, in a worker process -----------------------------------------------------------------------


def _execute(job: Job, progress: Callable[[float], None]) -> str | None:
    """Run one job and write it. Returns the reason if it fails.

    Whatever a scheduler raises is its failure, SystemExit and KeyboardInterrupt too: a real Ctrl-C never
    arrives here, as workers ignore it and the parent stops them.
    """
    try:
        _write(_run(job, progress), job.folder)
    except BadInput as error:
        return str(error)
    except BaseException as error:
        return policies.blame(error, job.cell.scheduler.file)
    return None


def _run(job: Job, progress: Callable[[float], None]) -> Run:
    cell = job.cell
    trace = generate(cell.trace_key)
    if trace.digest != job.trace:
        raise BadInput(f"workload {cell.labels['workload']!r}: its trace changed while the experiment ran")
    started, start = datetime.now(UTC), time.perf_counter()
    outcome = cell.backend().run(trace, cell.scheduler, progress)
    manifest = Manifest(
        cell=job.digest,
        labels=cell.labels,
        trace={"digest": trace.digest, "header": asdict(trace.header)},
        scheduler={
            "name": cell.scheduler.label,
            "target": cell.scheduler.target,
            "parameters": cell.scheduler.full_parameters,
            "source": cell.scheduler.source_digest,
        },
        backend=cell.settings,
        engine=outcome.engine,
        versions=_versions(),
        command=job.command,
        times={"started": started.isoformat(), "seconds": time.perf_counter() - start},
    )
    return Run(manifest, outcome.requests, outcome.service)


def _write(run: Run, folder: Path) -> None:
    """Write the run folder, then the per-client table; with the table in it the folder is whole."""
    table = summary.clients(run)
    results.write(run, folder)
    write_atomically(folder / "clients.csv", lambda file: table.to_csv(file, index=False))


def _sample(cell: Cell) -> float:
    """Seconds per request over the first requests of the cell's trace."""
    trace = generate(cell.trace_key)
    sample = replace(trace, requests=trace.requests[:_SAMPLE])
    start = time.perf_counter()
    cell.backend().run(sample, policies.parse("fcfs"), lambda share: None)
    return (time.perf_counter() - start) / len(sample.requests)


def _versions() -> dict[str, str]:
    libraries = {name: version(name) for name in ("numpy", "pandas", "pyarrow")}
    return {"suite": suite.__version__, "python": platform.python_version(), **libraries}
