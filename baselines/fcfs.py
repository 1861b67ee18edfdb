"""First come, first served."""

from __future__ import annotations

from baselines.scheduler import Candidates, Scheduler, Waiting


class FCFS(Scheduler):
    """Serve in order of arrival; knows neither clients nor the prefix cache.

    A preempted request keeps its place in that order. What vLLM does by default.
    """

    name = "fcfs"

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        """Offer the oldest request until one is refused."""
        while waiting:
            if not (yield next(iter(waiting.by_arrival()))):
                return
