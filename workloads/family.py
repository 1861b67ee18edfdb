"""What a workload family is: a validated set of parameters that yields the requests of a trace."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from suite.errors import BadInput
from suite.trace import MOST_SECONDS, Header, Request, Trace, checked
from workloads.arrivals import Arrivals, ClosedLoop, Poisson, Start
from workloads.clients import Client, Clients, Counted, Misbehaviour, resolve
from workloads.part import MOST_REQUESTS, Name, Part, Positive
from workloads.streams import stream


class Family(Part, ABC):
    """The parameters of one workload; a family adds its own as fields.

    `family` is the module it came from, by name or by path.
    """

    name: Name
    family: str

    @abstractmethod
    def requests(self, seed: int) -> Iterable[Request]:
        """All requests, in any order in which parents come before children."""

    def choices(self) -> dict[str, Any]:
        """What the header records: every parameter, and whatever else was decided rather than measured."""
        return self.model_dump(mode="json", exclude={"name", "family"})

    def misbehaving(self) -> tuple[str, ...]:
        """The clients whose latency is reported apart."""
        return ()

    def generate(self, seed: int) -> Trace:
        """The trace of this workload under `seed`: the same bytes everywhere. Raises `BadInput`."""
        if seed < 0:
            raise BadInput(f"seed: {seed} is negative; seeds are whole numbers from 0")
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
        return checked(Trace(header, requests), lambda i: f"{place}, request {i + 1}")


def in_order(requests: Iterable[Request]) -> tuple[Request, ...]:
    """Sort by arrival, then by generation (a child stands after its parents), then by id."""
    generation: dict[str, int] = {}
    listed = list(requests)
    for request in listed:
        generation[request.id] = 1 + max((generation.get(parent, 0) for parent in request.after), default=0)
    return tuple(sorted(listed, key=lambda request: (request.arrival, generation[request.id], request.id)))


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
        return resolve(self.clients, self.rate, self.arrivals, self.misbehaviour)

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
    def _programs_grow(self) -> Self:
        how = self.misbehaviour
        if how is not None and how.kind == "bigger_program" and self._growth(how.factor) == 1:
            raise ValueError(
                f"misbehaviour: bigger_program by {how.factor:g} makes no session of this workload bigger; "
                f"take a larger factor, or more_requests"
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
        """The one client that `misbehaviour` names, if any."""
        return tuple(client.name for client in self.resolved if client.misbehaves)

    def requests(self, seed: int) -> Iterator[Request]:
        """All clients' requests, client by client."""
        for client in self.resolved:
            yield from self._of(client, seed)

    def _of(self, client: Client, seed: int) -> Iterator[Request]:
        rate = client.rate * self.load / self.requests_per_session()
        rng = stream(seed, "arrivals", client.name)
        starts = client.arrivals.starts(rate, client.share * self.load, self.duration, rng)
        sent: dict[str, float] = {}
        ends: list[tuple[str, ...]] = []
        for start, session in zip(starts, self.sessions(client, seed), strict=False):
            before = () if start.after is None else ends[start.after]
            for request in session:
                placed = _placed(request, start, before, sent)
                sent[request.id] = placed.arrival
                yield replace(placed, prompt=(*client.added, *placed.prompt), weight=client.weight)
            ends.append(_last_of(session))


def _placed(request: Request, start: Start, before: tuple[str, ...], sent: Mapping[str, float]) -> Request:
    """The request at the earliest time at which it can be sent, when every reply takes no time."""
    if not request.after:
        request = replace(request, after=before, think=start.think)
    earliest = [start.time + request.arrival, *(sent[parent] + request.think for parent in request.after)]
    return replace(request, arrival=round(max(earliest), 6))


def _last_of(session: Sequence[Request]) -> tuple[str, ...]:
    awaited = {parent for request in session for parent in request.after}
    return tuple(request.id for request in session if request.id not in awaited)
