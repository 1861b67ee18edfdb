"""Cache-aware: the rule of SGLang's router, prefix first unless loads are far apart."""

from __future__ import annotations

from collections.abc import Sequence

from baselines.least_outstanding import LeastOutstanding
from baselines.prefix_index import PrefixIndex
from baselines.router import Request, Worker


class CacheAware(LeastOutstanding):
    """Send a request where enough of its prompt is, a new one where least is held, or balance the load.

    The policy `cache_aware` of sglang-router, with its thresholds:

    - Loads are far apart if the most and the fewest outstanding requests differ by more than
      `balance_abs_threshold` and by a factor of more than `balance_rel_threshold`. Then the worker with the
      fewest gets the request, whatever it holds.
    - Otherwise, if more than `cache_threshold` of the prompt is matched, a worker with the longest match.
    - Otherwise the worker that holds least.

    All of that is in its Rust source as looked at in public copies of several releases; newer ones may send a
    new prompt elsewhere. Where several workers hold equally much, sglang-router takes one of them by chance;
    here it is the one with the fewest outstanding. It counts characters, this one tokens of full blocks. As
    there, nothing is learnt from the engines: the router goes by what it sent. Its tree is cut by least
    recent use, here to the KV pool of each worker (`PrefixIndex`), there to a number of characters.
    """

    name = "cache-aware"

    def __init__(
        self,
        *,
        cache_threshold: float = 0.3,
        balance_abs_threshold: int = 64,
        balance_rel_threshold: float = 1.5,
    ) -> None:
        if not 0 <= cache_threshold <= 1:
            raise ValueError(f"cache_threshold must be between 0 and 1, got {cache_threshold}")
        if balance_abs_threshold < 0:
            raise ValueError(f"balance_abs_threshold must not be negative, got {balance_abs_threshold}")
        if not balance_rel_threshold >= 1:
            raise ValueError(f"balance_rel_threshold must be 1 or more, got {balance_rel_threshold}")
        super().__init__()
        self.cache_threshold = cache_threshold
        self.balance_abs_threshold = balance_abs_threshold
        self.balance_rel_threshold = balance_rel_threshold
        self.index = PrefixIndex()

    def lost(self, worker: Worker, now: float) -> None:
        """Forget what it held."""
        super().lost(worker, now)
        self.index.drop(worker)

    def route(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        """By load if loads are far apart, by prefix if enough is matched, else by what is held."""
        candidates = workers if self._unbalanced(workers) else self._by_prefix(request, workers)
        chosen = super().route(request, candidates, now)
        self.index.insert(request, chosen)
        return chosen

    def _unbalanced(self, workers: Sequence[Worker]) -> bool:
        loads = [self.outstanding[worker] for worker in workers]
        fewest, most = min(loads), max(loads)
        return most - fewest > self.balance_abs_threshold and most > fewest * self.balance_rel_threshold

    def _by_prefix(self, request: Request, workers: Sequence[Worker]) -> Sequence[Worker]:
        longest, local = self.index.match(request).longest(workers)
        if longest * request.block_tokens > self.cache_threshold * request.prompt_tokens:
            return local
        least = min(map(self.index.held, workers))
        return [worker for worker in workers if self.index.held(worker) == least]
