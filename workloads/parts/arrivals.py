"""Arrival processes: when the requests, or sessions, of one client begin.

Every open process keeps the mean rate it is given over the whole duration, so that `rate` and `load` of a
spec mean the same for all.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from itertools import cycle
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.random import Generator
from pydantic import BeforeValidator, Field, model_validator

from workloads.parts.part import ByKind, Clientele, NonNegative, Part, Positive, Variation


class Start(NamedTuple):
    """When a unit of work, a request or a session, begins.

    At `time` (seconds) or, if that is later, `think` seconds after the client's unit number `after` ended.
    """

    time: float
    after: int | None = None
    think: float = 0.0


_EVEN = 1e-6
"""A coefficient of variation below it is as good as none."""


def gap(mean: float, cv: float, rng: Generator) -> float:
    """A Gamma-distributed span with the given mean and coefficient of variation; cv 0 is no randomness."""
    return mean if cv < _EVEN else rng.gamma(1 / cv**2, mean * cv**2)


def renewals(rate: float, cv: float, duration: float, rng: Generator) -> Iterator[float]:
    """Times in [0, duration) of a stationary renewal process with Gamma gaps.

    The first gap is the rest of one that was under way at time 0 (a uniform part of a length-biased gap, for
    Gamma the same law with shape + 1), so that exactly rate x duration arrivals are expected at any cv.
    """
    under_way = 1 / rate if cv < _EVEN else rng.gamma(1 / cv**2 + 1, cv**2 / rate)
    time = under_way * rng.random()
    while time < duration:
        yield time
        time += gap(1 / rate, cv, rng)


class _Open(Part):
    """A process that does not wait for replies."""

    @abstractmethod
    def times(self, rate: float, duration: float, rng: Generator) -> Iterator[float]:
        """Ascending times in [0, duration), in seconds, at a mean of `rate` a second."""

    def starts(self, rate: float, share: float, duration: float, rng: Generator) -> list[Start]:
        """The starts of one client's units; `share` matters to closed loops only."""
        rounded = (round(time, 6) for time in self.times(rate, duration, rng))
        return [Start(time) for time in rounded if time < duration]


class Constant(_Open):
    """Equal gaps; where in its first gap a client begins is random, so clients are not in step."""

    kind: Literal["constant"] = "constant"

    def times(self, rate: float, duration: float, rng: Generator) -> Iterator[float]:
        return renewals(rate, 0, duration, rng)


class Poisson(_Open):
    """Independent exponential gaps."""

    kind: Literal["poisson"] = "poisson"

    def times(self, rate: float, duration: float, rng: Generator) -> Iterator[float]:
        return renewals(rate, 1, duration, rng)


class Gamma(_Open):
    """Independent Gamma gaps with coefficient of variation `cv`: burstier than Poisson above 1."""

    kind: Literal["gamma"] = "gamma"
    cv: Annotated[Variation, Field(gt=0)]

    def times(self, rate: float, duration: float, rng: Generator) -> Iterator[float]:
        return renewals(rate, self.cv, duration, rng)


class OnOff(_Open):
    """`busy` seconds of arrivals, `silent` seconds without, and so on, from time 0.

    While busy, gaps are Gamma with `cv` (1 is Poisson) at the rate that gives the mean over the duration.
    """

    kind: Literal["on_off"] = "on_off"
    busy: Positive
    silent: Positive
    cv: Variation = 1.0

    def times(self, rate: float, duration: float, rng: Generator) -> Iterator[float]:
        period = self.busy + self.silent
        periods, rest = divmod(duration, period)
        busy = periods * self.busy + min(rest, self.busy)
        for time in renewals(rate * duration / busy, self.cv, busy, rng):
            number, within = divmod(time, self.busy)
            yield number * period + within


class Ramp(_Open):
    """A rate that goes in a straight line from `start` to `end` over the duration.

    The two are relative to each other, as the mean stays: `start: 1, end: 3` begins at half the mean rate
    and ends at one and a half times it. Gaps in the stretched time are Gamma with `cv` (1 is Poisson).
    """

    kind: Literal["ramp"] = "ramp"
    start: NonNegative
    end: NonNegative
    cv: Variation = 1.0

    @model_validator(mode="after")
    def _some_rate(self) -> Self:
        if self.start + self.end == 0:
            raise ValueError("start and end are both 0; make one of them positive")
        return self

    def times(self, rate: float, duration: float, rng: Generator) -> Iterator[float]:
        for even in renewals(rate, self.cv, duration, rng):
            yield min(self._at(even / duration) * duration, math.nextafter(duration, 0))

    def _at(self, done: float) -> float:
        """The share of the duration after which the share `done` of all arrivals is expected."""
        start, end = (rate / (self.start + self.end) for rate in (self.start, self.end))
        return done / (start + math.sqrt(max(0.0, start**2 + (end - start) * done)))


