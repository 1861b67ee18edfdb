"""Independent tasks on a Ray cluster whose machines may die: the counterpart of `suite.workers`."""

from __future__ import annotations

import itertools
import queue
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import ray
from ray.exceptions import NodeDiedError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from suite.errors import BadInput
from suite.fingerprint import suite_digest
from suite.workers import Event, Finished, Lost, Progressed, Retried, in_steps


@dataclass(frozen=True)
class Place:
    """Where a task works: an empty folder of its own, which is removed, and the bundles it asked for."""

    folder: Path
    group: PlacementGroup | None


Task: TypeAlias = Callable[[Any, Place, Callable[..., None]], Any]
"""A module-level function of an item, its place, and a progress callback (share 0 to 1, a note). It raises
`MachineLost` only."""
Bundles: TypeAlias = list[dict[str, float]]
"""What is needed at once, as Ray names it, each on one machine."""

TRIES = 3
"""Times an item is begun at most, if one machine after the other is lost."""

_AHEAD = 2
"""Items handed to Ray for each CPU: those that wait show an autoscaler what is wanted."""
_PATIENCE = 5.0
"""Seconds a task that is stopped may take to clean up."""
_LOOK = 0.2
"""Seconds after which a task's main thread looks whether it is interrupted: waiting, it would not notice."""
_MACHINE = re.compile(r"ip=([^,)\s]+)")
"""Where a task has failed, in what Ray says of it."""
_INSTALL = "install the suite there as it is here, from the same sources"


@dataclass(frozen=True)
class _Try:
    """An item that is being worked on, for the `number`th time, in a placement group if it needs one."""

    index: int
    item: Any
    number: int = 1
    group: PlacementGroup | None = None


class MachineLost(Exception):
    """Raised by a task that has lost a machine it works with, so that its item is begun again."""


def run(
    task: Task, items: Iterable[Any], needs: Callable[[Any], Bundles] | None = None
) -> Generator[Event, None, None]:
    """Work on all items with one CPU each, as many at once as the cluster has room for; tell what happens.

    With `needs`, one item at a time, in the first of its bundles; the task may use the others.

    An item whose worker or machine is lost is begun again elsewhere, `TRIES` times in all. Closing the
    generator, or an exception out of it, stops what runs. Raises `BadInput` if a machine has other sources of
    the suite than this one.
    """
    crew, todo = _Crew(task, needs), enumerate(items)
    try:
        while True:
            for index, item in itertools.islice(todo, crew.room()):
                crew.begin(_Try(index, item))
            if not crew.running:
                return
            yield crew.event()
    finally:
        _stop(list(crew.running))


class _Crew:
    """Items that are worked on, `running` by the stream of what each tells."""

    def __init__(self, task: Task, needs: Callable[[Any], Bundles] | None) -> None:
        self.running: dict[Any, _Try] = {}
        self._task = task
        self._needs = needs
        self._remote = ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(_work)

    def room(self) -> int:
        """How many more items may be begun."""
        most = 1 if self._needs else max(1, _AHEAD * int(ray.cluster_resources().get("CPU", 0)))
        return max(0, most - len(self.running))

    def begin(self, one: _Try) -> None:
        """Begin an item. Raises `BadInput` if the cluster is too small for it."""
        group = _group(self._needs(one.item)) if self._needs else None
        place = PlacementGroupSchedulingStrategy(group, 0) if group else "DEFAULT"
        work = [ray.put((self._task, one.item))]  # in a list: not read before the sources are checked
        stream = self._remote.options(scheduling_strategy=place).remote(suite_digest(), work)
        self.running[stream] = replace(one, group=group)

    def event(self) -> Event:
        """What happens next; what was lost is begun again."""
        (stream,), _ = ray.wait(list(self.running), num_returns=1)
        event = _event(stream, self.running[stream])
        if isinstance(event, Progressed):
            return event
        one = self.running.pop(stream)
        if one.group:
            remove_placement_group(one.group)
        return self._again(one, event) if isinstance(event, Retried) else event

    def _again(self, one: _Try, event: Retried) -> Event:
        """Begin an item once more, if what is left of the cluster is large enough for it."""
        try:
            self.begin(replace(one, number=one.number + 1))
        except BadInput as error:
            return Lost(
                one.index, f"{event.reason.partition(';')[0]}, and what is left is too small: {error}"
            )
        return event


