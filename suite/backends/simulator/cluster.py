"""Replicas of an engine on one virtual clock, behind a router: what happens when, and in which order.

At one time, in this order: steps end; reports of evictions reach the router; replicas come back; replicas
are lost; requests reach the router; requests reach their replicas; replicas without a step under way decide
on their next one. Things of one kind happen in the order in which they were brought about, requests are sent
in the order of the trace.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf, isnan
from typing import Any, TypeAlias

from baselines.router import End
from suite.backends.simulator.dispatch import Dispatch
from suite.backends.simulator.engine import Engine
from suite.backends.simulator.live import Arrivals, Live
from suite.backends.simulator.pool import Pool
from suite.backends.simulator.tree import Content
from suite.collector import collector_paused

STEP_END, REPORT, RETURN, LOSS, ARRIVAL, DELIVERY, DECISION = range(7)
"""What happens, in the order in which it does at one time."""

_Event: TypeAlias = tuple[float, int, int, Callable[..., None], tuple[Any, ...]]
"""Time, kind, number, and what is to be done."""


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds that news takes: a request from the router to its replica, a report of an eviction back."""

    dispatch: float = 0.0
    report: float = 0.0


NO_DELAYS = Delays()


@dataclass(frozen=True, slots=True)
class Loss:
    """The replica of number `replica` is lost at the time `at` and comes back, empty, at `back`."""

    replica: int
    at: float
    back: float = inf


@dataclass(eq=False)
class Replica:
    """A place for an engine, `build` of which gives a fresh one: at the start, and when it comes back.

    `engine` is None while it is lost; `engines` are all it has had. `held` are the requests that were routed
    to it and have not left, in the order of routing.
    """

    name: str
    build: Callable[[], Engine]
    engine: Engine | None = None
    engines: list[Engine] = field(default_factory=list)
    held: dict[Live, None] = field(default_factory=dict)
    deciding: bool = False
    """Whether it decides before time goes on."""


