"""The load generator: replays a trace against a server that speaks the OpenAI API, and says how well it did.

Requests go out at trace times (open loop); one that comes after others goes out a think time after the last
of them has finished, with the replies the engine really gave in its prompt (closed loop). The sending is done
by processes of `suite.client`; here their work is dealt out, collected, journalled and judged.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf, isnan
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
import pandas as pd

from suite.backends.base import Progress
from suite.client import Health, Job, Record
from suite.content import Content, replied
from suite.dialect import Target
from suite.files import writing
from suite.results import STREAM_COLUMNS
from suite.trace import Request, Trace

__all__ = ["Replayed", "Target", "replay"]

LATE = 0.05
"""Seconds of send lag at P99 above which arrivals are not those of the trace any more."""
SLUGGISH = 0.05
"""Seconds of event-loop lag at P99 above which stamps on tokens tell of the client, not of the server."""
SATURATED = 0.9
"""Share of a core above which a client process may be what limits the rate."""

_MEND = "give it more processes or less load"

_REPORT = 0.25
"""Seconds between two words of progress and two looks at whether the server lives."""
_SOON = 0.1
"""Seconds from when all processes are ready to trace time zero."""
_GRACE = 5.0
"""Seconds that processes have to tell what they have when the server is gone."""

REQUEST_COLUMNS = (
    "id", "client", "session", "arrival", "first_token", "finish", "prompt_tokens", "output_tokens",
    "cached_tokens", "weight", "status", "send_lag", "error",
)  # fmt: skip
"""The columns of `suite.results.REQUEST_COLUMNS` that a client knows."""


@dataclass(frozen=True)
class Replayed:
    """What a replay gave. All times are in seconds since `start`.

    `requests` has `REQUEST_COLUMNS`, one row per request in trace order; `arrival` is when it was sent.
    `streams` has `suite.results.STREAM_COLUMNS`, in order of time. `health` says how the client fared.
    `invalid` are reasons why the client cannot be trusted in this run, with numbers.
    """

    requests: pd.DataFrame
    streams: pd.DataFrame
    start: float
    """The monotonic clock at trace time zero."""
    health: dict[str, Any]
    invalid: tuple[str, ...] = ()


def replay(
    trace: Trace,
    content: Content,
    target: Target,
    *,
    processes: int = 1,
    journal: Path | None = None,
    progress: Progress,
    timeout_s: float,
    alive: Callable[[], str | None] = lambda: None,
) -> Replayed:
    """Send every request of the trace and follow it to its end.

    Requests that hang together by `after` are sent by one process; such groups are dealt round robin. A
    request without an end after `timeout_s` seconds fails. Each that ends is appended to the file `journal`
    as a line of JSON. If `alive` gives a reason why the server is dead, what is left fails for it. No process
    is left behind, whatever happens.
    """
    with ExitStack() as stack:
        notes = stack.enter_context(_Journal(journal)) if journal else None
        ledger = _Ledger(trace.requests, notes)
        jobs = _jobs(trace, content, target, processes, timeout_s)
        crew = [stack.enter_context(_Process(job)) for job in jobs]
        start = _start(crew)
        _collect(crew, ledger, progress, alive)
    records = ledger.complete()
    health = _health(crew, records)
    requests = pd.DataFrame(map(_row, trace.requests, records), columns=list(REQUEST_COLUMNS))
    invalid = (*judged(health), *_broken(crew, ledger, notes))
    return Replayed(requests, _streams(records), start, health, invalid)


# -- dealing -----------------------------------------------------------------------------------------------


def _jobs(trace: Trace, content: Content, target: Target, processes: int, timeout_s: float) -> Iterator[Job]:
    groups = _groups(trace.requests)
    numbers = {root: number for number, root in enumerate(dict.fromkeys(groups))}
    wanted = replied(trace.requests)
    for process in range(min(processes, len(numbers))):
        requests = tuple(
            request
            for request, root in zip(trace.requests, groups, strict=True)
            if numbers[root] % processes == process
        )
        yield Job(requests, target, content.needed_by(requests), wanted, timeout_s)


def _groups(requests: Sequence[Request]) -> list[str]:
    """For each request the id of one that stands for all those it hangs together with by `after`."""
    leader: dict[str, str] = {}

    def find(id: str) -> str:
        while leader[id] != id:
            leader[id] = id = leader[leader[id]]
        return id

    for request in requests:
        leader[request.id] = request.id
        for parent in request.after:
            leader[find(parent)] = request.id
    return [find(request.id) for request in requests]


# -- processes ---------------------------------------------------------------------------------------------


class _Process:
    """A client process with its job. Leaving the context ends it."""

    def __init__(self, job: Job) -> None:
        self.connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "suite.client_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            process_group=0,  # Ctrl-C is the parent's to handle
        )
        theirs.close()
        self.health: Health | None = None
        self._job = job

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self._process.kill()
        self._process.wait()

    def give(self) -> None:
        """Hand over the job; the process makes ready."""
        self.tell(self._job)

    def tell(self, message: Any) -> None:
        """Send a message; a process that is dead is noticed when it is heard."""
        try:
            self.connection.send(message)
        except OSError:
            return

    def hear(self) -> Any:
        """Its next message, None if it has ended."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None


