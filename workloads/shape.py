"""Shaping: what is done to a whole trace before it is replayed, every step of it seeded and recorded.

    shape:
      window: {start: 0, end: 600}            # seconds of the source that are kept
      thin: {clients: 0.5, sessions: 0.25}    # shares that are kept
      assign: {clients: 8, skew: 1.0}         # clients for a trace that names none
      replicate: {copies: 3, prefixes: own}   # more clients of the same kind
      stretch: 4                              # 4 times slower
      rescale: {load: 0.9}                    # or: as fast as the load says

The steps are taken in this order, each only if it is there. Each leaves a record in the header, under
choices["shape"]: its parameters, its seed if it draws, what it found, and requests, clients and seconds to
the last arrival before and after it. Times are kept to the microsecond. A segment that is renamed loses its
real tokens; the others keep theirs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import fsum
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from suite.errors import BadInput
from suite.trace import MOST_SECONDS, REPLY, Header, Request, Segment, Trace
from suite.validation import at
from workloads.parts.clients import numbered, zipf
from workloads.parts.part import MOST_REQUESTS, Clientele, NonNegative, Part, Positive
from workloads.parts.streams import stream
from workloads.programs import earliest, programs

CUT = "cut:"
"""What the reply to a request that was cut begins with, once it is an ordinary segment."""

_Share = Annotated[float, Field(gt=0, le=1, strict=True)]


class Step(Part, ABC):
    """One thing that is done to a trace."""

    draws: ClassVar[bool] = False
    """Whether the seed makes a difference to it."""

    @abstractmethod
    def applied(self, trace: Trace, seed: int) -> tuple[Trace, dict[str, Any]]:
        """The trace after the step, and what was found out on the way. Raises `BadInput`."""


class Window(Step):
    """The requests whose arrival lies in [`start`, `end`) seconds; `end` None is the end of the trace.

    Arrivals begin anew at 0. That of a request which comes after others is the earliest possible one, as if
    replies took no time. The reply to a request that was cut becomes an ordinary segment `cut:ID` of as many
    tokens, so that prompts share what they shared; nothing comes `after` it any more.
    """

    start: NonNegative = 0.0
    end: Positive | None = None

    @model_validator(mode="after")
    def _some_time(self) -> Self:
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end ({self.end:g} s) must be after start ({self.start:g} s)")
        return self

    def applied(self, trace: Trace, seed: int) -> tuple[Trace, dict[str, Any]]:
        times = earliest(trace.requests)
        inside = [self.start <= time and (self.end is None or time < self.end) for time in times]
        if not any(inside):
            raise BadInput(
                f"no request arrives in it; they come from {min(times):g} to {max(times):g} s of the trace"
            )
        moved = (
            replace(request, arrival=round(time - self.start, 6))
            for request, time in zip(trace.requests, times, strict=True)
        )
        return _only(replace(trace, requests=tuple(moved)), inside), {}


class Thin(Step):
    """A share of the clients, then a share of the sessions of those; at least one of each, whole.

    A session here is a program: requests of one session, or of which one comes after another. A request of
    none is one of its own. What a smaller share keeps, a larger one keeps too. What a client that was taken
    out leaves of a program it had with others is cut as by `Window`.
    """

    draws = True

    clients: _Share | None = None
    sessions: _Share | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.clients is None and self.sessions is None:
            raise ValueError("give `clients` or `sessions`, the share that is kept")
        return self

    def applied(self, trace: Trace, seed: int) -> tuple[Trace, dict[str, Any]]:
        if self.clients is not None:
            rng = stream(seed, "shape", "thin", "clients")
            chosen = _sample(len(trace.clients), self.clients, "clients", rng)
            kept = dict(zip(trace.clients, chosen.tolist(), strict=True))
            trace = _only(trace, [kept[request.client] for request in trace.requests])
        if self.sessions is not None:
            owners = programs(trace.requests)
            rng = stream(seed, "shape", "thin", "sessions")
            trace = _only(trace, _sample(owners.max() + 1, self.sessions, "sessions", rng)[owners])
        return trace, {}


class Assign(Step):
    """New clients, `client-0` and so on, in the place of all that the trace names.

    `by` says what is given to a client: whole programs (`session`, as in `Thin`), in order of their first
    request, or each request alone. It is drawn by `skew`, a Zipf exponent over the clients (0: all alike) or
    their shares. A client may come out with nothing. All have weight 1, and none is said to misbehave.
    """

    draws = True

    clients: Clientele
    skew: NonNegative | tuple[Positive, ...] = 0.0
    by: Literal["session", "request"] = "session"

    @model_validator(mode="after")
    def _one_share_each(self) -> Self:
        if isinstance(self.skew, tuple) and len(self.skew) != self.clients:
            raise ValueError(f"skew has {len(self.skew)} shares for {self.clients} clients; give one to each")
        return self

    def applied(self, trace: Trace, seed: int) -> tuple[Trace, dict[str, Any]]:
        units = programs(trace.requests) if self.by == "session" else np.arange(len(trace.requests))
        ranks = stream(seed, "shape", "assign").choice(self.clients, size=units.max() + 1, p=self._chances())
        names = numbered(self.clients)
        requests = tuple(
            replace(request, client=names[rank], weight=1.0)
            for request, rank in zip(trace.requests, ranks[units].tolist(), strict=True)
        )
        return replace(trace, header=replace(trace.header, misbehaving=()), requests=requests), {}

    def _chances(self) -> NDArray[np.float64]:
        if isinstance(self.skew, tuple):
            return np.asarray(self.skew) / fsum(self.skew)
        return zipf(self.clients, self.skew)


class Replicate(Step):
    """`copies` clients where there was one: client X, and its likes X~1, X~2, ...

    A copy has requests, sessions and programs of its own, and misbehaves if X does. Its `prefixes` are its
    `own`, every segment renamed, or `shared` with X; replies are its own in any case. Each program of a copy
    begins up to `offset` seconds later, drawn evenly, so that copies are not in step.
    """

    draws = True

    copies: Annotated[int, Field(ge=2, le=10_000, strict=True)]
    prefixes: Literal["own", "shared"] = "own"
    offset: NonNegative = 0.0

    def applied(self, trace: Trace, seed: int) -> tuple[Trace, dict[str, Any]]:
        if len(trace.requests) * self.copies > MOST_REQUESTS:
            raise BadInput(
                f"{self.copies} copies of {len(trace.requests)} requests are more than {MOST_REQUESTS:,} in "
                f"all; take fewer, or thin the trace"
            )
        owners = programs(trace.requests)
        requests = list(trace.requests)
        bad = list(trace.header.misbehaving)
        for number in range(1, self.copies):
            copy = _Copy(f"~{number}", self.prefixes == "own")
            self._check_names(trace, copy)
            late = stream(seed, "shape", "replicate", str(number)).random(owners.max() + 1) * self.offset
            requests += map(copy.request, trace.requests, late[owners].tolist())
            bad += map(copy.named, trace.header.misbehaving)
        header = replace(trace.header, misbehaving=tuple(bad))
        return replace(trace, header=header, requests=_in_time(requests)), {}

    def _check_names(self, trace: Trace, copy: _Copy) -> None:
        taken = set(trace.clients).intersection(map(copy.named, trace.clients))
        if taken:
            raise BadInput(
                f"there is a client {min(taken)!r} already; a trace is replicated once, with as many copies "
                f"as it takes"
            )


class Stretch(Step):
    """Every arrival and think time, multiplied by `factor`: 4 is 4 times slower. A bare number is one."""

    factor: Positive

    def applied(self, trace: Trace, seed: int) -> tuple[Trace, dict[str, Any]]:
        return _stretched(trace, self.factor), {}


class Rescale(Step):
    """Stretched so that the trace asks for `load` times what the simulator serves of it at most.

    Both are measured as in `suite.capacity`, on a simulator with the settings `backend` ({}: its defaults).
    """

    load: Positive
    backend: dict[str, Any] = Field(default_factory=dict)

    def applied(self, trace: Trace, seed: int) -> tuple[Trace, dict[str, Any]]:
        from suite import capacity

        asked = capacity.offered(trace)
        if not np.isfinite(asked):
            raise BadInput("all requests arrive at time 0, and no stretching makes that slower")
        with at("backend"):
            most = capacity.capacity(trace, self.backend)
        factor = float(f"{asked / (self.load * most.rate):.9g}")
        found = {"capacity": most._asdict(), "offered": asked, "factor": factor}
        return _stretched(trace, factor), found


def _bare_factor(data: Any) -> Any:
    return {"factor": data} if isinstance(data, int | float) else data


class Shape(Part):
    """What is done to a trace, in the order of these fields."""

    window: Window | None = None
    thin: Thin | None = None
    assign: Assign | None = None
    replicate: Replicate | None = None
    stretch: Annotated[Stretch, BeforeValidator(_bare_factor)] | None = None
    rescale: Rescale | None = None

    @model_validator(mode="after")
    def _one_speed(self) -> Self:
        if self.stretch and self.rescale:
            raise ValueError("stretch and rescale both say how fast it is; drop one")
        return self

    @property
    def draws(self) -> bool:
        """Whether the seed makes a difference."""
        return any(step.draws for _, step in self._steps())

    def applied(self, trace: Trace, seed: int) -> Trace:
        """The trace after all steps; without any it is the same. Raises `BadInput` naming the step."""
        for name, step in self._steps():
            with at(f"shape.{name}"):
                after, found = step.applied(trace, seed)
                _check_times(after.requests)
            record: dict[str, Any] = {"step": name, "parameters": step.model_dump(mode="json")}
            record |= {"seed": seed} if step.draws else {}
            record |= {"found": found} if found else {}
            record |= {"before": _measure(trace), "after": _measure(after)}
            trace = replace(after, header=_with_record(after.header, record))
        return replace(trace, tokens=_still_in(trace))

    def _steps(self) -> Iterator[tuple[str, Step]]:
        steps = ((name, getattr(self, name)) for name in type(self).model_fields)
        return ((name, step) for name, step in steps if step is not None)


# -- records -----------------------------------------------------------------------------------------------


def _measure(trace: Trace) -> dict[str, Any]:
    span = max(request.arrival for request in trace.requests)
    return {"requests": len(trace.requests), "clients": len(trace.clients), "span": span}


def _with_record(header: Header, record: Mapping[str, Any]) -> Header:
    earlier = header.choices.get("shape")
    records = [*(earlier if isinstance(earlier, list) else ()), record]
    return replace(header, choices={**header.choices, "shape": records})


def _check_times(requests: Iterable[Request]) -> None:
    longest = max(max(request.arrival, request.think) for request in requests)
    if longest > MOST_SECONDS:
        raise BadInput(
            f"it came out {longest:.3g} s long, a trace lasts at most {MOST_SECONDS:.0e} s; stretch it less"
        )


def _still_in(trace: Trace) -> dict[str, NDArray[np.int32]]:
    """The real tokens of segments that still stand in a prompt."""
    used = {id for request in trace.requests for id, _ in request.prompt} if trace.tokens else set()
    return {id: tokens for id, tokens in trace.tokens.items() if id in used}


# -- what steps are made of --------------------------------------------------------------------------------


def _sample(count: int, share: float, what: str, rng: Generator) -> NDArray[np.bool_]:
    """Which of `count` things are kept: those that drew the lowest numbers."""
    kept = round(share * count)
    if not kept:
        raise BadInput(f"{what}: {share:g} of {count} keeps none; keep a larger share")
    chosen = np.zeros(count, dtype=np.bool_)
    chosen[np.argsort(rng.random(count), kind="stable")[:kept]] = True
    return chosen


def _only(trace: Trace, keep: Iterable[Any]) -> Trace:
    """The trace without the other requests. What came after one of them comes after what that came after."""
    kept = list(keep)
    there = {request.id for request, stays in zip(trace.requests, kept, strict=True) if stays}
    heirs: dict[str, tuple[str, ...]] = {}
    requests = []
    for request, stays in zip(trace.requests, kept, strict=True):
        after = tuple(dict.fromkeys(id for parent in request.after for id in heirs.get(parent, (parent,))))
        if stays:
            requests.append(_parted(request, after, there))
        else:
            heirs[request.id] = after
    clients = {request.client for request in requests}
    bad = tuple(name for name in trace.header.misbehaving if name in clients)
    return replace(trace, header=replace(trace.header, misbehaving=bad), requests=tuple(requests))


def _parted(request: Request, after: tuple[str, ...], there: set[str]) -> Request:
    """The request after `after` only; replies to what is not `there` are ordinary segments."""
    if not request.after:
        return request
    prompt = tuple(
        Segment(CUT + id.removeprefix(REPLY), tokens)
        if id.startswith(REPLY) and id.removeprefix(REPLY) not in there
        else Segment(id, tokens)
        for id, tokens in request.prompt
    )
    return replace(request, after=after, prompt=prompt, think=request.think if after else 0.0)


def _in_time(requests: Sequence[Request]) -> tuple[Request, ...]:
    """In order of the earliest times at which they can be sent; parents stand before children as they did."""
    order = np.argsort(earliest(requests), kind="stable")
    return tuple(requests[place] for place in order)


def _stretched(trace: Trace, factor: float) -> Trace:
    requests = tuple(
        replace(request, arrival=round(request.arrival * factor, 6), think=round(request.think * factor, 6))
        for request in trace.requests
    )
    return replace(trace, requests=requests)


class _Copy:
    """How a copy is named: everything with `mark` behind it, but for prefixes that it shares."""

    def __init__(self, mark: str, own_prefixes: bool) -> None:
        self._mark = mark
        self._own_prefixes = own_prefixes

    def named(self, name: str) -> str:
        """The copy of a name."""
        return name + self._mark

    def request(self, request: Request, late: float) -> Request:
        """The copy of a request, `late` seconds later."""
        return replace(
            request,
            id=self.named(request.id),
            client=self.named(request.client),
            arrival=round(request.arrival + late, 6),
            prompt=tuple(map(self._segment, request.prompt)),
            session=None if request.session is None else self.named(request.session),
            after=tuple(map(self.named, request.after)),
        )

    def _segment(self, segment: Segment) -> Segment:
        own = self._own_prefixes or segment.id.startswith(REPLY)
        return Segment(self.named(segment.id), segment.tokens) if own else segment
