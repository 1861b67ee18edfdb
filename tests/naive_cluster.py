"""The simulator's cluster once more, the plainest way: naive engines side by side, one token a step.

What happens next is found by looking at everything, and nothing is shared with the simulator but the router.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf, isnan

from naive import Job, NaiveEngine

from baselines.router import Request, Router, Worker
from suite.trace import Trace

BLOCK = 16


class Place:
    """A replica: its engine, if it is up, with the step under way and the requests that are there."""

    def __init__(self, name: str) -> None:
        self.worker = Worker(name)
        self.engine: NaiveEngine | None = None
        self.plan: dict[Job, int] = {}
        self.ends = inf
        self.came: list[Job] = []
        self.held: list[Job] = []


class NaiveCluster:
    """Replicas, `build` of which gives a fresh engine, on one clock. `losses`: replica, when, back when."""

    def __init__(
        self,
        trace: Trace,
        build: Callable[[], NaiveEngine],
        replicas: int,
        router: Router,
        delay: float,
        losses: Sequence[tuple[int, float, float]],
    ) -> None:
        self.jobs = [Job(request) for request in trace.requests]
        self.by_id = {job.id: job for job in self.jobs}
        self.build, self.router, self.delay = build, router, delay
        self.places = [Place(f"replica-{number}") for number in range(replicas)]
        self.up: list[Place] = []
        self.now = 0.0
        self.sent: dict[Job, float] = {}
        self.under_way: list[tuple[float, Place, Job]] = []
        self.stranded: list[Job] = []
        self.told: dict[Job, Request] = {}
        self.changes = sorted(self._changes(losses), key=lambda change: change[:2])
        for place in self.places:
            self._come_up(place)

    def _changes(
        self, losses: Sequence[tuple[int, float, float]]
    ) -> Iterator[tuple[float, int, Callable[[Place], None], Place]]:
        for replica, at, back in losses:
            yield at, 1, self._lose, self.places[replica]
            yield back, 0, self._come_up, self.places[replica]

    def run(self) -> None:
        """Serve what can be served."""
        while (now := min(self._times())) < inf:
            self.now = now
            for place in self.up:
                if place.ends == now:
                    self._end_step(place)
            while self.changes and self.changes[0][0] == now:
                _, _, change, place = self.changes.pop(0)
                change(place)
            for job in sorted(self._sendable(), key=self.jobs.index):
                if self._due(job) == now:
                    self.sent[job] = now
                    job.status = "sent"
                    self._route(job)
            self._deliver()
            for place in self.up:
                if not place.plan:
                    self._begin_step(place)
        for job in self.jobs:
            if job.status in ("sent", "waiting"):
                self._end(job, "starved")

    def _times(self) -> Iterator[float]:
        """When something happens, as far as is known."""
        yield inf
        yield from (place.ends for place in self.up)
        yield from (time for time, _, _ in self.under_way)
        if any(job.status in ("unsent", "sent", "waiting", "running") for job in self.jobs):
            yield from (change[0] for change in self.changes[:1])
        yield from map(self._due, self._sendable())

    # -- requests ----------------------------------------------------------------------------------------

    def _sendable(self) -> list[Job]:
        done = {job.id for job in self.jobs if job.status == "finished"}
        return [job for job in self.jobs if job.status == "unsent" and done.issuperset(job.trace.after)]

    def _due(self, job: Job) -> float:
        return max([job.trace.arrival, *(self.by_id[id].finish + job.trace.think for id in job.trace.after)])

    def _route(self, job: Job) -> None:
        if not self.up:
            self.stranded.append(job)
            return
        blocks = [tuple(job.prompt[end - BLOCK : end]) for end in range(BLOCK, len(job.prompt) + 1, BLOCK)]
        self.told[job] = Request(job.id, job.client, self.sent[job], len(job.prompt), blocks, BLOCK)
        workers = [place.worker for place in self.up]
        place = self.up[workers.index(self.router.route(self.told[job], workers, self.now))]
        place.held.append(job)
        self.under_way.append((self.now + self.delay, place, job))

    def _deliver(self) -> None:
        for time, place, job in list(self.under_way):
            if time == self.now:
                self.under_way.remove((time, place, job))
                job.arrival = time
                place.came.append(job)

    def _leave(self, place: Place, job: Job, end: str) -> None:
        place.held.remove(job)
        self.router.finished(self.told.pop(job), place.worker, end, job.generated, self.now)  # type: ignore[arg-type]

    def _end(self, job: Job, status: str) -> None:
        job.status = status
        for later in self.jobs:
            if job.id in later.trace.after and later.status == "unsent":
                self._end(later, "cancelled")

    # -- replicas ----------------------------------------------------------------------------------------

    def _begin_step(self, place: Place) -> None:
        engine = place.engine
        assert engine
        engine.now = self.now
        for job in place.came:
            if not engine.receive(job):
                self._leave(place, job, "abort")
                self._end(job, "rejected")
        place.came = []
        place.plan = engine.schedule()
        if place.plan:
            place.ends = self.now + engine.duration(place.plan)

    def _end_step(self, place: Place) -> None:
        engine, plan = place.engine, place.plan
        assert engine
        engine.now, place.plan, place.ends = self.now, {}, inf
        begun = [job for job in plan if not job.generated]
        engine.execute(plan)
        for job in begun:
            if job.generated:
                self.router.started(self.told[job], place.worker, self.now)
        for job in plan:
            if job.status == "finished":
                self._leave(place, job, "stop")

    def _come_up(self, place: Place) -> None:
        place.engine = self.build()
        self.up.append(place)
        self.router.joined(place.worker, self.now)
        stranded, self.stranded = self.stranded, []
        for job in stranded:
            self._route(job)

    def _lose(self, place: Place) -> None:
        self.up.remove(place)
        place.engine, place.plan, place.ends, place.came = None, {}, inf, []
        self.under_way = [one for one in self.under_way if one[1] is not place]
        failed = [job for job in place.held if not isnan(job.admitted)]
        given_back = [job for job in place.held if isnan(job.admitted)]
        for job in failed:
            self._leave(place, job, "abort")
            self._end(job, "failed")
        for job in given_back:
            self._leave(place, job, "returned")
            job.status = "sent"
        self.router.lost(place.worker, self.now)
        for job in given_back:
            self._route(job)
