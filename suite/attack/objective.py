"""What an attack maximises: by how much a scheduler does worse than a rival on the same trace.

An *effect* is 0 where the two do equally well, above 0 where the scheduler does worse. So what any scheduler
would have to do to a trace is not held against this one.

    p99         W(scheduler) / W(rival) - 1 with W = max(1 s, the largest P99 TTFT of a well-behaved client).
                A wait below a second counts as one: 50 ms instead of 10 is no finding.
    throughput  R(rival) / R(scheduler) - 1 with R = client service per second of makespan.
    jain        J(rival) - J(scheduler) with J = Jain's index of actual service while all clients are
                backlogged. There everybody could use more, so a difference in demand is no unfairness.

Where a number does not exist there is no effect, and so nothing won: a client counts in W with at least ten
requests, the backlogged time must be ten seconds under both, and every request must fit the engine. A request
that the scheduler starves counts as in all of the suite's numbers: an endless wait, no throughput.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from suite.attack import space
from suite.backends.base import Outcome
from suite.backends.simulator import Simulator
from suite.capacity import capacity
from suite.errors import BadInput, did_you_mean
from suite.metrics import fairness, latency, throughput
from suite.metrics.service import curves
from suite.metrics.windows import windows
from suite.policies import SchedulerSpec, parse
from suite.trace import Trace
from workloads.spec import load

SEEDS = (0, 1)
"""A workload's effect is the least over the traces of these seeds, so one lucky draw is not enough."""
ENGINE = Simulator()
"""What serves them: an 8B model on a 24 GB GPU, as in the ready experiments."""

_LEAST_REQUESTS = 10
_LEAST_WAIT = 1.0
_LEAST_BACKLOG = 10.0


@dataclass(frozen=True)
class Metric:
    """A number to be made bad: what it is, the usual rival, how a run gives it, and how two of them compare.

    `measure` gives None where the number does not exist. `effect` takes the scheduler's and the rival's.
    `words` puts an effect, or it plus 1, as the ratio, into words.
    """

    title: str
    rival: str
    measure: Callable[[Trace, Outcome], float | None]
    effect: Callable[[float, float], float]
    words: str

    def told(self, effect: float | None) -> str:
        """An effect in words; "none" where there is none."""
        if effect is None or effect == -np.inf:
            return "none"
        return self.words.format(effect=effect, ratio=effect + 1)


def _worst_wait(trace: Trace, outcome: Outcome) -> float | None:
    rows = latency.latencies(outcome.requests)
    well = rows[~rows["client"].isin(trace.header.misbehaving)].sort_values("ttft").groupby("client")["ttft"]
    return max((_p99(waits) for _, waits in well if len(waits) >= _LEAST_REQUESTS), default=None)


def _p99(ascending: pd.Series[float]) -> float:
    one, client = np.ones(len(ascending)), np.zeros(len(ascending), np.int64)
    return latency.statistics(latency.Sample(np.asarray(ascending, np.float64), one, client))["p99"] or 0.0


def _throughput(trace: Trace, outcome: Outcome) -> float | None:
    starved = (outcome.requests["status"] == "starved").any()
    return 0.0 if starved else throughput.rates(outcome.requests)["client_service_per_s"]


def _backlogged_jain(trace: Trace, outcome: Outcome) -> float | None:
    window = windows(outcome.requests)["backlogged"]
    if window.seconds < _LEAST_BACKLOG:
        return None
    log = curves(outcome.service, list(trace.clients), "actual")
    weights = pd.Series({request.client: request.weight for request in trace.requests})
    return fairness.jain(fairness.normalised(log, window, weights))


METRICS = MappingProxyType(
    {
        "p99": Metric(
            "P99 TTFT of the worst-off well-behaved client, s",
            "vtc",
            _worst_wait,
            lambda ours, theirs: max(ours, _LEAST_WAIT) / max(theirs, _LEAST_WAIT) - 1,
            "{ratio:.3g} times as long",
        ),
        "throughput": Metric(
            "client service units per second",
            "lpm",
            _throughput,
            lambda ours, theirs: theirs / ours - 1 if ours else np.inf,
            "{ratio:.3g} times as much for the rival",
        ),
        "jain": Metric(
            "Jain's index of actual service while all are backlogged",
            "vtc:charge=extend",
            _backlogged_jain,
            lambda ours, theirs: theirs - ours,
            "{effect:.3g} below the rival",
        ),
    }
)


@dataclass(frozen=True)
class Contest:
    """A scheduler, the rival it is held against, and the metric, by name."""

    scheduler: SchedulerSpec
    rival: SchedulerSpec
    metric: str

    @property
    def name(self) -> str:
        """What its folder and its experiment are called."""
        return re.sub(r"[^A-Za-z0-9.-]+", "-", f"attack-{self.scheduler.label}-{self.metric}")[:100]

    def values(self, trace: Trace) -> tuple[float | None, float | None]:
        """The metric of the scheduler and of the rival; None where it does not exist."""
        ours, theirs = (self._value(trace, spec) for spec in (self.scheduler, self.rival))
        return ours, theirs

    def effect(self, trace: Trace) -> float | None:
        """By how much the scheduler does worse on this trace; None where that cannot be said."""
        ours, theirs = self.values(trace)
        if ours is None or theirs is None or not np.isfinite(theirs):
            return None
        return METRICS[self.metric].effect(ours, theirs)

    def score(self, found: space.Parameters) -> float | None:
        """The least effect over the traces of `SEEDS`; None if there is none on one of them."""
        try:
            spec = workload(found)
            effects = [self.effect(load(spec).generate(seed)) for seed in SEEDS]
        except BadInput:  # it came out without requests
            return None
        return None if None in effects else min(effect for effect in effects if effect is not None)

    def _value(self, trace: Trace, scheduler: SchedulerSpec) -> float | None:
        outcome = served(trace, scheduler)
        unfit = outcome.requests["status"].isin(["rejected", "failed"]).any()
        return None if unfit else METRICS[self.metric].measure(trace, outcome)


def contest(scheduler: str, metric: str, rival: str | None = None) -> Contest:
    """The contest of a scheduler with a rival, the metric's usual one if none is named. Raises `BadInput`."""
    if metric not in METRICS:
        raise BadInput(f"--metric: no metric {metric!r}; {did_you_mean(metric, METRICS)}")
    specs = parse(scheduler), parse(rival or METRICS[metric].rival)
    for spec in specs:
        _check(spec)
    if specs[0].label == specs[1].label:
        raise BadInput(f"--against: {specs[1].label} is the scheduler itself; name another")
    return Contest(*specs, metric)


def _check(spec: SchedulerSpec) -> None:
    """Raise `BadInput` unless it is a scheduler of ours, alone."""
    spec.build()  # refused here if it is an engine's own
    if spec.router:
        raise BadInput(
            f"{spec.label}: one replica is attacked, and no router matters there; name the scheduler alone: "
            f"{replace(spec, router=None).reference}"
        )


def workload(found: space.Parameters) -> dict[str, Any]:
    """The spec of the parameters, its rate being `pressure` times what the engine serves under FCFS.

    That is measured on the trace of the first seed, as in `suite.capacity`.
    """
    trace = load(space.spec(found, 100.0)).generate(SEEDS[0])
    return space.spec(found, round(capacity(trace, ENGINE.model_dump()).seconds / found["pressure"], 3))


def served(trace: Trace, scheduler: SchedulerSpec) -> Outcome:
    """What became of a trace under a scheduler, in the simulator."""
    return ENGINE.run(trace, scheduler, Path(), lambda share, note="": None)
