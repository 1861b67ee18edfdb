"""SGLang's way of scheduling: prefill batches and decode batches apart, prefill first."""

from __future__ import annotations

from collections.abc import Iterator

from baselines.scheduler import Scheduler
from suite.backends.cost import Cost
from suite.backends.simulator.engine import Engine
from suite.backends.simulator.live import Live
from suite.backends.simulator.pool import SGLangPool
from suite.backends.simulator.step import Limits, Prefill

LEAST_ROOM = 6
"""Tokens of the pool that SGLang wants to be left beside any prompt."""

RETRACT_DECODE_STEPS = 20
"""A retraction evicts for this many decode steps of the requests that stay (SGLang's default)."""


class SGLangEngine(Engine):
    """A prefill batch whenever one can be formed, else a decode step for all.

    A request is admitted if its extend tokens and its whole output (up to `Limits.clip`) fit beside what
    running requests may still generate: with fixed output lengths (`ignore_eos`) SGLang's estimate of their
    share that is really generated is 1.
    Content enters the radix tree after it is computed. After a refusal nobody is tried until a request
    leaves. When decoding runs out of memory, requests with the least output are retracted and compute
    everything anew except what the tree still holds of their prompt. Read from SGLang 0.5.23's
    `PrefillAdder`, `get_new_batch_prefill` and `retract_decode`; page size 1, no mixed chunks, no overlap.
    """

    pool: SGLangPool

    def __init__(
        self, policy: Scheduler, cost: Cost, limits: Limits, factors: Iterator[float], kv_tokens: int
    ) -> None:
        self.pool = SGLangPool(kv_tokens, 1, self._moved)
        super().__init__(policy, cost, limits, factors)
        self._full = False
        self._reserved = 0
        """Tokens that running requests may still generate and this batch's requests will take."""
        self._unallocated = 0
        """Tokens of this batch that are promised and not yet taken."""
        self._stalled = False
        """Whether decoding has stood still for a prefill: its next step is taken alone, so that the streams
        have the wait as one gap and not spread over a stretch."""

    def _fits(self, live: Live) -> bool:
        return live.prompt_tokens + max(live.output_tokens + 1, LEAST_ROOM) < self.pool.capacity

    def _plan(self) -> None:
        work = Prefill()
        self._plan_prefill(work)
        if work.chunks:
            self.pool.take(self._unallocated)
            self._compute(work, decode=False)
            self._stalled = True
        elif self.batch.members:
            self._retract()
            self.pool.take(len(self.batch.members))
            undecided = self.chunked or (self.waiting and not self._full)
            self._decode(1 if undecided or self._stalled else self._stretch())
            self._stalled = False

    def _prefilled(self, work: Prefill) -> list[Live]:
        """As `Engine._prefilled`; after a chunk, or with no batch beside it, admission is open again."""
        ready = super()._prefilled(work)
        if self.chunked or not self.batch.members:
            self._full = False
        return ready

    def _plan_prefill(self, work: Prefill) -> None:
        if not self.batch.members:
            self._full = False
        if not self.chunked and (self._full or not self.waiting):
            return
        generated, clip = self.batch.generated, self.limits.clip
        self._reserved = sum(min(live.output_tokens - generated(live), clip) for live in self.batch.members)
        self._unallocated = 0
        if self.chunked:
            self._continue(self.chunked, work)
        if not self._full:
            self._admit(work)

    def _continue(self, live: Live, work: Prefill) -> None:
        """The next chunk of the unfinished prefill, as large as memory and budget allow."""
        room = self.pool.available - self._reserved
        limit = min(self.limits.tokens, room) if room > 0 else self.limits.tokens
        chunk = min(live.target - live.computed, limit, self.pool.available)
        if chunk > 0:
            self._promise(live, chunk, work)

    def _promise(self, live: Live, chunk: int, work: Prefill) -> None:
        whole = live.computed + chunk == live.target
        self._reserved += chunk + 1 + (min(live.output_tokens, self.limits.clip) if whole else 0)
        self._unallocated += chunk
        work.add(live, chunk)

    def _open(self, work: Prefill) -> bool:
        if work.tokens >= self.limits.tokens:
            return False
        no_slot = len(self.batch.members) + len(work.chunks) >= self.limits.running
        no_memory = self.pool.available - self._reserved <= 0
        if no_slot or (no_memory and work.chunks):
            self._full = True
            return False
        return True

    def _try(self, live: Live, work: Prefill) -> bool:
        pool = self.pool
        node, at = self._match(live)
        cached = self._usable(at, live)
        tip = pool.cut_at(node, cached)
        pool.touch(tip)
        extend = live.target - cached
        total = extend + min(live.output_tokens - live.generated, self.limits.clip) + 1
        if total >= pool.available - pool.idle_blocks(tip, cached) - self._reserved:
            self._full = bool(work.chunks or self.batch.members)
            return False
        self._start(live, tip, cached)
        self._promise(live, min(extend, self.limits.tokens - work.tokens), work)
        return True

    def _retract(self) -> None:
        """Free memory for one decode step by taking requests back, those with the least output first."""
        batch = self.batch
        self.pool.make_free(len(batch.members))
        if len(batch.members) <= self.pool.free:
            return
        self._full = False
        keep = sorted(
            batch.members, key=lambda live: (batch.generated(live), -live.prompt_tokens), reverse=True
        )
        while 1 < len(keep) > self.pool.available:
            self._preempt(keep.pop(), keep_output=False)
            self.pool.make_free(RETRACT_DECODE_STEPS * len(keep))
        batch.reorder(keep)
        if self.chunked and len(batch.members) > self.pool.available:
            self._preempt(self.chunked, keep_output=False)

    def _cache(self, live: Live, computed: int) -> None:
        """As `Engine._cache`; prompt and output can be evicted apart."""
        super()._cache(live, computed)
        if live.prompt_tokens < live.tip.end:
            self.pool.cut_at(live.tip, live.prompt_tokens)

    def _finish(self, live: Live) -> None:
        super()._finish(live)
        self._full = False
