"""Independent tasks in worker processes that may die: every task ends in a result or is known to be lost."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias

Task: TypeAlias = Callable[[Any, Callable[..., None]], Any]
"""A module-level function of an item and a progress callback (share 0 to 1, a note). It raises nothing."""

_STEP = 0.01
"""Smallest progress worth a message."""


@dataclass(frozen=True)
class Progressed:
    """Item number `index` is done to this share, 0 to 1, with a word about it."""

    index: int
    share: float
    note: str


@dataclass(frozen=True)
class Finished:
    """Item number `index` gave this result."""

    index: int
    result: Any


@dataclass(frozen=True)
class Retried:
    """What worked on item number `index` was lost, and the item is begun anew."""

    index: int
    reason: str


@dataclass(frozen=True)
class Lost:
    """What worked on item number `index` was lost, and the item is given up."""

    index: int
    reason: str


Event: TypeAlias = Progressed | Finished | Retried | Lost


def run(task: Task, items: Sequence[Any], jobs: int) -> Generator[Event, None, None]:
    """Work on all items in `jobs` processes and tell what happens.

    Closing the generator, or an exception out of it, stops and reaps every process: SystemExit is raised in
    the task it works on, if any, and it exits as Python does, so that what it has opened is closed.
    """
    todo = deque(enumerate(items))
    idle: list[_Worker] = []
    busy: dict[Any, _Worker] = {}
    try:
        while todo or busy:
            while todo and len(busy) < jobs:
                worker = idle.pop() if idle else _Worker(task)
                busy[worker.connection] = worker
                worker.give(*todo.popleft())
            for connection in wait(list(busy)):
                event = busy[connection].event()
                if not isinstance(event, Progressed):
                    worker = busy.pop(connection)
                    idle += [worker] if isinstance(event, Finished) else []
                yield event
    finally:
        left = [*idle, *busy.values()]
        for worker in left:
            worker.dismiss()
        for worker in left:
            worker.reap()


class _Worker:
    """A process that takes one item at a time over a pipe."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, task), daemon=True)
        self._index = -1
        with _interrupts_ignored():
            self._process.start()
        theirs.close()

    def give(self, index: int, item: Any) -> None:
        self._index = index
        try:
            self.connection.send(item)
        except OSError:
            return  # it is dead already; `event` says so

    def event(self) -> Event:
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self.reap()
            code = self._process.exitcode  # negative for a signal
            return Lost(self._index, f"its process died with exit code {code} (out of memory, killed?)")
        return Progressed(self._index, *content) if kind == "progress" else Finished(self._index, content)

    def dismiss(self) -> None:
        self.connection.close()
        self._process.terminate()

    def reap(self) -> None:
        self.connection.close()
        self._process.join(5)
        self._process.kill()
        self._process.join()


def _work(connection: Connection, task: Task) -> None:
    """The life of a worker: it ends with the pipe, or at SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())

    def tell(share: float, note: str) -> None:
        connection.send(("progress", (share, note)))

    try:
        while True:
            item = connection.recv()
            connection.send(("result", task(item, in_steps(tell))))
    except (EOFError, OSError):
        return


def in_steps(tell: Callable[[float, str], None]) -> Callable[..., None]:
    """A progress callback that tells only of steps worth a message."""
    told = 0.0

    def report(share: float, note: str = "") -> None:
        nonlocal told
        if share - told >= _STEP:
            told = share
            tell(share, note)

    return report


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started inside ignore SIGINT for life: Ctrl-C is the parent's to handle."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
