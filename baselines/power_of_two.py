"""Power of two choices: the less loaded of two workers drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from baselines.least_outstanding import LeastOutstanding
from baselines.router import Request, Worker


class PowerOfTwo(LeastOutstanding):
    """Draw two workers at random and send the request to the one with fewer outstanding.

    Mitzenmacher's rule (IEEE TPDS 12(10), 2001): almost as even as asking all, without the herd that stale
    loads make of it. The two are different workers; a tie goes to the one that joined first, and a lone
    worker is taken as it is.
    """

    name = "power-of-two"

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self._random = Random(seed)

    def route(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        """The less loaded of two."""
        places = sorted(self._random.sample(range(len(workers)), min(2, len(workers))))
        return super().route(request, [workers[place] for place in places], now)
