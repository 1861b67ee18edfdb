"""The replicas and their router: who is up, what is on its way to whom, and what the router is told of it.

Here the promises of `baselines.router` are kept, whatever happens to a connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Literal, TypeAlias

from baselines.router import End, Request, Router, Worker
from suite.backends.front.config import WorkerAddress
from suite.backends.front.journal import Journal
from suite.backends.front.tally import Tallies
from suite.backends.front.tokens import Tokens

State: TypeAlias = Literal["up", "down", "draining", "removed"]


class Replica:
    """A worker and how it fares; `heard` is when its last sign of life came, on the monotonic clock."""

    def __init__(self, address: WorkerAddress) -> None:
        self.name = address.name
        self.address = address
        self.worker = Worker(address.name, address.kv_tokens)
        self.flights: dict[Flight, None] = {}
        """What is on its way or being served there, in the order in which it was sent."""
        self.up = False
        self.draining = False
        self.losses = 0
        """How often it was lost, other than by being removed."""
        self.heard = time.monotonic()
        self.doubt = asyncio.Event()
        """Set where there is reason to see at once how it is."""

    @property
    def state(self) -> State:
        """How it is, in a word."""
        if self.draining:
            return "draining" if self.up else "removed"
        return "up" if self.up else "down"


class Flight:
    """A request's stay at a replica, from its dispatch to its end; `task` is what waits for the reply."""

    __slots__ = ("begun", "over", "replica", "request", "task", "tokens")

    def __init__(self, request: Request, replica: Replica, task: asyncio.Task[object]) -> None:
        self.request = request
        self.replica = replica
        self.task = task
        self.tokens = Tokens()
        self.begun = False
        self.over = False


class Cluster:
    """The replicas under a router."""

    def __init__(self, router: Router, tallies: Tallies, journal: Journal) -> None:
        self.router = router
        self.tallies = tallies
        self.replicas: dict[str, Replica] = {}
        self._journal = journal
        self._open: dict[Worker, Replica] = {}
        """Those that take new requests, in the order in which they joined."""

    # -- replicas --------------------------------------------------------------------------------------------

    def join(self, replica: Replica) -> None:
        """The replica is up: it takes requests from now on."""
        replica.up = True
        replica.heard = time.monotonic()
        self._open[replica.worker] = replica
        self.router.joined(replica.worker, replica.heard)
        self._journal.worker(replica.name, "joined")

    def drain(self, replica: Replica) -> None:
        """The replica takes no new requests; it is lost when the last on it has ended."""
        replica.draining = True
        replica.doubt.set()
        self._open.pop(replica.worker, None)
        self._leave_if_drained(replica)

    def lose(self, replica: Replica) -> None:
        """The replica is gone, with what is on it: what has not begun is given back, the rest cut short."""
        if not replica.up:
            return
        for flight in list(replica.flights):
            self._end(flight, "abort" if flight.begun else "returned")
            flight.task.cancel()
        self._leave(replica)

    def _leave_if_drained(self, replica: Replica) -> None:
        if replica.draining and replica.up and not replica.flights:
            self._leave(replica)

    def _leave(self, replica: Replica) -> None:
        replica.up = False
        replica.losses += not replica.draining
        self._open.pop(replica.worker, None)
        self.router.lost(replica.worker, time.monotonic())
        self._journal.worker(replica.name, "lost")
        replica.doubt.set()

    # -- requests --------------------------------------------------------------------------------------------

    def send(self, request: Request, tried: Collection[Replica] = ()) -> Flight | None:
        """Have the request routed to a replica that has not been `tried`; None if there is none.

        It belongs to the current task, which is cancelled when the replica is lost: then the flight is over.
        """
        workers = [worker for worker, replica in self._open.items() if replica not in tried]
        if not workers:
            return None
        now = time.monotonic()
        chosen = self.router.route(request, workers, now)
        took = time.monotonic() - now
        replica = self._open[chosen]
        task = asyncio.current_task()
        assert task is not None
        flight = Flight(request, replica, task)
        replica.flights[flight] = None
        self.tallies.sent(request, replica.name, len(tried), took)
        self._journal.sent(request, replica.name, len(tried), now)
        return flight

    def begin(self, flight: Flight) -> None:
        """The first byte of the reply has come; of one that is not streamed, all of it."""
        flight.begun = True
        self.router.started(flight.request, flight.replica.worker, time.monotonic())

    def end(self, flight: Flight, end: End) -> None:
        """The request has left the replica; nothing is done if it had before."""
        if not flight.over:
            self._end(flight, end)
            self._leave_if_drained(flight.replica)

    def _end(self, flight: Flight, end: End) -> None:
        flight.over = True
        request, replica, now = flight.request, flight.replica, time.monotonic()
        del replica.flights[flight]
        tokens = 0 if end == "returned" else flight.tokens.count()
        self.router.finished(request, replica.worker, end, tokens, now)
        self.tallies.ended(request, replica.name, end, tokens)
        self._journal.ended(request, replica.name, end, tokens, now)
