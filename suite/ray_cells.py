"""Cells on the machines of a Ray cluster: what they need goes there, what they leave comes home.

A cell is worked on below a temporary root that stands for this machine's `/`. The files that the experiment
names lie there under their own paths, and the working directory is ours, so that the cell runs as it would
here; where a path comes home, the root is cut off.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Container, Generator, Iterator, Mapping, Sequence
from contextlib import chdir, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import ray

from suite import ray_workers, trace
from suite.backends.base import Progress
from suite.backends.kinds import backend_of
from suite.backends.ray import Home, bundles, replicas_away
from suite.errors import BadInput
from suite.experiment import Cell, generate
from suite.files import unpack, write_folder, writing
from suite.fingerprint import named_files
from suite.plugins import Plugin
from suite.ray_workers import Place
from suite.workers import Event, Finished, Task

if TYPE_CHECKING:
    from suite.runner import Job

P = TypeVar("P", bound=Plugin)

_TRACE = "trace.parquet"
"""The file a trace travels in."""
_MANIFEST = "manifest.json"
"""The file of a run that may name paths."""


@dataclass(frozen=True)
class _Errand:
    """A job, the task to do it by, our working directory, and references to what it needs: its trace as a
    file's bytes, and all files of the user. Paths are from `/`."""

    task: Task
    job: Job
    place: Path
    trace: ray.ObjectRef[bytes]
    files: ray.ObjectRef[dict[Path, bytes]]


@dataclass(frozen=True)
class _Brought:
    """What comes home: the reason if the job failed, and files by their path in the experiment's folder."""

    reason: str | None
    files: dict[Path, bytes]


def run(task: Task, jobs: Sequence[Job]) -> Generator[Event, None, None]:
    """Like `workers.run(task, jobs)`, on the cluster: `task` writes a job and returns the reason if it fails.

    Raises `BadInput` as `ray_workers.run` does.
    """
    exclusive = any(job.cell.exclusive for job in jobs)
    with closing(ray_workers.run(_done_away, _errands(task, jobs), _needs if exclusive else None)) as events:
        for event in events:
            if isinstance(event, Finished):
                yield Finished(event.index, _brought_home(event.result, jobs[event.index]))
            else:
                yield event


def _needs(errand: _Errand) -> list[dict[str, float]]:
    return bundles(errand.job.cell.settings)


def _errands(task: Task, jobs: Sequence[Job]) -> Iterator[_Errand]:
    named = {path for job in jobs for path in _named(job.cell)}
    files = ray.put({_from_root(path.absolute()): path.read_bytes() for path in named})
    for key, same in itertools.groupby(jobs, key=lambda job: job.cell.trace_key):
        packed = ray.put(_packed(key))
        yield from (_Errand(task, job, _from_root(Path.cwd()), packed, files) for job in same)


def _from_root(path: Path) -> Path:
    return path.relative_to(path.anchor)


def _packed(trace_key: str) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / _TRACE
        trace.write(generate(trace_key), path)
        return path.read_bytes()


def _brought_home(brought: _Brought, job: Job) -> str | None:
    """Write what a job has left where it would have left it here. Returns the reason if it failed."""
    out = job.folder.parents[1]
    try:
        for folder in (job.folder, job.broken):
            if files := _below(folder.relative_to(out), brought.files):
                write_folder(folder, partial(unpack, files))
        with writing(job.logs):
            unpack(_below(job.logs.relative_to(out), brought.files), job.logs)
    except BadInput as error:
        return str(error)
    if brought.reason is None:
        shutil.rmtree(job.broken, ignore_errors=True)
    return brought.reason


def _below(folder: Path, files: Mapping[Path, bytes]) -> dict[Path, bytes]:
    """Those of the files that are in the folder, by their path in it."""
    return {path.relative_to(folder): data for path, data in files.items() if path.is_relative_to(folder)}


def _named(cell: Cell) -> Iterator[Path]:
    """The files that a cell names, but for its workload's: of classes, and of the backend's settings."""
    for plugin in (cell.scheduler, cell.scheduler.router):
        place = plugin.target.rpartition(":")[0] if plugin else ""
        if place.endswith(".py"):
            yield Path(place)
    yield from named_files(backend_of(cell.settings))


# -- on a machine of the cluster -------------------------------------------------------------------------


def _done_away(errand: _Errand, there: Place, progress: Progress) -> _Brought:
    """Do the errand's task below a root in the folder, and pack up everything that it leaves."""
    files = ray.get(errand.files)
    root, packed = there.folder / "root", there.folder / _TRACE
    packed.write_bytes(ray.get(errand.trace))
    unpack(files, root)
    place = root / errand.place
    place.mkdir(parents=True, exist_ok=True)
    job = _moved(errand.job, root, files)
    job = replace(job, cell=replace(job.cell, source=str(packed), overrides={}))
    home = Home(job.cell.settings, job.cell.scheduler, root, place, errand.files)
    with chdir(place):
        with replicas_away(home, there.group) if there.group else nullcontext():
            reason = errand.task(job, progress)
        left = _left(job.folder.parents[1])
    cut = str(root).encode()
    left |= {path: left[path].replace(cut, b"") for path in left if path.name == _MANIFEST}
    return _Brought(reason and reason.replace(str(root), ""), left)


def _left(out: Path) -> dict[Path, bytes]:
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def _moved(job: Job, root: Path, files: Container[Path]) -> Job:
    """The job with its absolute paths below the root: its folder, and those of the files that came along."""

    def moved(value: Any) -> Any:
        ours = isinstance(value, str) and Path(value).is_absolute() and _from_root(Path(value)) in files
        return f"{root}{value}" if ours else value

    def plugin(own: P) -> P:
        place, colon, name = own.target.rpartition(":")
        return replace(own, target=f"{moved(place)}{colon}{name}")

    scheduler = plugin(job.cell.scheduler)
    if scheduler.router:
        scheduler = replace(scheduler, router=plugin(scheduler.router))
    settings = {key: moved(value) for key, value in job.cell.settings.items()}
    folder = Path(f"{root}{job.folder}") if job.folder.is_absolute() else job.folder
    return replace(job, folder=folder, cell=replace(job.cell, scheduler=scheduler, settings=settings))
