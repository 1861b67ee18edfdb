"""Steps that take a random time: what a real machine does to the simulator's durations."""

from __future__ import annotations

import random
from collections.abc import Iterator
from math import log, sqrt

from pydantic import BaseModel, ConfigDict, Field


class Noise(BaseModel):
    """Each step, or stretch of decode steps, takes `slowdown` times a random factor as long.

    The factors are independent, lognormal with mean 1 and coefficient of variation `cv`. They come from a
    stream of their own for each `seed`, trace and replica, the same under every scheduler.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cv: float = Field(ge=0, le=10)
    seed: int = 0
    slowdown: float = Field(default=1.0, ge=0.001, le=1000)

    def factors(self, trace: str, replica: int = 0) -> Iterator[float]:
        """An endless stream of factors for the trace with this digest, on the replica of that number."""
        rng = random.Random(f"step times {self.seed} {trace}{f' {replica}' if replica else ''}")
        variance = log(1 + self.cv**2)
        while True:
            yield self.slowdown * rng.lognormvariate(-variance / 2, sqrt(variance))
