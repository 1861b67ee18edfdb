"""Longest prefix match, SGLang's cache-aware order, plain and with SGLang's fall-back."""

from __future__ import annotations

from baselines.fcfs import FCFS
from baselines.scheduler import Candidates, Scheduler, Waiting


class LPM(Scheduler):
    """Serve the request with the most cached prompt tokens first; knows no clients, so it can starve them.

    The plain rule of SGLang's paper (Zheng et al., 2024): one order per step, at any length of queue. What
    SGLang's own `lpm` adds (deferring in-batch duplicates, refreshing the cache's LRU order while matching)
    is not part of it.
    """

    name = "lpm"

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        """Offer by longest prefix until one is refused."""
        for request in waiting.by_longest_prefix():
            if not (yield request):
                return


class LPMWithFallback(Scheduler):
    """LPM as SGLang ships it: with more than `threshold` requests waiting it is plain FCFS.

    SGLang's threshold is 128 in every release looked at (0.4.6 to 0.5.23), so a test of its `lpm` under
    overload is mostly a test of FCFS.
    """

    name = "lpm-fallback"

    def __init__(self, *, threshold: int = 128) -> None:
        if threshold < 0:
            raise ValueError(f"threshold must not be negative, got {threshold}")
        self.threshold = threshold
        self._short, self._long = LPM(), FCFS()

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        """Offer by longest prefix while the queue is short, by arrival when it is long."""
        order = self._short if len(waiting) <= self.threshold else self._long
        yield from order.candidates(waiting, now)