def _start(crew: Sequence[_Process]) -> float:
    """Trace time zero, once all have their jobs and their first bodies."""
    for process in crew:
        process.give()
    for process in crew:
        _ = process.hear()
    start = time.monotonic() + _SOON
    for process in crew:
        process.tell(start)
    return start


def _collect(
    crew: Sequence[_Process], ledger: _Ledger, progress: Progress, alive: Callable[[], str | None]
) -> None:
    """Take records in until every process has ended, or the server is dead and the time of grace is over."""
    talking = {process.connection: process for process in crew}
    until, reported = inf, 0.0
    while talking and time.monotonic() < until:
        for connection in wait(list(talking), _REPORT):
            assert isinstance(connection, Connection)
            _take(talking, connection, ledger)
        if time.monotonic() - reported >= _REPORT:
            reported = time.monotonic()
            progress(*ledger.progress())
            if ledger.dead is None and (reason := alive()):
                ledger.dead, until = reason, reported + _GRACE
                for process in talking.values():
                    process.tell(reason)
    progress(*ledger.progress())


def _take(talking: dict[Connection, _Process], connection: Connection, ledger: _Ledger) -> None:
    message = talking[connection].hear()
    if isinstance(message, Record):
        ledger.add(message)
    elif isinstance(message, Health):
        talking[connection].health = message
    else:
        del talking[connection]


# -- records -----------------------------------------------------------------------------------------------


class _Ledger:
    """What became of the requests so far."""

    def __init__(self, requests: Sequence[Request], journal: _Journal | None) -> None:
        self._requests = {request.id: request for request in requests}
        self._records: dict[str, Record] = {}
        self._journal = journal
        self._failed = 0
        self._worst_lag = 0.0
        self.dead: str | None = None
        """Why the server is dead."""

    def add(self, record: Record) -> None:
        """Note what became of a request."""
        self._records[record.id] = record
        self._failed += record.status == "failed"
        self._worst_lag = max(self._worst_lag, 0.0 if isnan(record.lag) else record.lag)
        if self._journal is not None:
            self._journal.add(_row(self._requests[record.id], record))

    def progress(self) -> tuple[float, str]:
        """The share that is done, and a word: how many, how many failed, the worst send lag so far."""
        done, total = len(self._records), len(self._requests)
        lag = 1e3 * self._worst_lag
        return done / total, f"{done} of {total} done, {self._failed} failed, lag {lag:.0f} ms"

    def complete(self) -> list[Record]:
        """The record of every request in trace order; one that none was told of has failed."""
        reason = self.dead or "its client process ended before it"
        return [self._records.get(id) or Record(id, "failed", reason) for id in self._requests]


