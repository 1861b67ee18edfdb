"""Least outstanding: each request to the worker that has the fewest to finish."""

from __future__ import annotations

from collections.abc import Sequence

from baselines.router import End, Request, Router, Worker


class LeastOutstanding(Router):
    """Send each request to the worker with the fewest that were sent there and have not left.

    The rule of any load balancer, also called join the shortest queue; here waiting and running requests
    count alike. Ties go to the worker that joined first, so a lone client at a slow pace sees only that one.
    Routers that choose among fewer workers by a rule of their own, and of those by load, build on it.
    """

    name = "least-outstanding"

    def __init__(self) -> None:
        self.outstanding: dict[Worker, int] = {}

    def joined(self, worker: Worker, now: float) -> None:
        """A worker begins with nothing outstanding."""
        self.outstanding[worker] = 0

    def lost(self, worker: Worker, now: float) -> None:
        """Nothing is outstanding there: all of it has left before."""
        del self.outstanding[worker]

    def route(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        """The worker with the fewest outstanding, which has one more now."""
        chosen = min(workers, key=self.outstanding.__getitem__)
        self.outstanding[chosen] += 1
        return chosen

    def finished(self, request: Request, worker: Worker, end: End, output_tokens: int, now: float) -> None:
        """One fewer outstanding, however it ended."""
        self.outstanding[worker] -= 1