def _stop(streams: Sequence[Any]) -> None:
    """Interrupt tasks and give them a while to clean up; what hangs is killed when we disconnect."""
    for stream in streams:
        ray.cancel(stream)
    if streams:
        ends = [stream.completed() for stream in streams]
        ray.wait(ends, num_returns=len(ends), timeout=_PATIENCE)


def _group(bundles: Bundles) -> PlacementGroup:
    """Bundles on as few machines as possible. Raises `BadInput` if the cluster is too small."""
    _check_room(bundles, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    group: PlacementGroup = placement_group(bundles, strategy="PACK")
    return group


def _check_room(bundles: Bundles, machines: Sequence[Mapping[str, float]]) -> None:
    """Raise `BadInput` if the machines have too little of a kind in all, or none enough for a bundle."""
    for kind in sorted({kind for bundle in bundles for kind in bundle}):
        wanted = [bundle.get(kind, 0) for bundle in bundles]
        found = [machine.get(kind, 0) for machine in machines]
        for most, there, where in (
            (sum(wanted), sum(found), "at once, the cluster"),
            (max(wanted), max(found, default=0), "on one machine, the largest"),
        ):
            if most > there:
                raise BadInput(f"--ray: a cell needs {most:g} {kind}s {where} has {there:g}")


def _event(stream: Any, one: _Try) -> Event:
    """What a task tells next, or what became of it."""
    try:
        kind, content = ray.get(next(stream))
    except RayError as error:
        lost = _how(error)
        if one.number < TRIES:
            return Retried(one.index, f"{lost}; begun again ({one.number + 1} of {TRIES})")
        return Lost(one.index, f"{lost}, the last of {TRIES} times")
    return Progressed(one.index, *content) if kind == "progress" else Finished(one.index, content)


def _how(error: RayError) -> str:
    """What was lost. Raises `BadInput` if nothing was, but the task cannot be worked on there."""
    if isinstance(error, NodeDiedError):
        return "its machine was lost"
    if isinstance(error, RayTaskError):
        if isinstance(error.cause, MachineLost):
            return str(error.cause)
        machine = _MACHINE.search(str(error))
        problem = str(error.cause).strip().rpartition("\n")[2]
        mend = "" if isinstance(error.cause, OSError) else f"; {_INSTALL}"
        raise BadInput(f"--ray: {machine[1] if machine else 'a machine'}: {problem}{mend}")
    return f"its process was lost (out of memory, killed? Ray says {type(error).__name__})"


# -- on a machine of the cluster -------------------------------------------------------------------------


def _work(sources: str, given: list[Any]) -> Iterator[tuple[str, Any]]:
    """Work in a thread on one item by the task that is given with it, and tell of it meanwhile.

    If this is stopped, its folder is removed, though the task hangs; the process then ends with the driver.
    """
    _check_sources(sources)
    task, item = ray.get(given[0])
    outbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def work(place: Place) -> None:
        report = in_steps(lambda share, note: outbox.put(("progress", (share, note))))
        try:
            outbox.put(("result", task(item, place, report)))
        except BaseException as error:
            outbox.put(("error", error))

    with TemporaryDirectory(prefix="suite-", ignore_cleanup_errors=True) as folder:
        place = Place(Path(folder).resolve(), ray.util.get_current_placement_group())
        threading.Thread(target=work, args=(place,), daemon=True).start()
        kind = ""
        while kind != "result":
            with suppress(queue.Empty):
                kind, content = outbox.get(timeout=_LOOK)
                if kind == "error":
                    raise content
                yield kind, content


def _check_sources(sources: str) -> None:
    """Raise `RuntimeError` unless this machine has the very sources that the driver has."""
    if suite_digest() != sources:
        raise RuntimeError("has other sources of the suite than this machine")
