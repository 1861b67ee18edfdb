"""vLLM V1's scheduling, block by block. Written from vLLM 0.32.0, whose names stand in the docstrings.

`v1/core/sched/scheduler.py` (`schedule`), `v1/core/kv_cache_manager.py` (`allocate_slots`),
`v1/core/block_pool.py`. One group of full attention; no watermark, as by default.
"""

from __future__ import annotations

from math import ceil

from naive import Job, NaiveEngine, Token

from baselines.scheduler import Scheduler
from suite.backends.cost import Cost
from suite.trace import Trace

BLOCK = 16
"""Tokens in a block."""


class Block:
    """A KV block: how many requests hold it, and all tokens up to its end once it is hashed."""

    def __init__(self) -> None:
        self.holders = 0
        self.content: tuple[Token, ...] | None = None
        self.hashed_in_step = -1


class NaiveVLLM(NaiveEngine):
    """`Scheduler.schedule` with `KVCacheManager.allocate_slots` and `BlockPool`."""

    def __init__(
        self, trace: Trace, policy: Scheduler, cost: Cost, max_running: int, token_budget: int, kv_tokens: int
    ) -> None:
        super().__init__(trace, policy, cost, max_running, token_budget, kv_tokens)
        self.free = [Block() for _ in range(kv_tokens // BLOCK)]
        self.pool_size = len(self.free)
        self.cached: dict[tuple[Token, ...], list[Block]] = {}
        self.held: dict[Job, list[Block]] = {}
        self.budget = 0
        self.plan: dict[Job, int] = {}

    def matched(self, job: Job) -> int:
        return len(self._hit(job)) * BLOCK

    def _hit(self, job: Job) -> list[Block]:
        """`find_longest_cache_hit`: whole blocks from the start, the last known token left out."""
        known, hit = job.known, []
        for end in range(BLOCK, len(known), BLOCK):
            copies = self.cached.get(tuple(known[:end]))
            if not copies:
                break
            hit.append(copies[0])
        return hit

    def _can_ever_fit(self, job: Job) -> bool:
        return ceil((len(job.prompt) + len(job.output) - 1) / BLOCK) <= self.pool_size

    def schedule(self) -> dict[Job, int]:
        self.budget, self.plan = self.token_budget, {}
        preempted = self._schedule_running()
        if not preempted:
            self._admit_waiting()
        return self.plan

    def _schedule_running(self) -> bool:
        """Whether one had to be preempted: the last that runs, perhaps the one that asked."""
        index, preempted = 0, False
        while index < len(self.running) and self.budget > 0:
            job = self.running[index]
            new = min(len(job.known) - job.computed, self.budget)
            while job in self.running and not self._grow(job, job.computed + new):
                preempted = True
                self._evacuate(self.running.pop())
            if job in self.running:
                self._plan(job, new)
                index += 1
        return preempted

    def _evacuate(self, job: Job) -> None:
        self.seen["preempted"] += 1
        self._release(job)
        self._preempt(job)

    def _plan(self, job: Job, new: int) -> None:
        self.plan[job] = new
        self.budget -= new

    def _may_try(self) -> bool:
        return self.budget > 0 and len(self.running) < self.max_running

    def _try(self, job: Job) -> bool:
        """Admit if blocks for all known tokens can be had; a free block that is hit is no longer free."""
        hit = self._hit(job)
        needed = ceil(len(job.known) / BLOCK) - len(hit) + sum(not block.holders for block in hit)
        if needed > len(self.free):
            return False
        self.seen["shared in step"] += any(block.hashed_in_step == self.steps for block in hit)
        cached = len(hit) * BLOCK
        new = min(len(job.known) - cached, self.budget)
        self._touch(hit)
        self.held[job] = hit
        self._start(job, cached)
        self.running.append(job)
        assert self._grow(job, cached + new)
        self._plan(job, new)
        return True

    def _touch(self, blocks: list[Block]) -> None:
        for block in blocks:
            if not block.holders:
                self.free.remove(block)
            block.holders += 1

    def _grow(self, job: Job, tokens: int) -> bool:
        """`allocate_slots`: blocks for so many tokens, if they can be had; the full ones are hashed."""
        blocks = self.held[job]
        missing = ceil(tokens / BLOCK) - len(blocks)
        if missing > len(self.free):
            return False
        blocks += [self._new_block() for _ in range(missing)]
        for number, block in enumerate(blocks[: tokens // BLOCK], start=1):
            if block.content is None:
                self._hash(block, tuple(job.known[: number * BLOCK]))
        return True

    def _new_block(self) -> Block:
        block = self.free[0]
        if block.content is not None:
            with self._evicting():
                self.cached[block.content].remove(block)
                block.content = None
        del self.free[0]
        block.holders = 1
        return block

    def _hash(self, block: Block, content: tuple[Token, ...]) -> None:
        copies = self.cached.setdefault(content, [])
        self.seen["duplicate"] += bool(copies)
        copies.append(block)
        block.content, block.hashed_in_step = content, self.steps

    def _after_step(self, job: Job) -> None:
        if job.status == "finished":
            self.running.remove(job)
            self._release(job)

    def _release(self, job: Job) -> None:
        """`free_blocks`, last block first: unhashed ones are reused first, hashed ones last."""
        blocks = self.held.pop(job)
        for block in blocks:
            block.holders -= 1
        idle = [block for block in reversed(blocks) if not block.holders]
        unhashed = [block for block in idle if block.content is None]
        self.free = unhashed + self.free + [block for block in idle if block.content is not None]