class Cluster:
    """Replicas that serve requests; without a `dispatch` all go to the first one. Call `run` once.

    Afterwards the requests carry their times and counts, the replicas' engines their journals.
    """

    def __init__(
        self,
        requests: list[Live],
        replicas: Sequence[Replica],
        dispatch: Dispatch | None = None,
        delays: Delays = NO_DELAYS,
        losses: Iterable[Loss] = (),
    ) -> None:
        self.requests = requests
        self.replicas = {replica.name: replica for replica in replicas}
        self.now = 0.0
        self.dispatch = dispatch
        self._delays = delays
        self._arrivals = Arrivals(requests)
        self._events: list[_Event] = []
        self._numbers = count()
        self._progress: Callable[[float], None] = lambda share: None
        self._up: list[Replica] = []
        self._stranded: list[Live] = []
        """Requests that wait at the router for a replica to come back."""
        for replica in replicas:
            self._come_up(replica)
        for loss in losses:
            self._at(loss.at, LOSS, self._lose, replicas[loss.replica])
            if loss.back < inf:
                self._at(loss.back, RETURN, self._come_up, replicas[loss.replica])

    def run(self, progress: Callable[[float], None]) -> None:
        """Serve all that can be served. `progress` is told the share done, now and then."""
        self._progress = progress
        arrivals, events = self._arrivals, self._events
        with collector_paused():
            while arrivals.open:
                sent = arrivals.next_time()
                if events and events[0] < (sent, ARRIVAL):
                    self.now, _, _, happen, what = heapq.heappop(events)
                    happen(*what)
                elif sent < inf:
                    self.now = sent
                    self._route(arrivals.send())
                else:
                    self._starve()
                    assert not arrivals.open, "requests without an end"
        assert all(pool.available == pool.capacity for pool in self._pools()), "blocks leaked"

    def _pools(self) -> Iterator[Pool]:
        return (replica.engine.pool for replica in self._up if replica.engine)

    # -- time ----------------------------------------------------------------------------------------------

    def _at(self, time: float, kind: int, happen: Callable[..., None], *what: Any) -> None:
        heapq.heappush(self._events, (time, kind, next(self._numbers), happen, what))

    def _wake(self, replica: Replica) -> None:
        """The replica decides when all else that is due now has happened."""
        if self._quiet_until(self.now):
            self._decide(replica)
        elif not replica.deciding:
            replica.deciding = True
            self._at(self.now, DECISION, self._decide, replica)

    def _decide(self, replica: Replica) -> None:
        """The replica decides on its next step; and on the one after it, if nothing else happens before."""
        replica.deciding = False
        while (engine := replica.engine) and engine.ends == inf:
            engine.begin(self.now)
            self._notice(replica, engine)
            if engine.ends == inf or not self._quiet_until(engine.ends):
                self._await(replica, engine)
                return
            self.now = engine.ends
            engine.end()
            self._notice(replica, engine)
            if not self._quiet_until(self.now):
                self._wake(replica)
                return

    def _quiet_until(self, time: float) -> bool:
        """Whether nothing is known that happens up to that time."""
        return not (self._events and self._events[0][0] <= time) and self._arrivals.next_time() > time

    def _await(self, replica: Replica, engine: Engine) -> None:
        if engine.ends < inf:
            self._at(engine.ends, STEP_END, self._end_step, replica, engine)

    def _end_step(self, replica: Replica, engine: Engine) -> None:
        if engine.ends == self.now:  # neither cut short nor lost
            engine.end()
            self._notice(replica, engine)
            self._wake(replica)

    # -- requests ------------------------------------------------------------------------------------------

    def _route(self, live: Live) -> None:
        if not self._up:
            self._stranded.append(live)
            return
        replica = self.replicas[self.dispatch.route(live, self.now)] if self.dispatch else self._up[0]
        replica.held[live] = None
        self._at(self.now + self._delays.dispatch, DELIVERY, self._deliver, replica, replica.engine, live)

    def _deliver(self, replica: Replica, engine: Engine, live: Live) -> None:
        if replica.engine is not engine:
            return  # lost, and the request given back
        live.worker = replica.name
        ends = engine.ends
        engine.deliver(live, self.now)
        if ends == inf:
            self._wake(replica)
        elif ends != engine.ends:
            self._await(replica, engine)

    def _notice(self, replica: Replica, engine: Engine) -> None:
        """Pass on what an engine has to tell."""
        if engine.started:
            if self.dispatch:
                for live in engine.started:
                    self.dispatch.started(live, self.now)
            engine.started.clear()
        if engine.left:
            for live in engine.left:
                self._leave(replica, live, "stop" if live.status == "finished" else "abort")
            engine.left.clear()
        if engine.pool.reports:
            time = self.now + self._delays.report
            self._at(time, REPORT, self._report, replica, engine, engine.pool.reports)
            engine.pool.reports = []

    def _leave(self, replica: Replica, live: Live, end: End) -> None:
        """The request leaves its replica, for good unless it is given back."""
        del replica.held[live]
        if self.dispatch:
            self.dispatch.finished(live, end, self.now)
        if end == "stop":
            self._arrivals.served(live)
        elif end == "abort":
            self._arrivals.lost(live)
        if not self._arrivals.open % 64:
            self._progress(1 - self._arrivals.open / len(self.requests))

    def _report(self, replica: Replica, engine: Engine, evicted: list[tuple[Content, int]]) -> None:
        if self.dispatch and replica.engine is engine:
            self.dispatch.evicted(replica.name, evicted, self.now)

    def _starve(self) -> None:
        """Nothing will happen any more: who still waits is never served."""
        for replica in self._up:
            for live in replica.engine.starve() if replica.engine else ():
                self._leave(replica, live, "abort")
        for live in self._stranded:
            live.status = "starved"
            self._arrivals.lost(live)

    # -- replicas ------------------------------------------------------------------------------------------

    def _come_up(self, replica: Replica) -> None:
        """The replica is there (again), with nothing in its cache."""
        replica.engine = replica.build()
        replica.engines.append(replica.engine)
        self._up.append(replica)
        if self.dispatch:
            self.dispatch.joined(replica.name, self.now)
            if self.dispatch.listens:
                replica.engine.pool.reports = []
        stranded, self._stranded = self._stranded, []
        for live in stranded:
            self._route(live)

    def _lose(self, replica: Replica) -> None:
        """The replica dies: requests it had admitted fail, the others are given back and routed again."""
        assert replica.engine
        replica.engine.crash(self.now)
        replica.engine = None
        self._up.remove(replica)
        failed = [live for live in replica.held if not isnan(live.admitted)]
        given_back = [live for live in replica.held if isnan(live.admitted)]
        for live in failed:
            live.status, live.error = "failed", f"{replica.name} was lost"
            self._leave(replica, live, "abort")
        for live in given_back:
            live.give_back()
            self._leave(replica, live, "returned")
        if self.dispatch:
            self.dispatch.lost(replica.name, self.now)
        for live in given_back:
            self._route(live)


def alone(requests: list[Live], engine: Engine) -> Cluster:
    """A cluster of this engine and no other, without a router."""
    return Cluster(requests, [Replica("replica-0", lambda: engine)])
