"""One engine: receive, schedule, compute, on a virtual clock. What engines differ in is in subclasses.

Invariants, held by property tests: no request is lost or served twice; tokens are conserved (extend + cached
= prompt, output as asked for); no block leaks or has two owners; nothing happens before its cause; the
policies that claim it are work-conserving; service charged equals service logged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Generator, Iterator
from contextlib import suppress
from math import inf
from operator import attrgetter

from baselines.scheduler import Request, Scheduler
from baselines.waiting import WaitingQueue
from suite.backends.cost import Cost
from suite.backends.simulator.batch import Batch
from suite.backends.simulator.journal import Journal
from suite.backends.simulator.live import Live
from suite.backends.simulator.pool import Pool
from suite.backends.simulator.step import NO_WORK, Limits, Prefill
from suite.backends.simulator.tree import Mark, Node, cut


class PolicyError(RuntimeError):
    """The policy does what no host can go along with."""


_sequence = attrgetter("sequence")


class Engine(ABC):
    """One replica that serves what it is given, under a policy, by the clock of its host.

    The host (`suite.backends.simulator.cluster`) calls `deliver` when a request comes, `begin` while no step
    is under way and something has changed, and `end` at the time `ends`. Each step takes the next of
    `factors` as long as the cost model says. `journal` holds the service log.
    """

    pool: Pool

    def __init__(self, policy: Scheduler, cost: Cost, limits: Limits, factors: Iterator[float]) -> None:
        self.policy = policy
        self.cost = cost
        self.limits = limits
        self.now = 0.0
        """When the step under way began, or the last one ended."""
        self.ends = inf
        """When the step, or the stretch of decode steps, under way ends; infinity if there is none."""
        self.steps = 0
        self.decisions = 0
        self.journal = Journal()
        self.waiting = WaitingQueue(self)
        self.batch = Batch(self.pool.block)
        self.chunked: Live | None = None
        """The request whose prefill has begun and not ended."""
        self.started: list[Live] = []
        """Who got a first token since the host looked; it empties the list."""
        self.left: list[Live] = []
        """Who was served or rejected since the host looked; it empties the list."""
        self._delivered: list[Live] = []
        self._received = 0
        self._factors = factors
        self._factor = 1.0
        self._work = NO_WORK
        self._steps = 0
        """Of the stretch under way; of them the batch decodes in `_decoded`: all or none."""
        self._decoded = 0
        self._listens = type(policy).generated is not Scheduler.generated

    # -- the host's clock ----------------------------------------------------------------------------------

    def deliver(self, live: Live, now: float) -> None:
        """A request comes. It is taken in before the next decision, for which a stretch is cut short."""
        live.arrival = now
        self._delivered.append(live)
        if self._steps > 1 and self.ends < inf:
            self._cut(now)

    def begin(self, now: float) -> None:
        """Take in who came and decide. Afterwards a step is under way, unless the policy offers nobody."""
        self.now = now
        self._receive()
        if self.batch.members or self.waiting or self.chunked:
            self._plan()

    def end(self) -> None:
        """The step or stretch under way ends: hand out its tokens."""
        self.now, self.ends = self.ends, inf
        if self._decoded > 1:
            self.pool.take(self.batch.blocks_needed(self._decoded) - self.batch.blocks_needed(1))
        self._advance(self._steps, self._decoded, self._prefilled(self._work) if self._work.chunks else [])

    def starve(self) -> list[Live]:
        """Nothing will ever happen any more: give up those that wait."""
        starved = [live for live in self.waiting.by_arrival() if isinstance(live, Live)]
        for live in starved:
            self._unqueue(live)
            live.status = "starved"
        return starved

    def crash(self, now: float) -> None:
        """The replica dies, in the middle of a step perhaps. Account for what its requests have had.

        Steps of a stretch that ended by now were made. What was charged and is not computed is given back.
        """
        prefilling = {live for live, _ in self._work.chunks} if self.ends < inf else set()
        self._break_off(now)
        self.journal.settle(self.batch.by_client)
        for live in list(self.batch.members):
            self.batch.leave(live)
        for live in sorted(prefilling | ({self.chunked} if self.chunked else set()), key=_sequence):
            if not live.preemptions and live.computed < live.target:
                self.journal.rows.append((now, live.client, live.computed - live.target, 0, 0, 0))

    # -- receiving -----------------------------------------------------------------------------------------

    def _receive(self) -> None:
        if self._delivered:
            self.journal.settle(self.batch.by_client)
            for live in self._delivered:
                self._arrive(live)
            self._delivered.clear()

    def _arrive(self, live: Live) -> None:
        if not self._fits(live):
            live.status = "rejected"
            self.left.append(live)
            return
        live.sequence = self._received
        self._received += 1
        self._queue(live)
        self.policy.arrived(live, self.now)

    def _queue(self, live: Live) -> None:
        live.queued = True
        self.waiting.add(live)

    def _unqueue(self, live: Live) -> None:
        self.waiting.remove(live)
        live.queued = False

    # -- what engines differ in ----------------------------------------------------------------------------

    @abstractmethod
    def _fits(self, live: Live) -> bool:
        """Whether the request can ever be served."""

    @abstractmethod
    def _plan(self) -> None:
        """Schedule one step, or a stretch of decode steps in which nothing can be decided."""

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
        self._unqueue(live)
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
        """Begin a step: the prefill work and, if `decode`, a token for every member of the batch."""
        size, context = (len(self.batch.members), self.batch.context) if decode else (0, 0)
        seconds = self.cost.step(
            work.tokens + size, work.attended + context, work.read + context, size + len(work.chunks)
        )
        self._work, self._steps, self._decoded = work, 1, int(decode)
        self._factor = next(self._factors)
        self.ends = self.now + self._factor * seconds

    def _decode(self, steps: int) -> None:
        """Begin a stretch of decode steps, for the first of which memory is taken and for the rest there."""
        self._work, self._steps, self._decoded = NO_WORK, steps, steps
        self._factor = next(self._factors)
        self.ends = self._end_of(steps)

    def _end_of(self, steps: int) -> float:
        """When so many steps of the stretch under way have been made."""
        return self.now + self._factor * self.cost.decode(len(self.batch.members), self.batch.context, steps)

    def _steps_to(self, time: float) -> int:
        """The fewest steps of the stretch under way that reach a time before its end."""
        seconds = (time - self.now) / self._factor
        return self.cost.steps_to(seconds, len(self.batch.members), self.batch.context, self._steps)

    def _cut(self, time: float) -> None:
        """End the stretch under way with the step that is the first to end at `time` or later."""
        steps = self._steps_to(time)
        while (ends := self._end_of(steps)) < time and steps < self._steps:  # a matter of rounding
            steps += 1
        self._steps = self._decoded = steps
        self.ends = ends

    def _break_off(self, time: float) -> None:
        """Keep the steps of the stretch under way that ended by `time`, one before its end; nothing else."""
        if self._decoded > 1 and self.ends < inf:
            steps = self._steps_to(time)
            while steps and self._end_of(steps) > time:
                steps -= 1
            if steps:
                self._steps = self._decoded = steps
                self.ends = self._end_of(steps)
                self.end()
        self.ends = inf

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
            self.started.append(live)
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
        self.left.append(live)

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
        """Decode steps until a request ends or memory runs out; that for the first step is taken already."""
        steps, needed = self.batch.steps_to_end(), self.batch.blocks_needed
        room = self.pool.available + needed(1)
        if needed(steps) <= room:
            return steps
        return bisect_right(range(1, steps), room, key=needed)

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
