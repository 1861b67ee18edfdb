"""How long a large workload takes to make, write, read and describe, and how much memory, stage by stage.

Each stage runs in a process of its own, so that its peak of memory is its own too. Seconds do not hold the
start of the process.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, TypeAlias

from rich.markup import escape
from rich.table import Column, Table

from suite import trace
from suite.errors import BadInput
from workloads.describing.describe import describe
from workloads.family import Synthetic
from workloads.spec import load

ENDINGS = (".jsonl", ".parquet")
MARGIN = 1.02
"""How much higher the load is than it needs to be, as a seed makes some more or fewer requests."""
MIB = 2**20

Job: TypeAlias = Callable[[], int]
"""What a stage does; it returns how many requests it saw."""


class Stage(NamedTuple):
    """What a stage took: seconds by the clock, and the most bytes that were resident in its process."""

    name: str
    requests: int
    seconds: float
    peak: int


def workloads(spec: str, requests: int, say: Callable[[str], None]) -> Table:
    """Time about this many requests of a synthetic spec, made by raising its load, through all stages.

    `say` is told what is under way. Raises `BadInput` if the spec is not synthetic.
    """
    table = Table(
        "stage", *(Column(name, justify="right") for name in ("requests", "seconds", "requests/s", "MiB")),
        title=f"Workload {escape(spec)}, about {requests:,} requests",
        caption="Each stage in a process of its own, without the start of it; MiB is the peak of its memory. "
        "What writing takes is what a stage takes longer than generating alone.",
    )  # fmt: skip
    for stage in stages(spec, requests, say):
        table.add_row(
            stage.name, f"{stage.requests:,}", f"{stage.seconds:.1f}",
            f"{stage.requests / stage.seconds:,.0f}", f"{stage.peak / MIB:,.0f}",
        )  # fmt: skip
    return table


def stages(spec: str, requests: int, say: Callable[[str], None]) -> Iterator[Stage]:
    """Every stage, each as soon as it is through."""
    factor = _load(spec, requests)
    with tempfile.TemporaryDirectory() as folder:
        for name, job in _jobs(spec, factor, Path(folder)):
            say(name)
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                yield Stage(name, *alone.submit(_measured, job).result())


def _load(spec: str, requests: int) -> float:
    """The load at which the spec makes at least about this many requests."""
    workload = load(spec)
    if not isinstance(workload, Synthetic):
        raise BadInput(f"{spec}: only a synthetic workload can be made larger by its load; take one of those")
    return MARGIN * workload.load * requests / len(workload.generate(0).requests)


def _jobs(spec: str, factor: float, folder: Path) -> Iterator[tuple[str, Job]]:
    yield "generate", partial(_generate, spec, factor)
    for ending in ENDINGS:
        yield f"generate, write {ending}", partial(_write, spec, factor, folder / f"trace{ending}")
    for ending in ENDINGS:
        yield f"stream {ending}", partial(_stream, folder / f"trace{ending}")
    yield f"describe {ENDINGS[-1]}", partial(_describe, folder / f"trace{ENDINGS[-1]}")


def _measured(job: Job) -> tuple[int, float, int]:
    start = perf_counter()
    requests = job()
    seconds = perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    return requests, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _generate(spec: str, factor: float) -> int:
    return len(load(spec, {"load": factor}).generate(0).requests)


def _write(spec: str, factor: float, file: Path) -> int:
    made = load(spec, {"load": factor}).generate(0)
    trace.write(made, file)
    return len(made.requests)


def _stream(file: Path) -> int:
    _, requests = trace.stream(file)
    return sum(1 for _ in requests)


def _describe(file: Path) -> int:
    return len(describe(*trace.stream(file)).requests)
