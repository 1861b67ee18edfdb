"""The engine's loop: receive, schedule, compute, on a virtual clock. What engines differ in is in subclasses.

Invariants, held by property tests: no request is lost or served twice; tokens are conserved (extend + cached
= prompt, output as asked for); no block leaks or has two owners; nothing happens before its cause; the
policies that claim it are work-conserving; service charged equals service logged.
"""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf

from baselines.scheduler import Request, Scheduler
from baselines.waiting import WaitingQueue
from suite.backends.simulator.batch import Batch
from suite.backends.simulator.journal import Journal
from suite.backends.simulator.live import Arrivals, Live
from suite.backends.simulator.noise import Durations
from suite.backends.simulator.pool import Pool
from suite.backends.simulator.tree import Mark, Node, cut


class PolicyError(RuntimeError):
    """The policy does what no host can go along with."""


CLIP = 4096
"""Of a request's coming output, SGLang reserves at most this many tokens (its default)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step may hold: running requests, and tokens computed in it (for SGLang, of prefill only).

    `block` is the size of a block of vLLM's KV cache in tokens; SGLang's holds one. `clip` is what SGLang's
    admission reserves for a request's output at most.
    """

    running: int
    tokens: int
    block: int = 16
    clip: int = CLIP


class Prefill:
    """The prefill work of one step: which requests compute how many tokens."""

    __slots__ = ("attended", "chunks", "read", "tokens")

    def __init__(self) -> None:
        self.chunks: list[tuple[Live, int]] = []
        self.tokens = self.attended = self.read = 0

    def add(self, live: Live, chunk: int) -> None:
        """Compute the next `chunk` tokens of a request."""
        self.chunks.append((live, chunk))
        self.tokens += chunk
        self.attended += chunk * live.computed + chunk * (chunk + 1) // 2
        self.read += live.computed + chunk