class _Journal:
    """Rows as lines of JSON, each on disk before the next. The first error ends the writing, not the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.error: str | None = None
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, row: tuple[Any, ...]) -> None:
        """Append one row."""
        if self.error is None:
            try:
                self._file.write(orjson.dumps(dict(zip(REQUEST_COLUMNS, row, strict=True))) + b"\n")
            except OSError as error:
                self.error = f"{self._path}: journal incomplete: {error.strerror}"


def _row(request: Request, record: Record) -> tuple[Any, ...]:
    """A row of `REQUEST_COLUMNS`; what the server does not tell is taken from the trace."""
    prompt = request.prompt_tokens if record.prompt_tokens is None else record.prompt_tokens
    return (
        request.id, request.client, request.session, record.sent, record.first_token, record.finish, prompt,
        record.output_tokens, record.cached_tokens or 0, request.weight, record.status, record.lag,
        record.error,
    )  # fmt: skip


def _streams(records: Sequence[Record]) -> pd.DataFrame:
    lengths = [len(record.times) for record in records]
    columns = (
        np.repeat(np.array([record.id for record in records], object), lengths),
        np.concatenate([record.times for record in records]),
        np.concatenate([record.tokens for record in records]),
    )
    frame = pd.DataFrame(dict(zip(STREAM_COLUMNS, columns, strict=True)))
    return frame.sort_values("time", kind="stable", ignore_index=True)


# -- judging -----------------------------------------------------------------------------------------------


def _health(crew: Sequence[_Process], records: Sequence[Record]) -> dict[str, Any]:
    """Send lag over all requests sent, the worst process's loop lag, each process's share of a core, and
    the limits they are judged by."""
    lags = [record.lag for record in records if not isnan(record.lag)] or [0.0]
    told = [process.health for process in crew if process.health]
    answered = [record for record in records if record.status == "finished"]
    return {
        "processes": len(crew),
        "send_lag_p50_s": float(np.percentile(lags, 50)),
        "send_lag_p99_s": float(np.percentile(lags, 99)),
        "send_lag_max_s": max(lags),
        "loop_lag_p99_s": max((health.loop_lag_p99 for health in told), default=0.0),
        "loop_lag_max_s": max((health.loop_lag_max for health in told), default=0.0),
        "cpu_shares": [round(health.cpu_share, 4) for health in told],
        "limits": {"send_lag_p99_s": LATE, "loop_lag_p99_s": SLUGGISH, "cpu_share": SATURATED},
        "output_tokens_counted": all(record.counted for record in answered),
        "cached_tokens_reported": any(record.cached_tokens is not None for record in answered),
    }


def judged(health: Mapping[str, Any]) -> Iterator[str]:
    """Why a client with this health cannot be trusted: it was late, or saturated."""
    late, sluggish = health["send_lag_p99_s"], health["loop_lag_p99_s"]
    if late > LATE:
        yield f"client late: send lag P99 {1e3 * late:.0f} ms, more than {1e3 * LATE:.0f} ms; {_MEND}"
    if sluggish > SLUGGISH:
        yield f"client late: loop lag P99 {1e3 * sluggish:.0f} ms, more than {1e3 * SLUGGISH:.0f} ms; {_MEND}"
    busiest = max(health["cpu_shares"], default=0.0)
    if busiest > SATURATED:
        yield f"client saturated: {busiest:.0%} of a core, more than {SATURATED:.0%}; {_MEND}"


def _broken(crew: Sequence[_Process], ledger: _Ledger, journal: _Journal | None) -> Iterator[str]:
    """What went wrong on our side, if anything did."""
    lost = sum(process.health is None for process in crew)
    if lost and ledger.dead is None:
        yield f"client: {lost} of {len(crew)} processes ended early; standard error may say why"
    if journal is not None and journal.error:
        yield journal.error