class Steps(_Open):
    """A rate that changes at once: the duration is cut into as many equal parts as there are `rates`.

    They are relative to one another, as the mean stays: `rates: [5, 1]` is, in the first half, five times as
    fast as in the second. Gaps in the stretched time are Gamma with `cv` (1 is Poisson).
    """

    kind: Literal["steps"] = "steps"
    rates: Annotated[tuple[NonNegative, ...], Field(min_length=1, max_length=1000)]
    cv: Variation = 1.0

    @model_validator(mode="after")
    def _some_rate(self) -> Self:
        if not any(self.rates):
            raise ValueError("rates are all 0; make one of them positive")
        return self

    def times(self, rate: float, duration: float, rng: Generator) -> Iterator[float]:
        done = np.cumsum((0.0, *self.rates)) / sum(self.rates)
        edges = np.linspace(0.0, duration, len(done))
        for even in renewals(rate, self.cv, duration, rng):
            yield min(float(np.interp(even / duration, done, edges)), math.nextafter(duration, 0))


SHORTEST = 1e-3
"""Seconds that a phase lasts at least."""
PhaseSeconds = Annotated[Positive, Field(ge=SHORTEST)]


class Phase(Part):
    """`seconds` of one process. Its `rate` is relative to those of the other phases; 0 is silence."""

    seconds: PhaseSeconds
    rate: NonNegative = 1.0
    arrivals: Annotated[Constant | Poisson | Gamma | OnOff | Ramp | Steps, *ByKind] = Poisson()


class Phases(_Open):
    """One process after another, each from its own beginning; after the last phase the first comes again.

    The rates are relative to one another, as the mean stays. A phase that the end of the duration cuts short
    is as one of that length.
    """

    kind: Literal["phases"] = "phases"
    phases: Annotated[tuple[Phase, ...], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _some_rate(self) -> Self:
        if not any(phase.rate for phase in self.phases):
            raise ValueError("the rates of all phases are 0; make one of them positive")
        return self

    def times(self, rate: float, duration: float, rng: Generator) -> Iterator[float]:
        units = math.fsum(phase.rate * seconds for _, seconds, phase in self._spans(duration))
        for start, seconds, phase in self._spans(duration):
            own = rate * duration * phase.rate / units if units else 0.0
            if own:
                yield from (start + time for time in phase.arrivals.times(own, seconds, rng))

    def count(self, duration: float) -> float:
        """About how many phases the duration has."""
        return len(self.phases) * duration / math.fsum(phase.seconds for phase in self.phases)

    def _spans(self, duration: float) -> Iterator[tuple[float, float, Phase]]:
        """Beginning, length and phase, until the duration is over."""
        start = 0.0
        for phase in cycle(self.phases):
            yield start, min(phase.seconds, duration - start), phase
            start += phase.seconds
            if start >= duration:
                return


class Think(Part):
    """Seconds between a reply and the next message: Gamma with `mean` and `cv` (0: always the mean)."""

    mean: NonNegative
    cv: Variation = 0.0

    def draw(self, rng: Generator) -> float:
        """One think time in seconds."""
        return round(gap(self.mean, self.cv, rng), 6) if self.mean else 0.0


def _bare_seconds(data: Any) -> Any:
    return {"mean": data} if isinstance(data, int | float) else data


ThinkTime = Annotated[Think, BeforeValidator(_bare_seconds)]
"""A think time; a bare number of seconds is a constant one."""


class ClosedLoop(Part):
    """A fixed number of users: each begins its next unit `think` seconds after its last one has ended.

    `concurrency` users, at load 1 and without misbehaviour, are divided among the clients as the rate is, at
    least one to each; a client's rate x duration units are dealt to its users in turn.
    """

    kind: Literal["closed_loop"] = "closed_loop"
    concurrency: Clientele
    think: ThinkTime = Think(mean=0.0)

    def users(self, share: float) -> int:
        """How many users a client with this share has."""
        return max(1, round(self.concurrency * share))

    def starts(self, rate: float, share: float, duration: float, rng: Generator) -> list[Start]:
        """The starts of one client's units, `share` being its part of the workload's nominal rate."""
        users = self.users(share)
        units = max(users, round(rate * duration))
        chained = [Start(0.0, unit - users, self.think.draw(rng)) for unit in range(users, units)]
        return [Start(0.0)] * users + chained


Arrivals = Annotated[Constant | Poisson | Gamma | OnOff | Ramp | Steps | Phases | ClosedLoop, *ByKind]
"""Any of the processes, told apart by `kind`."""