@contextmanager
def collector_paused() -> Iterator[None]:
    """No cyclic garbage collection: a run makes no cycles of garbage, and the search takes a fifth of it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Engine(ABC):
    """One replica that serves requests under a policy. Call `run` once.

    Afterwards the requests carry their times and counts, and `journal` holds the service log.
    """

    pool: Pool

    def __init__(self, requests: list[Live], policy: Scheduler, cost: Durations, limits: Limits) -> None:
        self.requests = requests
        self.policy = policy
        self.cost = cost
        self.limits = limits
        self.now = 0.0
        self.steps = 0
        self.decisions = 0
        self.journal = Journal()
        self.waiting = WaitingQueue(self)
        self.batch = Batch(self.pool.block)
        self.chunked: Live | None = None
        """The request whose prefill has begun and not ended."""
        self._arrivals = Arrivals(requests)
        self._received = 0
        self._done = 0
        self._listens = type(policy).generated is not Scheduler.generated

    def run(self, progress: Callable[[float], None]) -> None:
        """Serve everything that the policy offers. `progress` is told the share done, now and then."""
        with collector_paused():
            while self._receive():
                done = self._done
                self._step()
                if done // 64 != self._done // 64:
                    progress(self._done / len(self.requests))
        assert self.pool.available == self.pool.capacity, "blocks leaked"

    # -- arrivals ------------------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Take in what has arrived, jumping ahead while there is nothing to do. False when all is done."""
        self._take_arrivals()
        while not (self.batch.members or self.waiting or self.chunked):
            time = self._arrivals.next_time()
            if time == inf:
                return False
            self.now = max(self.now, time)
            self._take_arrivals()
        return True

    def _take_arrivals(self) -> None:
        if self._arrivals.next_time() <= self.now:
            self.journal.settle(self.batch.by_client)
            for live in self._arrivals.due(self.now):
                self._arrive(live)

    def _arrive(self, live: Live) -> None:
        if not self._fits(live):
            self._lose(live, "rejected")
            return
        live.sequence = self._received
        self._received += 1
        self._queue(live)
        self.policy.arrived(live, self.now)

    def _lose(self, live: Live, status: str) -> None:
        """The request is never served, nor is what comes after it."""
        live.status = status
        self._arrivals.lost(live)
        self._done += 1

    def _queue(self, live: Live) -> None:
        live.queued = True
        self.waiting.add(live)

    # -- what engines differ in ----------------------------------------------------------------------------

    @abstractmethod
    def _fits(self, live: Live) -> bool:
        """Whether the request can ever be served."""

    @abstractmethod
    def _step(self) -> None:
        """Schedule and compute one step, or a stretch of decode steps in which nothing can be decided."""

    @abstractmethod
    def _open(self, work: Prefill) -> bool:
        """Whether there is a free slot, and token budget left, for one more request in this step."""

    @abstractmethod
    def _try(self, live: Live, work: Prefill) -> bool:
        """Admit the request into this step's work if memory allows."""

    # -- admission -----------------------------------------------------------------------------------------

    def _admit(self, work: Prefill) -> None:
        """Ask the policy whom to admit until it has no more, one is refused, or slots or budget run out."""
        if not self.waiting or not self._open(work):
            return
        self.decisions += 1
        offers = self.policy.candidates(self.waiting, self.now)
        if not isinstance(offers, Generator):
            raise self._policy_error("has a `candidates` that is not a generator; it must `yield` requests")
        answer: bool | None = None
        while answer is not False:
            try:
                offer = offers.send(answer)  # type: ignore[arg-type]  # None starts it
            except StopIteration:
                return
            answer = self._try(self._checked(offer), work)
            if answer and not self._open(work):
                break
        else:
            with suppress(StopIteration):
                offers.send(False)
        offers.close()

    def _checked(self, offer: Request) -> Live:
        if not (isinstance(offer, Live) and offer.queued):
            raise self._policy_error(f"offers {offer!r}, which is not a waiting request")
        return offer

    def _match(self, live: Live) -> tuple[Node, int]:
        """The deepest cached node of a waiting request's content and the tokens matched."""
        if live.followed:
            return live.node, live.at
        node, at, _ = self.pool.tree.walk(self.pool.tree.root, live.content)
        return node, at

    def _usable(self, at: int, live: Live) -> int:
        """Of `at` matched tokens, those that spare work: full blocks, and never the last token."""
        block = self.pool.block
        return min(at, live.target - 1) // block * block

    def _start(self, live: Live, tip: Node, cached: int) -> None:
        """Move a request from waiting to prefill; its cached prefix is held up to `tip`."""
        self.waiting.remove(live)
        live.queued = False
        self.pool.hold(tip)
        live.tip, live.beyond = tip, cut(live.content, tip.end, live.target)[1]
        live.computed = cached
        if live.preemptions:
            self.policy.resumed(live, cached, self.now)
            return
        live.admitted, live.cached = self.now, cached
        self.journal.settle(self.batch.by_client)
        self.journal.rows.append((self.now, live.client, live.prompt_tokens - cached, cached, 0, 0))
        self.policy.admitted(live, cached, self.now)

    # -- computing -----------------------------------------------------------------------------------------

    def _compute(self, work: Prefill, decode: bool) -> None:
        """One step: the prefill work and, if `decode`, a token for every member of the batch."""
        size, context = (len(self.batch.members), self.batch.context) if decode else (0, 0)
        self.now += self.cost.step(
            work.tokens + size, work.attended + context, work.read + context, size + len(work.chunks)
        )
        self._advance(1, 1 if decode else 0, self._prefilled(work))

    def _decode(self, steps: int) -> None:
        """A stretch of decode steps, memory for which is taken."""
        self.now += self.cost.decode(len(self.batch.members), self.batch.context, steps)
        self._advance(steps, steps, [])

    def _prefilled(self, work: Prefill) -> list[Live]:
        """Account for computed chunks; returns the requests that now have their next token."""
        ready = []
        for live, chunk in work.chunks:
            if live.preemptions:
                self._recomputed(live, chunk)
            live.computed += chunk
            self._cache(live, live.computed)
            if live.computed < live.target:
                self.chunked = live
                continue
            ready.append(live)
            if live is self.chunked:
                self.chunked = None
        return ready

    def _recomputed(self, live: Live, chunk: int) -> None:
        again = min(live.computed + chunk, live.most_computed) - live.computed
        if again > 0:
            live.recomputed += again
            self.journal.settle(self.batch.by_client)
            self.journal.rows.append((self.now, live.client, 0, 0, again, 0))

    def _cache(self, live: Live, computed: int) -> None:
        """Put a request's full blocks up to `computed` tokens into the prefix cache."""
        end = computed // self.pool.block * self.pool.block
        if end > live.tip.end:
            live.tip, live.beyond = self.pool.insert(live.tip, live.beyond, end, live.target)

    def _advance(self, steps: int, decoded: int, ready: list[Live]) -> None:
        """Hand out tokens: `decoded` to each member of the batch, one to each request that is `ready`."""
        batch = self.batch
        self.steps += steps
        if decoded and batch.members:
            batch.advance(decoded)
            self.journal.decoded(self.now, decoded)
        if self._listens:
            tokens: dict[Request, int] = dict.fromkeys(batch.members, decoded) if decoded else {}
            tokens.update(dict.fromkeys(ready, 1))
            if tokens:
                self.policy.generated(tokens, self.now)
        ended = decoded and batch.members and not batch.steps_to_end()
        if ended or ready:
            self.journal.settle(batch.by_client)
        if ended:
            for live in batch.ended():
                batch.leave(live)
                self._finish(live)
        for live in ready:
            self._first_token(live)

    def _first_token(self, live: Live) -> None:
        """The token that ends a prefill."""
        self.journal.rows.append((self.now, live.client, 0, 0, 0, 1))
        self.journal.first_tokens.append((self.now, live))
        live.generated += 1
        if live.generated == 1:
            live.first_token = self.now
        if live.generated == live.output_tokens:
            self._finish(live)
        else:
            self.batch.join(live)

    # -- leaving -------------------------------------------------------------------------------------------

    def _finish(self, live: Live) -> None:
        live.status, live.finish = "finished", self.now
        live.extend_content()
        self._cache(live, live.computed)
        self._release(live)
        self.policy.finished(live, "stop", live.output_tokens, 0, self.now)
        self._arrivals.served(live)
        self._done += 1

    def _release(self, live: Live) -> None:
        """Free a request's memory; what is cached of it becomes idle."""
        self.pool.give_back(self.pool.blocks(live.computed) - live.tip.end // self.pool.block)
        self.pool.drop(live.tip)

    def _preempt(self, live: Live, keep_output: bool) -> None:
        """Take a running request's memory and let it wait again; `keep_output` leaves its blocks cached."""
        self.journal.settle(self.batch.by_client)
        if live is self.chunked:
            self.chunked = None
        else:
            self.batch.leave(live)
        live.extend_content()
        if keep_output:
            self._cache(live, live.computed)
        self._release(live)
        live.preemptions += 1
        live.most_computed = max(live.most_computed, live.computed)
        self._queue(live)
        self.policy.preempted(live, self.now)

    # -- decode stretches ----------------------------------------------------------------------------------

    def _stretch(self) -> int:
        """Decode steps until something can happen: an end, an arrival, or memory running out.

        Blocks for the first step are taken by the caller, those for the others here.
        """
        batch, pool = self.batch, self.pool
        steps = batch.steps_to_end()
        arrival = self._arrivals.next_time()
        if arrival < inf:
            steps = self.cost.steps_to(arrival - self.now, len(batch.members), batch.context, steps)
        first = batch.blocks_needed(1)
        while (more := batch.blocks_needed(steps) - first) > pool.available:
            steps = max(1, min(steps - 1, steps * pool.available // more))
        if more:
            pool.take(more)
        return steps

    def _idle(self) -> None:
        """Nothing runs and nobody was admitted: wait for an arrival that may change the policy's mind."""
        time = self._arrivals.next_time()
        if time < inf:
            self.now = max(self.now, time)
        else:
            self._starve()

    def _starve(self) -> None:
        """Nothing else will ever happen: those that wait are never served."""
        for live in list(self.waiting.by_arrival()):
            assert isinstance(live, Live)
            self.waiting.remove(live)
            live.queued = False
            self._lose(live, "starved")

    def _policy_error(self, what: str) -> PolicyError:
        return PolicyError(f"scheduler {type(self.policy).__name__} {what}")

    # -- prefix matches of waiting requests (`baselines.waiting.PrefixMatches`) ------------------------------

    def follow(self, request: Request) -> int:
        """Mark the request's content in the tree; `moved` tells of changes."""
        assert isinstance(request, Live)
        request.followed = True
        self.pool.tree.mark(request)
        return self._usable(request.at, request)

    def unfollow(self, request: Request) -> None:
        """Take the mark away."""
        assert isinstance(request, Live)
        request.followed = False
        self.pool.tree.unmark(request)

    def _moved(self, mark: Mark) -> None:
        """A waiting request's match has changed."""
        assert isinstance(mark, Live)
        self.waiting.rematched(mark, self._usable(mark.at, mark))
