"""vLLM V1's way of scheduling: one loop, prefill and decode mixed in every step."""

from __future__ import annotations

from collections.abc import Iterator

from baselines.scheduler import Scheduler
from suite.backends.cost import Cost
from suite.backends.simulator.engine import Engine
from suite.backends.simulator.live import Live
from suite.backends.simulator.pool import VLLMPool
from suite.backends.simulator.step import Limits, Prefill


class VLLMEngine(Engine):
    """Running requests first (decodes, then the unfinished prefill), waiting ones with what budget is left.

    A request is admitted if blocks for all of its known tokens can be had; its full blocks can be matched as
    soon as they are allocated, by the next request of the same step. A decode that finds no block preempts
    the request that started last, which waits again and computes its tokens anew; a step that preempts admits
    nobody. Read from vLLM 0.32.0's `Scheduler.schedule` and `KVCacheManager.allocate_slots`.
    """

    def __init__(
        self, policy: Scheduler, cost: Cost, limits: Limits, factors: Iterator[float], kv_tokens: int
    ) -> None:
        self.pool = VLLMPool(kv_tokens // limits.block, limits.block, self._moved)
        super().__init__(policy, cost, limits, factors)

    def _fits(self, live: Live) -> bool:
        return self.pool.blocks(live.prompt_tokens + live.output_tokens - 1) <= self.pool.capacity

    def _plan(self) -> None:
        preemptions = self._make_room()
        work = Prefill()
        if self.chunked:
            preemptions += self._continue(self.chunked, work)
        if not preemptions:
            self._admit(work)
        if work.chunks:
            self._compute(work, decode=True)
        elif self.batch.members:
            undecided = self.waiting and self._open(work)
            self._decode(1 if undecided or preemptions or self.chunked else self._stretch())
        elif preemptions:
            self._plan()  # all that ran wait again: the next step admits

    def _make_room(self) -> int:
        """Take the blocks that decoding needs in this step, preempting if there are too few."""
        needed = self.batch.blocks_needed(1)
        if needed <= self.pool.available:
            if needed:
                self.pool.take(needed)
            return 0
        preemptions = 0
        for live in list(self.batch.members):
            if live not in self.batch.members or not self.batch.needs_block(live):
                continue
            while live in self.batch.members and not self.pool.available:
                self._preempt(self.chunked or next(reversed(self.batch.members)), keep_output=True)
                preemptions += 1
            if live in self.batch.members:
                self.pool.take(1)
        return preemptions

    def _continue(self, live: Live, work: Prefill) -> int:
        """The next chunk of the unfinished prefill; returns 1 if it had to be preempted, being the last."""
        chunk = min(live.target - live.computed, self._budget(work))
        needed = self.pool.blocks(live.computed + chunk) - self.pool.blocks(live.computed)
        if needed > self.pool.available:
            self._preempt(live, keep_output=True)
            return 1
        if chunk > 0:
            self._allocate(live, chunk, work)
        return 0

    def _budget(self, work: Prefill) -> int:
        return self.limits.tokens - len(self.batch.members) - work.tokens

    def _open(self, work: Prefill) -> bool:
        return self._budget(work) > 0 and len(self.batch.members) + len(work.chunks) < self.limits.running

    def _try(self, live: Live, work: Prefill) -> bool:
        pool = self.pool
        node, at = self._match(live)
        cached = self._usable(at, live)
        needed = pool.blocks(live.target) - cached // pool.block + pool.idle_blocks(node, cached)
        if needed > pool.available:
            return False
        matched = at if at // pool.block * pool.block == cached else cached
        self._start(live, pool.cut_at(node, matched), cached)
        self._allocate(live, min(live.target - cached, self._budget(work)), work)
        return True

    def _allocate(self, live: Live, chunk: int, work: Prefill) -> None:
        """Take blocks for a chunk and hash the full ones at once."""
        self.pool.take(self.pool.blocks(live.computed + chunk) - self.pool.blocks(live.computed))
        work.add(live, chunk)
        self._cache(live, live.computed + chunk)
