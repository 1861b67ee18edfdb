"""The simulator's engines once more, the plainest way: a test oracle.

Prompts are spelled out token by token, blocks are single objects, every step is walked and every match is
searched anew. Nothing is shared with `suite.backends.simulator` but the cost of a step. Here stands what the
two have in common; `naive_vllm` and `naive_sglang` are written from the engines' own sources.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from math import nan

from baselines import scheduler
from baselines.scheduler import Scheduler
from suite.backends.cost import Cost
from suite.trace import REPLY, Request, Trace

Token = tuple[str, int]
"""Token k of segment s."""


class Job(scheduler.Request):
    """A request of the trace with its tokens and its state in an engine."""

    def __init__(self, request: Request) -> None:
        super().__init__(
            request.id, request.client, -1, nan, request.prompt_tokens, request.weight, request.priority
        )
        self.trace = request
        self.prompt: list[Token] = [(id, k) for id, tokens in request.prompt for k in range(tokens)]
        self.output: list[Token] = [(REPLY + request.id, k) for k in range(request.output_tokens)]
        self.status = "unsent"
        self.generated = self.computed = self.cached = self.preemptions = 0
        self.admitted = self.first_token = self.finish = nan

    @property
    def known(self) -> list[Token]:
        """The prompt and what was generated."""
        return self.prompt + self.output[: self.generated]


class View:
    """What a policy sees of the waiting requests."""

    def __init__(self, engine: NaiveEngine) -> None:
        self.engine = engine

    def __len__(self) -> int:
        return len(self.engine.waiting)

    def clients(self) -> Collection[str]:
        return list(self.engine.waiting_clients)

    def by_arrival(self) -> list[Job]:
        return sorted(self.engine.waiting, key=lambda job: job.sequence)

    def of(self, client: str) -> list[Job]:
        return [job for job in self.by_arrival() if job.client == client]

    def matched(self, request: scheduler.Request) -> int:
        assert isinstance(request, Job)
        return self.engine.matched(request)

    def by_longest_prefix(self, clients: Collection[str] | None = None) -> list[Job]:
        chosen = [job for job in self.by_arrival() if clients is None or job.client in clients]
        return sorted(chosen, key=lambda job: -self.matched(job))


class NaiveEngine(ABC):
    """What the two have in common: the clock, arrivals, the dialogue with the policy, the bookkeeping.

    `seen` counts the rare things, so that a test can tell that they occurred.
    """

    def __init__(
        self, trace: Trace, policy: Scheduler, cost: Cost, max_running: int, token_budget: int, kv_tokens: int
    ) -> None:
        self.policy, self.cost = policy, cost
        self.max_running, self.token_budget, self.kv_tokens = max_running, token_budget, kv_tokens
        self.jobs = [Job(request) for request in trace.requests]
        self.by_id = {job.id: job for job in self.jobs}
        self.waiting: list[Job] = []
        self.waiting_clients: list[str] = []
        self.running: list[Job] = []
        self.seen: Counter[str] = Counter()
        self.now = 0.0
        self.steps = self.sequence = 0

    def run(self) -> None:
        """Serve the whole trace, but those whom the policy never offers."""
        while True:
            self._take_arrivals()
            plan = self.schedule()
            if plan:
                self.now += self.duration(plan)
                self.execute(plan)
            elif times := [self._due(job) for job in self._sendable()]:
                self.now = max(self.now, min(times))
            else:
                break
        for job in self.waiting:
            self._lose(job, "starved")

    # -- arrivals ----------------------------------------------------------------------------------------

    def _sendable(self) -> list[Job]:
        """Unsent requests whose parents have all finished."""
        return [job for job in self.jobs if job.status == "unsent" and all(map(self._done, job.trace.after))]

    def _done(self, id: str) -> bool:
        return self.by_id[id].status == "finished"

    def _due(self, job: Job) -> float:
        return max([job.trace.arrival, *(self.by_id[id].finish + job.trace.think for id in job.trace.after)])

    def _take_arrivals(self) -> None:
        for job in sorted(self._sendable(), key=self._due):
            if self._due(job) <= self.now:
                self._arrive(job)

    def _arrive(self, job: Job) -> None:
        job.arrival = self._due(job)
        if not self.receive(job):
            self._lose(job, "rejected")

    def receive(self, job: Job) -> bool:
        """Let a request wait, if it can ever be served."""
        if not self._can_ever_fit(job):
            return False
        job.sequence = self.sequence
        self.sequence += 1
        self._wait(job)
        self.policy.arrived(job, self.now)
        return True

    def _lose(self, job: Job, status: str) -> None:
        job.status = status
        lost = {job.id}
        for later in self.jobs:
            if lost.intersection(later.trace.after):
                later.status = "cancelled"
                lost.add(later.id)

    def _wait(self, job: Job) -> None:
        job.status = "waiting"
        self.waiting.append(job)
        if job.client not in self.waiting_clients:
            self.waiting_clients.append(job.client)

    # -- admission ---------------------------------------------------------------------------------------

    def _admit_waiting(self) -> None:
        """Try what the policy offers, until one is refused or there is no room for another attempt."""
        candidates = self.policy.candidates(View(self), self.now)
        with suppress(StopIteration):
            fits: bool | None = None
            while self.waiting and fits is not False and self._may_try():
                job = next(candidates) if fits is None else candidates.send(fits)
                assert isinstance(job, Job)
                fits = self._try(job)
            if fits is False:
                candidates.send(False)
        candidates.close()

    def _start(self, job: Job, cached: int) -> None:
        self.waiting.remove(job)
        if not any(other.client == job.client for other in self.waiting):
            self.waiting_clients.remove(job.client)
        job.status = "running"
        job.computed = cached
        if job.preemptions:
            self.policy.resumed(job, cached, self.now)
            return
        job.cached, job.admitted = cached, self.now
        self.policy.admitted(job, cached, self.now)

    def _preempt(self, job: Job) -> None:
        job.preemptions += 1
        job.computed = 0
        self._wait(job)
        self.policy.preempted(job, self.now)

    # -- the step ----------------------------------------------------------------------------------------

    def execute(self, plan: dict[Job, int]) -> None:
        """At the end of a step: the planned tokens of each request are computed, with what they lead to."""
        self.steps += 1
        for job, new in plan.items():
            job.computed += new
        speaking = [job for job in plan if job.computed == len(job.known)]
        self.seen["chunked"] += len(plan) - len(speaking)
        for job in speaking:
            self._speak(job)
        for job in plan:
            self._after_step(job)
        self.policy.generated(dict.fromkeys(speaking, 1), self.now)
        for job in speaking:
            if job.status == "finished":
                self.policy.finished(job, "stop", job.generated, 0, self.now)

    def duration(self, plan: dict[Job, int]) -> float:
        """Of the step that computes these tokens."""
        contexts = {job: job.computed + new for job, new in plan.items()}
        attended = sum(sum(range(job.computed + 1, contexts[job] + 1)) for job in plan)
        return self.cost.step(sum(plan.values()), attended, sum(contexts.values()), len(plan))

    def _speak(self, job: Job) -> None:
        if not job.generated:
            job.first_token = self.now
        job.generated += 1
        if job.generated == len(job.output):
            job.finish, job.status = self.now, "finished"

    @contextmanager
    def _evicting(self) -> Iterator[None]:
        """Count evictions that take a match from a waiting request."""
        before = [self.matched(job) for job in self.waiting]
        yield
        self.seen["evicted match"] += before != [self.matched(job) for job in self.waiting]

    # -- what they differ in -----------------------------------------------------------------------------

    @abstractmethod
    def matched(self, job: Job) -> int:
        """Known tokens (after a preemption also output) in the cache; the last one never counts."""

    @abstractmethod
    def _can_ever_fit(self, job: Job) -> bool: ...

    @abstractmethod
    def schedule(self) -> dict[Job, int]:
        """Tokens each request computes in the next step, in batch order."""

    @abstractmethod
    def _may_try(self) -> bool: ...

    @abstractmethod
    def _try(self, job: Job) -> bool: ...

    @abstractmethod
    def _after_step(self, job: Job) -> None: ...
