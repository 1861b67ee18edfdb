"""The course of an attack: search, search at random, look at other seeds, make the trace small."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, TypeAlias

from suite.attack import space
from suite.attack.minimise import minimised
from suite.attack.objective import SEEDS, Contest, workload
from suite.attack.search import STRATEGIES, Point
from suite.errors import BadInput
from suite.plugins import blame
from suite.trace import Trace
from workloads.spec import load

FRESH_SEEDS = (2, 3, 4, 5, 6)
"""Seeds that no search has seen, on which a finding is looked at once more."""
KEPT = 0.9
"""Share of the effect that the small trace must still have."""

Progress: TypeAlias = Callable[[float, str], object]
Scores: TypeAlias = Callable[[Sequence[Point]], list[float]]


@dataclass
class Course:
    """How one search went: evaluations, those without an effect to speak of, and every improvement."""

    strategy: str
    seed: int
    evaluations: int = 0
    none: int = 0
    best: Point | None = None
    improvements: list[tuple[int, float]] = field(default_factory=list)
    """Number of the evaluation, from 1, and its score."""

    @property
    def score(self) -> float:
        """The best so far; -inf if there is none."""
        return self.improvements[-1][1] if self.improvements else -inf

    def note(self, point: Point, score: float) -> None:
        """One more evaluation."""
        self.evaluations += 1
        self.none += score == -inf
        if score > self.score:
            self.best = point
            self.improvements.append((self.evaluations, score))


@dataclass(frozen=True)
class Finding:
    """A workload on which the scheduler does worse, and a small trace that shows it.

    `spec` is the workload's; `fresh` are its effects on `FRESH_SEEDS`. `values` are the metric's on the small
    trace, the scheduler's and the rival's.
    """

    parameters: dict[str, Any]
    spec: dict[str, Any]
    fresh: list[float | None]
    whole: Trace
    whole_effect: float
    trace: Trace
    effect: float
    values: tuple[float, float]


@dataclass(frozen=True)
class Attack:
    """An attack that has been made: what for, how it went, what it found, if anything."""

    contest: Contest
    courses: Sequence[Course]
    """The search, and the one at random that it is held against."""
    finding: Finding | None


def attack(
    contest: Contest, search: str, seed: int, evaluations: int, processes: int, progress: Progress
) -> Attack:
    """Search, search at random as long, and make the finding small: the same whatever `processes` is.

    `search` is one of `STRATEGIES`. Raises `BadInput` for what a scheduler raises.
    """
    names = list(dict.fromkeys([search, "random"]))
    with scoring(contest, processes) as scores:
        courses = [searched(name, seed, evaluations, scores, progress) for name in names]
    return Attack(contest, courses, finding(contest, courses[0], progress))


def searched(strategy: str, seed: int, evaluations: int, scores: Scores, progress: Progress) -> Course:
    """Search with so many evaluations. Equal arguments, equal courses, whatever `scores` computes with."""
    course, search = Course(strategy, seed), STRATEGIES[strategy](seed)
    while course.evaluations < evaluations:
        points = search.ask()
        found = scores(points)
        search.tell(points, found)
        for point, score in list(zip(points, found, strict=True))[: evaluations - course.evaluations]:
            course.note(point, score)
        progress(course.evaluations / evaluations, f"{strategy}: best {course.score:+.3g}")
    return course


def finding(contest: Contest, course: Course, progress: Progress) -> Finding | None:
    """The best of a search made small; None if the scheduler did worse nowhere."""
    if course.best is None or course.score <= 0:
        return None
    parameters = space.parameters(course.best)
    spec = workload(parameters)
    fresh = [contest.effect(load(spec).generate(seed)) for seed in FRESH_SEEDS]
    traces = [load(spec).generate(seed) for seed in SEEDS]
    effect, whole = max(((contest.effect(trace) or 0.0, trace) for trace in traces), key=lambda pair: pair[0])
    small = _small(contest, whole, KEPT * effect, progress)
    ours, theirs = contest.values(small)
    assert ours is not None
    assert theirs is not None
    return Finding(
        parameters, spec, fresh, whole, effect, small, contest.effect(small) or 0.0, (ours, theirs)
    )


def _small(contest: Contest, trace: Trace, least: float, progress: Progress) -> Trace:
    smallest = len(trace.requests)

    def holds(candidate: Trace) -> bool:
        nonlocal smallest
        effect = contest.effect(candidate)
        kept = effect is not None and effect >= least
        smallest = min(smallest, len(candidate.requests)) if kept else smallest
        progress(1 - smallest / len(trace.requests), f"making it small: {smallest} requests")
        return kept

    return minimised(trace, holds)


# -- in processes ----------------------------------------------------------------------------------------


@contextmanager
def scoring(contest: Contest, processes: int) -> Iterator[Scores]:
    """A function that scores points in so many processes, which end with the context.

    It raises `BadInput` for what a scheduler raises.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:

        def scores(points: Sequence[Point]) -> list[float]:
            try:
                return [_accepted(found) for found in pool.map(partial(_score, contest), points)]
            except BrokenProcessPool:
                raise BadInput("a process of the search died (out of memory, killed?)") from None

        yield scores


def _accepted(found: float | str) -> float:
    if isinstance(found, str):
        raise BadInput(found)
    return found


def _score(contest: Contest, point: Point) -> float | str:
    """The score of a point, -inf where there is none, or what a scheduler did wrong."""
    try:
        score = contest.score(space.parameters(point))
    except Exception as error:
        return blame(error, *contest.scheduler.files)
    return -inf if score is None else score
