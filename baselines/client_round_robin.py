"""Round robin for each client on its own: what VTC needs before several workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from baselines.round_robin import RoundRobin
from baselines.router import Request, Router, Worker


class ClientRoundRobin(Router):
    """Deal the requests of each client out in turn, so that it loads all workers alike.

    The router of DLPM's paper for VTC (arXiv 2501.14312, section 6.1): with it a client that is backlogged
    anywhere is soon backlogged at every worker, where a local VTC holds it to its share (Theorem A.6). Every
    client begins at the first worker, as the paper does not say where else; clients stay known for ever.
    """

    name = "client-round-robin"

    def __init__(self) -> None:
        self._turns: defaultdict[str, RoundRobin] = defaultdict(RoundRobin)

    def route(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        """The next in its client's turn."""
        return self._turns[request.client].route(request, workers, now)
