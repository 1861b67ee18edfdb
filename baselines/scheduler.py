"""The one scheduler interface: events in, one decision out.

A scheduler decides which waiting request is tried next and is told what happened. It never sees an engine,
reads no clock and imports only the standard library, so the same file runs in the simulator, inside vLLM and
inside SGLang.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping
from typing import ClassVar, Protocol, TypeAlias


class Request:
    """What a scheduler knows of a request. Compared and hashed by identity.

    `sequence` is its place in the order of arrival and never changes, not even by preemption. `arrival` is in
    seconds of the host's clock, `prompt_tokens` the full length of the prompt.
    """

    __slots__ = ("arrival", "client", "id", "priority", "prompt_tokens", "sequence", "weight")

    def __init__(
        self,
        id: str,
        client: str,
        sequence: int,
        arrival: float,
        prompt_tokens: int,
        weight: float = 1.0,
        priority: int = 0,
    ) -> None:
        self.id = id
        self.client = client
        self.sequence = sequence
        self.arrival = arrival
        self.prompt_tokens = prompt_tokens
        self.weight = weight
        self.priority = priority

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, client={self.client!r}, sequence={self.sequence})"


class Waiting(Protocol):
    """The host's view of the waiting requests. Prefix matches in it are always fresh.

    `by_arrival` and `of` give live views: ask again after a `yield`. `by_longest_prefix` gives the order at
    the time of the call, safe to walk across `yield`s.
    """

    def __len__(self) -> int:
        """Number of waiting requests."""

    def clients(self) -> Collection[str]:
        """Clients with at least one request waiting, in no order that hosts agree on."""

    def by_arrival(self) -> Iterable[Request]:
        """All waiting requests in order of `sequence`."""

    def of(self, client: str) -> Iterable[Request]:
        """The waiting requests of one client in order of `sequence`."""

    def matched(self, request: Request) -> int:
        """Tokens of what the request has to compute that the prefix cache holds now and would spare it.

        That is its prompt and, after a preemption, what it had generated.
        """

    def by_longest_prefix(self, clients: Collection[str] | None = None) -> Iterable[Request]:
        """The waiting requests (of `clients`, if given), most matched tokens first, ties by `sequence`."""


Candidates: TypeAlias = Generator[Request, bool, None]


class Scheduler:
    """Base of every policy: override `candidates` and the events the policy needs.

    Parameters are keyword arguments of the constructor, so `--scheduler mine:knob=3` and YAML both reach
    them. Times are seconds of the host's clock, virtual or real.

    A host promises: every event is delivered before the next decision; `admitted` once for each request that
    starts and `resumed` for each later start after a preemption; the generator is resumed only while there is
    a free slot and token budget, and closed when there is none, which is no refusal; a refusal ends admission
    for that step.
    """

    name: ClassVar[str] = ""
    work_conserving: ClassVar[bool] = True
    """True if the policy offers some request whenever one waits."""

    def arrived(self, request: Request, now: float) -> None:
        """The request has joined the waiting requests."""

    def admitted(self, request: Request, cached_tokens: int, now: float) -> None:
        """The request starts for the first time; `cached_tokens` of its prompt need no computing."""

    def resumed(self, request: Request, cached_tokens: int, now: float) -> None:
        """The request starts again after a preemption. What it recomputes is not charged to its client."""

    def generated(self, tokens: Mapping[Request, int], now: float) -> None:
        """Output tokens since the last such event, by request; may cover many steps without a decision."""

    def preempted(self, request: Request, now: float) -> None:
        """The request lost its place and waits again, with its old `sequence`."""

    def finished(
        self, request: Request, reason: str, output_tokens: int, uncomputed_tokens: int, now: float
    ) -> None:
        """The request has left, from the batch or (only by an abort) from the waiting requests.

        `reason` is "stop" when it was served, "abort" when it was withdrawn. `uncomputed_tokens` are extend
        tokens that were charged at admission and never computed: 0 unless it was aborted in its prefill.
        """

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        """Yield requests in the order to try them; each `yield` returns whether that one was admitted.

        `admitted` has been called when the generator resumes after True, and `waiting` no longer holds the
        request. After False the generator may settle its state, but nothing more is admitted this step.
        """
        raise NotImplementedError
        yield


def must_be_positive(name: str, value: float) -> float:
    """Return `value`, or raise `ValueError` naming the parameter if it is not a finite number above 0."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a number above 0, got {value}")
    return value
