"""A request while it is being served, and when requests are sent."""

from __future__ import annotations

import heapq
from math import inf, nan

from baselines.scheduler import Request
from suite.backends.simulator.tree import Addresses, Content, Node, cut
from suite.trace import REPLY, Trace


class Live(Request):
    """A request of the trace with its state in the engine.

    `sent` is when its client sent it, `arrival` when it came to the engine of the replica `worker`.

    `content` is what has to be in KV memory before the next new token: the prompt and, after a preemption,
    what was generated; `computed` of `target` such tokens are there. `tip` is the deepest cached node it
    holds and `beyond` its content after that. `node`, `at` and `rest` make it a `tree.Mark` while it is
    `followed`.
    """

    __slots__ = (
        "admitted", "at", "beyond", "cached", "computed", "content", "error", "finish", "first_token",
        "followed", "followers", "generated", "joined", "missing", "most_computed", "node",
        "not_before", "output_address", "output_tokens", "preemptions", "prompt", "queued",
        "recomputed", "rest", "sent", "status", "target", "think", "tip", "worker",
    )  # fmt: skip

    content: Content
    prompt: Content
    node: Node
    at: int
    rest: Content
    tip: Node
    beyond: Content

    def __init__(
        self, id: str, client: str, weight: float, priority: int, content: Content, output_tokens: int
    ) -> None:
        super().__init__(id, client, -1, nan, sum(tokens for _, tokens in content), weight, priority)
        self.content = self.prompt = content
        self.output_tokens = output_tokens
        self.output_address = 0
        self.target = self.prompt_tokens
        self.computed = 0
        self.most_computed = 0
        self.generated = 0
        self.joined = 0
        self.admitted = self.first_token = self.finish = nan
        self.cached = self.recomputed = self.preemptions = 0
        self.status = "waiting"
        self.sent = nan
        self.worker: str | None = None
        self.error: str | None = None
        self.followed = self.queued = False
        self.followers: list[Live] = []
        self.missing = 0
        self.not_before = 0.0
        self.think = 0.0

    def extend_content(self) -> None:
        """Make all that was generated so far part of the content."""
        if self.generated:
            self.content = (*self.prompt, (self.output_address, self.generated))
            self.target = self.prompt_tokens + self.generated
            self.beyond = cut(self.content, self.tip.end, self.target)[1]

    def give_back(self) -> None:
        """Leave the engine it came to, which has not admitted it."""
        self.worker = None
        self.queued = self.followed = False


def lives(trace: Trace) -> list[Live]:
    """Every request of the trace as a fresh `Live`, linked to those that come after it."""
    addresses = Addresses()
    made: dict[str, Live] = {}
    for request in trace.requests:
        content = tuple((addresses.of(id), tokens) for id, tokens in request.prompt)
        live = Live(
            request.id, request.client, request.weight, request.priority, content, request.output_tokens
        )
        live.output_address = addresses.of(REPLY + request.id)
        live.not_before, live.think, live.missing = request.arrival, request.think, len(request.after)
        for parent in request.after:
            made[parent].followers.append(live)
        made[request.id] = live
    return list(made.values())


class Arrivals:
    """Requests that are still to be sent, by time; ties in the order of the trace.

    `open` counts those of which nothing is known yet but that they may be served.
    """

    def __init__(self, requests: list[Live]) -> None:
        self.open = len(requests)
        self._order = {request: i for i, request in enumerate(requests)}
        self._heap = [
            (request.not_before, i, request) for i, request in enumerate(requests) if not request.missing
        ]
        heapq.heapify(self._heap)

    def next_time(self) -> float:
        """When the next request is sent; infinity if none is known."""
        return self._heap[0][0] if self._heap else inf

    def send(self) -> Live:
        """The next request, taken out; it is sent when its time comes."""
        request = heapq.heappop(self._heap)[2]
        request.sent = request.not_before
        return request

    def served(self, request: Live) -> None:
        """The request has finished: those that come after it draw nearer."""
        self.open -= 1
        for follower in request.followers:
            follower.missing -= 1
            follower.not_before = max(follower.not_before, request.finish + follower.think)
            if not follower.missing and follower.status == "waiting":
                heapq.heappush(self._heap, (follower.not_before, self._order[follower], follower))

    def lost(self, request: Live) -> None:
        """The request will never be served: all that come after it are cancelled."""
        self.open -= 1
        todo = list(request.followers)
        while todo:
            follower = todo.pop()
            if follower.status == "waiting":
                follower.status = "cancelled"
                self.open -= 1
                todo += follower.followers
