"""What the command line shows of an experiment: its plan, its progress, the schedulers to choose from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from suite.plugins import Plugin, shown

if TYPE_CHECKING:
    from suite.policies import RouterSpec, SchedulerSpec
    from suite.runner import Job


def plan(jobs: Sequence[Job], seconds: Mapping[str, float], processes: int) -> Table:
    """The cells with their sizes; the estimate of time is for those not finished.

    It is for so many processes, for one if cells measure real time: these run one by one.
    """
    processes = 1 if any(job.cell.exclusive for job in jobs) else processes
    todo = {job.cell.slug for job in jobs if not job.is_finished}
    total = sum(seconds[slug] for slug in todo) / min(processes, max(len(todo), 1))
    title = f"{len(jobs)} cells, {len(todo)} to run: about {_duration(total)} in {processes} processes"
    table = Table("cell", "requests", "time", "", title=title, title_justify="left")
    for job in jobs:
        slug = job.cell.slug
        state = "to run" if slug in todo else "finished"
        table.add_row(Text(slug), f"{job.requests:,}", _duration(seconds[slug]), state)
    return table


def schedulers(specs: Iterable[SchedulerSpec]) -> Table:
    """What each scheduler does, its parameters with their defaults, and whether it is work conserving."""
    table = Table("scheduler", "what it does", "parameters", "work conserving", title_justify="left")
    for spec in specs:
        table.add_row(*_described(spec), "yes" if spec.work_conserving else "no")
    return table


def routers(specs: Iterable[RouterSpec]) -> Table:
    """What each router does, and its parameters with their defaults."""
    table = Table("router", "what it does", "parameters", title_justify="left")
    for spec in specs:
        table.add_row(*_described(spec))
    return table


def _described(plugin: Plugin) -> tuple[Text, Text, Text]:
    parameters = (f"{key}={shown(value)}" for key, value in plugin.full_parameters.items())
    return Text(plugin.name), Text(plugin.summary), Text("\n".join(parameters))


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


class Cells:
    """A bar over all cells, each weighing as many as it has requests: share, cells done, time left.

    `requests[i]` is the number of requests of cell i.
    """

    def __init__(self, requests: Sequence[int], console: Console) -> None:
        self._requests = requests
        self._shares = [0.0] * len(requests)
        self._bar = Progress(
            TextColumn("{task.fields[done]} of {task.fields[cells]} cells"),
            TextColumn("{task.fields[note]}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            disable=not requests,
        )
        self._task = self._bar.add_task("", total=sum(requests), done=0, cells=len(requests), note="")

    def update(self, cell: int, share: float, note: str = "") -> None:
        """Cell number `cell` is done to `share`, 0 to 1; `note` is a word about it."""
        self._shares[cell] = share
        served = sum(share * weight for share, weight in zip(self._shares, self._requests, strict=True))
        done = sum(share >= 1 for share in self._shares)
        self._bar.update(self._task, completed=served, done=done, note=note)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
