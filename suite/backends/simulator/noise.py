"""Steps that take a random time: what a real machine does to the simulator's durations."""

from __future__ import annotations

import random
from collections.abc import Iterator
from math import log, sqrt
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from suite.backends.cost import Cost


class Durations(Protocol):
    """How long an engine's steps take, in seconds; see `suite.backends.cost.Cost`."""

    def step(self, new: int, attended: int, read: int, sequences: int) -> float:
        """Duration of one step."""

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Duration of a stretch of decode steps."""

    def steps_to(self, seconds: float, batch: int, context: int, most: int) -> int:
        """Steps of the coming stretch, at least 1 and at most `most`, that first reach `seconds`."""


class Noise(BaseModel):
    """Each step, or stretch of decode steps, takes `slowdown` times a random factor as long.

    The factors are independent, lognormal with mean 1 and coefficient of variation `cv`. They come from a
    stream of their own for each `seed` and trace, the same under every scheduler.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cv: float = Field(ge=0, le=10)
    seed: int = 0
    slowdown: float = Field(default=1.0, ge=0.001, le=1000)

    def factors(self, trace: str) -> Iterator[float]:
        """An endless stream of factors for the trace with this digest."""
        rng = random.Random(f"step times {self.seed} {trace}")
        variance = log(1 + self.cv**2)
        while True:
            yield self.slowdown * rng.lognormvariate(-variance / 2, sqrt(variance))


class Noisy:
    """A cost whose every step, or stretch, takes the next of `factors` as long. The coming one is known."""

    def __init__(self, cost: Cost, factors: Iterator[float]) -> None:
        self._cost = cost
        self._factors = factors
        self._coming = next(factors)

    def step(self, new: int, attended: int, read: int, sequences: int) -> float:
        """Duration of one step."""
        return self._next() * self._cost.step(new, attended, read, sequences)

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Duration of a stretch of decode steps."""
        return self._next() * self._cost.decode(batch, context, steps)

    def steps_to(self, seconds: float, batch: int, context: int, most: int) -> int:
        """Steps of the coming stretch that first reach `seconds`."""
        return self._cost.steps_to(seconds / self._coming, batch, context, most)

    def _next(self) -> float:
        factor, self._coming = self._coming, next(self._factors)
        return factor
