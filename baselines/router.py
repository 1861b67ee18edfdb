"""The one router interface: the scheduler's idea one level up, over the replicas of an engine.

A router decides which worker serves a request, once, when it arrives, and is told what became of it. It never
sees an engine, reads no clock and imports only the standard library, so the same file runs in the simulator
and in the HTTP front before real engines.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar, Literal, TypeAlias


class Request:
    """What a router knows of a request. Compared and hashed by identity.

    `blocks` stand for the full blocks of `block_tokens` tokens of its prompt, in order: where the keys of two
    prompts agree from the start on, so do their tokens. `arrival` is in seconds of the host's clock.
    """

    __slots__ = ("arrival", "block_tokens", "blocks", "client", "id", "prompt_tokens", "weight")

    def __init__(
        self,
        id: str,
        client: str,
        arrival: float,
        prompt_tokens: int,
        blocks: Sequence[Hashable] = (),
        block_tokens: int = 16,
        weight: float = 1.0,
    ) -> None:
        self.id = id
        self.client = client
        self.arrival = arrival
        self.prompt_tokens = prompt_tokens
        self.blocks = tuple(blocks)
        self.block_tokens = block_tokens
        self.weight = weight

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, client={self.client!r})"


class Worker:
    """A replica. Compared and hashed by identity.

    `kv_tokens` is the size of its KV pool in tokens, None where the host does not know it.
    """

    __slots__ = ("kv_tokens", "name")

    def __init__(self, name: str, kv_tokens: int | None = None) -> None:
        self.name = name
        self.kv_tokens = kv_tokens

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


End: TypeAlias = Literal["stop", "abort", "returned"]
"""How a request left a worker: served; withdrawn or cut short after it had been started; given back before it
was started, to be routed again, so that whatever it was charged is to be undone."""


class Router:
    """Base of every router: override `route` and the events the router needs.

    Parameters are keyword arguments of the constructor, as for schedulers. Times are seconds of the host's
    clock, virtual or real.

    A host promises: every event is delivered before the next decision; a worker has `joined` before it is
    offered and is `lost` at most once for each time it joined; every request that was routed to a worker
    leaves it by exactly one `finished`, before that worker is `lost`. `evicted` comes late or, where the
    engines do not tell, never.
    """

    name: ClassVar[str] = ""

    def joined(self, worker: Worker, now: float) -> None:
        """The worker can be routed to from now on. Its cache is empty, also when it was lost before."""

    def lost(self, worker: Worker, now: float) -> None:
        """The worker is gone: removed, dead or not answering. What it had cached is gone too."""

    def route(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        """Choose one of `workers`, at least one, in the order in which they joined; the host sends it
        there."""
        raise NotImplementedError

    def started(self, request: Request, worker: Worker, now: float) -> None:
        """The first token of the request has come."""

    def finished(self, request: Request, worker: Worker, end: End, output_tokens: int, now: float) -> None:
        """The request has left the worker, having generated so many tokens."""

    def evicted(self, worker: Worker, blocks: Sequence[Hashable], kept: int, now: float) -> None:
        """Of the prefix `blocks` the worker's cache holds only the first `kept` blocks any more."""
