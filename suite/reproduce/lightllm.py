"""The engine of VTC's authors, S-LoRA's router on LightLLM, in simulation, as far as schedules go.

Read from the artifact (Ying1123/VTC-artifact, slora/server/router: `manager.py` and `req_queue.py`); written
anew. It is not checked against the running engine, as the simulator's vLLM and SGLang are. It serves traces
without shared prefixes: its cache is never hit.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, repeat

from baselines.scheduler import Scheduler
from suite.backends.cost import Cost
from suite.backends.simulator import Simulator
from suite.backends.simulator.engine import Engine
from suite.backends.simulator.live import Live
from suite.backends.simulator.pool import SGLangPool
from suite.backends.simulator.step import Limits, Prefill

PATIENCE = 10
"""Decode steps after an admission before the next is tried."""
ADAPTER_TOKENS = 4 * 8
"""Tokens of the pool set apart for each client in the batch: its dummy adapter of rank 8."""
PREFILL_TOKENS = 2048 + 1024
"""Tokens of a prefill batch at most, with a pool of 10,000."""


class LightLLMEngine(Engine):
    """Prefill batches and decode batches apart; nobody is admitted whose whole output might not fit.

    A request is admitted if, at no time until all that run have ended, more tokens are held than the pool
    has: requests free theirs when they end, and it is known when. So there is no preemption.
    """

    pool: SGLangPool

    def __init__(
        self, policy: Scheduler, cost: Cost, limits: Limits, factors: Iterator[float], kv_tokens: int
    ) -> None:
        self.pool = SGLangPool(kv_tokens, 1, self._moved)
        super().__init__(policy, cost, limits, factors)
        self._since_admission = 0

    def _fits(self, live: Live) -> bool:
        return live.prompt_tokens + live.output_tokens + ADAPTER_TOKENS < self.pool.capacity

    def _plan(self) -> None:
        work = Prefill()
        if not self.batch.members or self._since_admission >= PATIENCE:
            self._admit(work)
        if work.chunks:
            self.pool.take(work.tokens)
            self._compute(work, decode=False)
            self._since_admission = 0
        elif self.batch.members:
            self.pool.take(len(self.batch.members))
            self._decode(1)
            self._since_admission += 1

    def _open(self, work: Prefill) -> bool:
        return len(self.batch.members) + len(work.chunks) < self.limits.running

    def _try(self, live: Live, work: Prefill) -> bool:
        if work.tokens + live.prompt_tokens > self.limits.tokens or not self._peak_fits(live, work):
            return False
        self._start(live, self.pool.tree.root, 0)
        work.add(live, live.prompt_tokens)
        return True

    def _peak_fits(self, live: Live, work: Prefill) -> bool:
        """Whether the pool holds what all hold at once at most, those that stay longest counted first."""
        generated = self.batch.generated
        held = [
            (m.output_tokens - generated(m) - 1, m.prompt_tokens + generated(m)) for m in self.batch.members
        ]
        held += [(m.output_tokens - 1, m.prompt_tokens + 1) for m in (live, *(m for m, _ in work.chunks))]
        held.sort(reverse=True)
        totals = accumulate(tokens for _, tokens in held)
        peak = max(left * n + total for n, ((left, _), total) in enumerate(zip(held, totals, strict=True), 1))
        clients = {m.client for m in (live, *self.batch.members, *(m for m, _ in work.chunks))}
        return peak < self.pool.capacity - ADAPTER_TOKENS * len(clients)


class LightLLM(Simulator):
    """The simulator with that engine."""

    token_budget: int = PREFILL_TOKENS
    max_running: int = 1000

    def engine_for(self, policy: Scheduler, factors: Iterator[float] | None = None) -> LightLLMEngine:
        """A fresh engine with these settings."""
        limits = Limits(self.max_running, self.token_budget, 1)
        return LightLLMEngine(policy, self.cost_model(), limits, factors or repeat(1.0), self.pool_tokens())
