"""Round robin: each request to the next worker in turn."""

from __future__ import annotations

from collections.abc import Sequence

from baselines.router import Request, Router, Worker


class RoundRobin(Router):
    """Deal requests out in turn, whatever they are and whatever the workers are doing.

    What SGLang's data-parallel controller does by default, and what both DLPM's paper (arXiv 2501.14312,
    section 6.1) and Preble's put before plain LPM. The turn counts decisions, so when workers join or are
    lost it goes on at whatever place that count has in the new row. A request that comes back takes a turn
    again.
    """

    name = "round-robin"

    def __init__(self) -> None:
        self._turn = 0

    def route(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        """The next in turn."""
        chosen = workers[self._turn % len(workers)]
        self._turn += 1
        return chosen
