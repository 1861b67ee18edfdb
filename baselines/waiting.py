"""The waiting requests as a host keeps them for its policy: every order ready, none recomputed.

Shared by all hosts. A host adds and removes requests and says when a prefix match has changed; how it notices
that is its own business (`PrefixMatches`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Protocol, TypeAlias

from baselines.scheduler import Request


class PrefixMatches(Protocol):
    """Where a `WaitingQueue` learns how much of a prompt the prefix cache holds."""

    def follow(self, request: Request) -> int:
        """Tokens matched now; from now on every change is told to `WaitingQueue.rematched`."""

    def unfollow(self, request: Request) -> None:
        """Stop telling changes of this request's match."""


_ByPrefix: TypeAlias = list[tuple[int, int, Request]]


class _Queue:
    """One client's waiting requests, in both orders."""

    __slots__ = ("_by_prefix", "_lent", "by_arrival")

    def __init__(self) -> None:
        self.by_arrival: list[tuple[int, Request]] = []
        self._by_prefix: _ByPrefix = []
        self._lent = False

    def lend(self) -> _ByPrefix:
        """The longest-prefix order, to be read: it stays as it is now for whoever has it."""
        self._lent = True
        return self._by_prefix

    def mutable(self) -> _ByPrefix:
        """The longest-prefix order, to be changed: a copy if it is lent."""
        if self._lent:
            self._by_prefix = self._by_prefix.copy()
            self._lent = False
        return self._by_prefix


def _merged(orders: list[_ByPrefix]) -> Iterator[tuple[int, int, Request]]:
    """As `heapq.merge`, but cheap for those who take only the first: under load most steps refuse it."""
    if orders:
        yield min(order[0] for order in orders)
        yield from islice(merge(*orders), 1, None)


class WaitingQueue:
    """Implements `baselines.scheduler.Waiting`.

    Matches are followed only once a policy has asked for one, so FCFS and VTC do not pay for them. A change
    of one match costs a bisection in its client's list; a decision costs what the policy looks at.
    """

    def __init__(self, matches: PrefixMatches) -> None:
        self._matches = matches
        self._matched: dict[Request, int] | None = None
        self._by_arrival: list[tuple[int, Request]] = []
        self._queues: dict[str, _Queue] = {}

    # -- for the host --------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """The request begins to wait (again)."""
        queue = self._queues.get(request.client)
        if queue is None:
            queue = self._queues[request.client] = _Queue()
        entry = (request.sequence, request)
        insort(self._by_arrival, entry)
        insort(queue.by_arrival, entry)
        if self._matched is not None:
            self._follow(request, self._matched)

    def remove(self, request: Request) -> None:
        """The request waits no longer."""
        queue = self._queues[request.client]
        key = (request.sequence,)
        del self._by_arrival[bisect_left(self._by_arrival, key)]
        del queue.by_arrival[bisect_left(queue.by_arrival, key)]
        if self._matched is not None:
            self._matches.unfollow(request)
            by_prefix = queue.mutable()
            del by_prefix[bisect_left(by_prefix, (-self._matched.pop(request), request.sequence))]
        if not queue.by_arrival:
            del self._queues[request.client]

    def rematched(self, request: Request, tokens: int) -> None:
        """The prefix match of a followed request has become `tokens` long."""
        assert self._matched is not None
        before = self._matched[request]
        if tokens == before:
            return
        by_prefix = self._queues[request.client].mutable()
        del by_prefix[bisect_left(by_prefix, (-before, request.sequence))]
        insort(by_prefix, (-tokens, request.sequence, request))
        self._matched[request] = tokens

    # -- for the policy ------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._by_arrival)

    def clients(self) -> Collection[str]:
        """Clients with at least one request waiting."""
        return self._queues.keys()

    def by_arrival(self) -> Iterator[Request]:
        """All waiting requests in order of `sequence`."""
        return map(itemgetter(1), self._by_arrival)

    def of(self, client: str) -> Iterator[Request]:
        """The waiting requests of one client in order of `sequence`."""
        queue = self._queues.get(client)
        return map(itemgetter(1), queue.by_arrival if queue else ())

    def matched(self, request: Request) -> int:
        """Tokens of what the request has to compute that the prefix cache holds now and would spare it.

        That is its prompt and, after a preemption, what it had generated.
        """
        return self._all_matched()[request]

    def by_longest_prefix(self, clients: Collection[str] | None = None) -> Iterable[Request]:
        """The waiting requests (of `clients`, if given), most matched tokens first, ties by `sequence`."""
        self._all_matched()
        queues = self._queues
        orders = [queues[client].lend() for client in (queues if clients is None else clients)]
        return map(itemgetter(2), orders[0] if len(orders) == 1 else _merged(orders))

    def _all_matched(self) -> dict[Request, int]:
        if self._matched is None:
            self._matched = {}
            for _, request in self._by_arrival:
                self._follow(request, self._matched)
        return self._matched

    def _follow(self, request: Request, matched: dict[Request, int]) -> None:
        tokens = matched[request] = self._matches.follow(request)
        insort(self._queues[request.client].mutable(), (-tokens, request.sequence, request))
