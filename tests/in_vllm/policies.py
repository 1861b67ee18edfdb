"""Policies that tests give to the engine."""

from __future__ import annotations

from typing import ClassVar

from baselines.fcfs import FCFS
from baselines.scheduler import Candidates, Request, Scheduler, Waiting


class Watched(FCFS):
    """By arrival, noting what its generator was told: True for each admission, False for a refusal."""

    answers: ClassVar[list[bool]] = []

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        for request in list(waiting.by_arrival()):
            answer = yield request
            self.answers.append(answer)
            if not answer:
                return


class Idle(FCFS):
    """By arrival, but only every third time it is asked."""

    work_conserving = False

    def __init__(self) -> None:
        self.asked = 0

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        self.asked += 1
        if self.asked % 3 == 0:
            yield from super().candidates(waiting, now)


class Raises(FCFS):
    """Raises in the method named."""

    def __init__(self, *, at: str) -> None:
        self.at = at

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        if self.at == "candidates":
            raise RuntimeError("broken policy")
        yield from super().candidates(waiting, now)

    def admitted(self, request: Request, cached_tokens: int, now: float) -> None:
        if self.at == "admitted":
            raise RuntimeError("broken policy")


class Stale(Scheduler):
    """Offers a request again that it has seen admitted."""

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        first = next(iter(waiting.by_arrival()))
        while (yield first):
            pass
