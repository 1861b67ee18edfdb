"""What a workload family is: a validated set of parameters that yields the requests of a trace."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from suite.collector import collector_paused
from suite.errors import BadInput
from suite.trace import MOST_SECONDS, Header, Request, Trace, checked
from suite.validation import at
from workloads.parts.arrivals import Arrivals, ClosedLoop, Phases, Poisson, Start
from workloads.parts.clients import Client, Clients, Counted, resolve
from workloads.parts.misbehaviour import Misbehaviour, misbehaving, wrongs
from workloads.parts.part import MOST_REQUESTS, Name, Part, Positive
from workloads.parts.streams import stream
from workloads.shape import Shape


class Family(Part, ABC):
    """The parameters of one workload; a family adds its own as fields.

    `family` is the module it came from, by name or by path. `shape` is what is done to the whole trace at
    the end (`workloads.shape`).
    """

    name: Name
    family: str
    shape: Shape | None = None

    @abstractmethod
    def requests(self, seed: int) -> Iterable[Request]:
        """All requests, in any order in which parents come before children."""

    def choices(self) -> dict[str, Any]:
        """What the header records: every parameter, and whatever else was decided rather than measured.

        What shaping does, it records itself.
        """
        return self.model_dump(mode="json", exclude={"name", "family", "shape"})

    def tokens(self, seed: int) -> Mapping[str, NDArray[np.int32]]:
        """The real token ids of the segments that have them (see `suite.trace.Trace`)."""
        return {}

    def misbehaving(self) -> tuple[str, ...]:
        """The clients whose latency is reported apart."""
        return ()

    def generate(self, seed: int) -> Trace:
        """The trace of this workload under `seed`: the same bytes everywhere. Raises `BadInput`."""
        if seed < 0:
            raise BadInput(f"seed: {seed} is negative; seeds are whole numbers from 0")
        with collector_paused():
            trace = self.unshaped(seed)
            if self.shape is None:
                return trace
            with at(f"workload {self.name!r}"):
                return checked(self.shape.applied(trace, seed))

    def unshaped(self, seed: int) -> Trace:
        """The trace before `shape`, under a seed from 0 on. Raises `BadInput`."""
        place = f"workload {self.name!r}"
        requests = in_order(self.requests(seed))
        if not requests:
            raise BadInput(f"{place}: it came out without requests; make it longer or larger")
        if requests[-1].arrival > MOST_SECONDS:
            raise BadInput(
                f"{place}: it came out {requests[-1].arrival:.3g} s long, a trace lasts at most "
                f"{MOST_SECONDS:.0e} s; make durations and think times shorter"
            )
        there = {request.client for request in requests}
        misbehaving = tuple(name for name in self.misbehaving() if name in there)
        header = Header(self.name, seed, Path(self.family).stem, self.choices(), misbehaving)
        trace = Trace(header, requests, self.tokens(seed))
        return checked(trace, lambda i: f"{place}, request {i + 1}" if i >= 0 else place)


def in_order(requests: Iterable[Request]) -> tuple[Request, ...]:
    """Sort by arrival, then by generation (a child stands after its parents), then by id."""
    generation: dict[str, int] = {}
    listed = list(requests)
    for request in listed:
        if request.after:
            generation[request.id] = 1 + max(generation.get(parent, 0) for parent in request.after)
    listed.sort(key=lambda request: (request.arrival, generation.get(request.id, 0), request.id))
    return tuple(listed)


class Synthetic(Family):
    """A family made up from parameters: every client begins sessions as its arrival process says.

    Sessions begin in [0, `duration`) seconds; later turns may come after it. `rate` is requests/s in total,
    over all clients that have no rate of their own, before misbehaviour adds to it; `load` multiplies every
    rate. A client's stream of draws hangs on the seed and its name alone.
    """

    duration: Positive
    rate: Positive | None = None
    load: Positive = 1.0
    clients: Clients = Field(default_factory=lambda: Counted(count=4))
    arrivals: Arrivals = Field(default_factory=Poisson)
    misbehaviour: Misbehaviour | None = None

    @abstractmethod
    def sessions(self, client: Client, seed: int) -> Iterator[Sequence[Request]]:
        """The client's sessions, one after the other, without end.

        A session is its requests, parents first; often one. `arrival` counts from the start of the session
        and may be left at 0 for a request that comes `after` others; the weight is filled in for it.
        """

    def requests_per_session(self, factor: float = 1.0) -> float:
        """How many requests a session holds on average, for a client whose programs are `factor` times as big
        (see `Client.program`).
        """
        return 1.0

    @cached_property
    def resolved(self) -> tuple[Client, ...]:
        """The clients with their own rates and processes."""
        behaving = resolve(self.clients, self.rate, self.arrivals)
        return misbehaving(behaving, wrongs(self.misbehaviour), self.duration)

    @model_validator(mode="after")
    def _clients_agree(self) -> Self:
        made = sum(map(self._expected, self.resolved))
        if made > MOST_REQUESTS:
            raise ValueError(
                f"it would make about {made:.2g} requests, more than {MOST_REQUESTS:,}; make the rate (or "
                f"the concurrency), load, duration, factor or programs smaller"
            )
        return self

    @model_validator(mode="after")
    def _phases_can_be_gone_through(self) -> Self:
        processes = (client.arrivals for client in self.resolved)
        phases = sum(one.count(self.duration) for one in processes if isinstance(one, Phases))
        if phases > MOST_REQUESTS:
            raise ValueError(
                f"arrivals: {self.duration:g} s make about {phases:.2g} phases, more than {MOST_REQUESTS:,}; "
                f"make the phases longer"
            )
        return self

    @model_validator(mode="after")
    def _programs_grow(self) -> Self:
        for how in wrongs(self.misbehaviour):
            if how.kind == "bigger_program" and self._growth(how.factor) == 1:
                raise ValueError(
                    f"misbehaviour: bigger_program by {how.factor:g} makes no session of this workload "
                    f"bigger; take a larger factor, or more_requests"
                )
        return self

    def _growth(self, factor: float) -> float:
        """How many times the requests a session holds if programs are `factor` times as big."""
        return self.requests_per_session(factor) / self.requests_per_session()

    def _rate(self, client: Client) -> float:
        """Requests/s that the client sends."""
        return client.rate * self.load * self._growth(client.program_factor)

    def _expected(self, client: Client) -> float:
        """About how many requests the client sends; one session at least."""
        process = client.arrivals
        users = process.users(client.share * self.load) if isinstance(process, ClosedLoop) else 1
        return max(
            self._rate(client) * self.duration, users * self.requests_per_session(client.program_factor)
        )

    def choices(self) -> dict[str, Any]:
        """The parameters, and the rate in requests/s that came out for each client."""
        rates = {client.name: round(self._rate(client), 9) for client in self.resolved}
        return super().choices() | {"client_rates": rates}

    def misbehaving(self) -> tuple[str, ...]:
        """The clients that `misbehaviour` names."""
        return tuple(client.name for client in self.resolved if client.misbehaves)

    def requests(self, seed: int) -> Iterator[Request]:
        """All clients' requests, client by client."""
        for client in self.resolved:
            yield from self._of(client, seed)

    def _of(self, client: Client, seed: int) -> Iterator[Request]:
        rate = client.rate * self.load / self.requests_per_session()
        rng = stream(seed, "arrivals", client.name)
        starts = client.arrivals.starts(rate, client.share * self.load, self.duration, rng)
        awaited = {start.after for start in starts}
        ends: dict[int | None, dict[str, float]] = {None: {}}
        for number, (start, session) in enumerate(zip(starts, self.sessions(client, seed), strict=False)):
            before = ends[start.after]
            sent = dict(before)
            for request in session:
                placed = _placed(request, client, start, tuple(before), sent)
                sent[placed.id] = placed.arrival
                yield placed
            if number in awaited:
                ends[number] = {id: sent[id] for id in _last_of(session)}


def _placed(
    request: Request, client: Client, start: Start, before: tuple[str, ...], sent: Mapping[str, float]
) -> Request:
    """The client's request at the earliest time at which it can be sent, when every reply takes no time."""
    after, think = (request.after, request.think) if request.after else (before, start.think)
    earliest = start.time + request.arrival
    for parent in after:
        earliest = max(earliest, sent[parent] + think)
    prompt = client.added + request.prompt
    return Request(
        request.id, client.name, round(earliest, 6), prompt, request.output_tokens, request.session, after,
        think, client.weight, request.priority,
    )  # fmt: skip


def _last_of(session: Sequence[Request]) -> tuple[str, ...]:
    awaited = {parent for request in session for parent in request.after}
    return tuple(request.id for request in session if request.id not in awaited)
