"""Are the verdicts of `suite compare` right? Trials in which the truth is known.

In each trial two arms run one scheduler in the simulator, on independent seeds of the workload and of the
noise of its steps, and are compared as any other arms are. A/A: nothing differs, so nothing may be seen.
Planted: every step of the candidate takes 5 % longer, so its throughput must be seen to lose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scipy import stats

from suite import workers
from suite.backends.simulator import Simulator
from suite.backends.simulator.noise import Noise
from suite.metrics.paired import Sample, sample
from suite.metrics.summary import summarise
from suite.policies import SchedulerSpec, parse
from suite.report.effects import Comparison, compared
from suite.results import Manifest, Run
from suite.trace import Trace
from workloads import spec

SCHEDULER = "dlpm"

WORKLOAD: dict[str, Any] = {
    "family": "shared_document",
    "name": "saturated",
    "duration": 5,
    "rate": 100,
    "clients": 3,
    "arrivals": {"kind": "poisson"},
    "documents": 4,
    "popularity": 0,
    "document_tokens": 1000,
    "question_tokens": 50,
    "output_tokens": {"kind": "uniform", "low": 40, "high": 60},
}
"""About 500 requests in 5 s that take 40 s: throughput is what the engine can do, within 1 % of a seed."""

MAX_RUNNING = 32
NOISE = 0.1
"""Coefficient of variation of a step's duration."""

SLOWDOWN = 1.05
SEEDS = 5
"""As many as `suite compare` takes by default."""

ALIKE = (0.88, 1.0)
"""In what share of A/A trials no difference may be seen: 95 % are expected, less chance over 100 trials."""
FOUND = (0.8, 1.0)
"""In what share of planted trials the slowdown must be found."""


@dataclass(frozen=True)
class Trial:
    """What one trial came to: the metrics in which a difference was seen in A/A, and if the slowdown was."""

    seen: tuple[str, ...]
    found: bool


@dataclass(frozen=True)
class Share:
    """How often something happened, with its exact 95 % interval (Clopper and Pearson, 1934)."""

    count: int
    trials: int
    wanted: tuple[float, float]

    @property
    def holds(self) -> bool:
        """True if the share is within the wanted one."""
        return self.wanted[0] <= self.count / self.trials <= self.wanted[1]

    def __str__(self) -> str:
        interval = stats.binomtest(self.count, self.trials).proportion_ci(method="exact")
        least, most = (f"{100 * bound:.0f}" for bound in self.wanted)
        return (
            f"{self.count} of {self.trials} trials (95 % interval {100 * interval.low:.1f} to "
            f"{100 * interval.high:.1f} %; wanted {least} to {most} %)"
        )


def trial(number: int, tell: Callable[..., None]) -> Trial:
    """One A/A comparison and one with a planted slowdown, against one baseline arm; a task of `workers`."""
    seeds = range(number * SEEDS, (number + 1) * SEEDS)
    baseline = [_run(2 * seed, 1.0) for seed in seeds]
    tell(1 / 3)
    same = [_run(2 * seed + 1, 1.0) for seed in seeds]
    tell(2 / 3)
    slower = [_run(2 * seed + 1, SLOWDOWN) for seed in seeds]
    seen = [metric for metric, verdict in _verdicts(same, baseline).items() if verdict in ("wins", "loses")]
    return Trial(tuple(seen), _verdicts(slower, baseline)["client_service_per_s"] == "loses")


def trials(numbers: Sequence[int], processes: int, tell: Callable[[float], None]) -> list[Trial]:
    """The trials of these numbers, each in one of so many processes; `tell` learns what share is done."""
    found: dict[int, Trial] = {}
    with closing(workers.run(trial, numbers, processes)) as events:
        for event in events:
            if isinstance(event, workers.Lost):
                raise RuntimeError(f"trial {numbers[event.index]}: {event.reason}")
            if isinstance(event, workers.Finished):
                found[event.index] = event.result
                tell(len(found) / len(numbers))
    return [found[i] for i in range(len(numbers))]


def shares(found: Sequence[Trial]) -> tuple[Share, Share]:
    """How often no difference was seen in A/A, and how often the slowdown was found."""
    alike, slow = (sum(not one.seen for one in found), sum(one.found for one in found))
    return Share(alike, len(found), ALIKE), Share(slow, len(found), FOUND)


def _verdicts(candidate: Sequence[Sample], baseline: Sequence[Sample]) -> dict[str, str]:
    pairs = dict(enumerate(zip(candidate, baseline, strict=True)))
    effects = compared([Comparison("saturated", "candidate", "baseline", pairs)])
    return {effect.metric: effect.verdict for effect in effects}


def _run(seed: int, slowdown: float) -> Sample:
    trace = spec.load(WORKLOAD, {}).generate(seed)
    backend = Simulator(max_running=MAX_RUNNING, noise=Noise(cv=NOISE, seed=seed, slowdown=slowdown))
    outcome = backend.run(trace, _scheduler(), Path(), lambda share, note="": None)
    manifest = _manifest(trace, backend, outcome.engine)
    run = Run(manifest, outcome.requests, outcome.service, outcome.streams)
    return sample(run, {**summarise(run), "invalid": None})


@cache
def _scheduler() -> SchedulerSpec:
    return parse(SCHEDULER)


def _manifest(trace: Trace, backend: Simulator, engine: dict[str, Any]) -> Manifest:
    return Manifest(
        cell="",
        labels={},
        trace={"digest": trace.digest, "header": asdict(trace.header)},
        scheduler=_scheduler().record,
        backend=backend.model_dump(mode="json"),
        engine=engine,
        versions={},
    )
