"""Preble's E2 (Srivatsa et al., arXiv 2407.00023, sections 3.2 and 3.3): exploit a cache or explore by
cost."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from baselines.prefix_index import Match, Node, PrefixIndex
from baselines.router import End, Request, Router, Worker
from baselines.scheduler import must_be_positive

REBALANCED_AFTER = 50
"""Requests per worker before any load is moved."""
HOT = 2
"""Requests within the window that make a prefix worth moving."""


@dataclass(slots=True)
class _Sent:
    """A request that was sent within the window."""

    worker: Worker
    time: float
    uncached: int
    end: Node
    prefix: Node


@dataclass(slots=True)
class _Work:
    """What a worker was sent within the window: requests, and tokens of their prompts."""

    requests: int = 0
    prompt: int = 0
    uncached: int = 0

    def add(self, requests: int, prompt: int, uncached: int) -> None:
        self.requests += requests
        self.prompt += prompt
        self.uncached += uncached


@dataclass(slots=True)
class _Mean:
    total: float = 0.0
    count: int = 0


@dataclass(slots=True)
class _Waits:
    """How long requests for a prefix waited, in this half of the window and in the one before."""

    half: float
    began: float
    before: _Mean = field(default_factory=_Mean)
    recent: _Mean = field(default_factory=_Mean)

    def add(self, wait: float, now: float) -> None:
        self._turn(now)
        self.recent.total += wait
        self.recent.count += 1

    def doubled(self, now: float) -> bool:
        """Whether the mean of this half is at least twice that of the one before."""
        self._turn(now)
        before, recent = self.before, self.recent
        return bool(
            before.count and recent.count and recent.total * before.count >= 2 * before.total * recent.count
        )

    def _turn(self, now: float) -> None:
        if now < self.began + self.half:
            return
        self.before = self.recent if now < self.began + 2 * self.half else _Mean()
        self.recent, self.began = _Mean(), now


class Preble(Router):
    """Send a request to its prefix if that is most of it, otherwise where it costs least.

    The cost of a worker, in seconds of its time, is L + M + P: what it was sent within the window H (prompt
    tokens not cached, and outputs of average length); what the prefixes it would evict would cost to compute
    again, each by the share of the worker's requests that hit it; and what of this prompt it has to compute.
    Times are linear in tokens.

    - *Exploit* if less of the prompt is missed than cached: the cheapest of the workers with the longest
      match.
    - *Explore* otherwise: the cheapest of all; but if a worker is decode-heavy, that one, as it has prefill
      to spare.
    - *Rebalance*: while the most loaded worker has `balance` times the load of the least, a request that
      would exploit there goes to the least loaded one, if its prefix was hit there at least twice in the
      window; not before 50 requests per worker.
    - *Replicate*: if requests for a prefix waited (until their first token) twice as long in this half of the
      window as in the half before, the next goes to the cheapest worker that does not hold it.

    Paper and code differ, and leave open; decided:

    - *Costs.* Preble's regressions are of other models. Ours are Llama-3.1-8B on an A100 by its roofline: a
      prompt token 2 * 8e9 FLOP at 60 % of 312 TFLOP/s; an output token its share in a batch of 32 of reading
      16 GB of weights at 2 TB/s. Attention is left out.
    - *L* counts all requests of the window, finished or not, as in the paper; the code counts the decoding
      only of those that run. The average output is of all workers; before any is known it is `output_guess`.
    - *Decode-heavy* is a worker of whose prompt tokens in the window more than `imbalance` were cached, the
      one with the largest share. So the code; the paper has a ratio of decoding to prefill and no number.
    - *Rebalancing* is looked at when a request exploits, not after each assignment. The code moves whole
      subtrees to the other worker; here their requests go there while the loads differ, which takes the
      prefix along.
    - *Replication* starts the record of the prefix anew. The code does it only for the sole hot prefix of a
      worker.
    - *Evictions* are those reported, or the least recently sent beyond the KV pool (`PrefixIndex`).
    - A request that comes back was never sent. Ties go to the worker that joined first.
    """

    name = "preble"

    def __init__(
        self,
        *,
        prefill_seconds: float = 8.5e-5,
        decode_seconds: float = 2.5e-4,
        window: float = 180.0,
        imbalance: float = 0.7,
        balance: float = 1.5,
        output_guess: float = 45.0,
    ) -> None:
        if not 0 <= imbalance <= 1:
            raise ValueError(f"imbalance must be between 0 and 1, got {imbalance}")
        if not balance >= 1:
            raise ValueError(f"balance must be 1 or more, got {balance}")
        self.prefill_seconds = must_be_positive("prefill_seconds", prefill_seconds)
        self.decode_seconds = must_be_positive("decode_seconds", decode_seconds)
        self.window = must_be_positive("window", window)
        self.imbalance = imbalance
        self.balance = balance
        self.output_guess = must_be_positive("output_guess", output_guess)
        self.index = PrefixIndex()
        self._routed = 0
        self._work: dict[Worker, _Work] = {}
        self._sent: OrderedDict[Request, _Sent] = OrderedDict()
        self._outputs: deque[tuple[float, int]] = deque()
        self._output_tokens = 0
        self._waits: OrderedDict[tuple[Node, Worker], _Waits] = OrderedDict()

    def joined(self, worker: Worker, now: float) -> None:
        """A worker begins with nothing sent."""
        self._work[worker] = _Work()

    def lost(self, worker: Worker, now: float) -> None:
        """Forget what it was sent and holds."""
        for request in [request for request, sent in self._sent.items() if sent.worker is worker]:
            self._forget(request)
        for key in [key for key in self._waits if key[1] is worker]:
            del self._waits[key]
        del self._work[worker]
        self.index.drop(worker)

    def route(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        """Exploit or explore (Algorithms 1 and 2)."""
        self._expire(now)
        match = self.index.match(request)
        longest, holders = match.longest(workers)
        cached = longest * request.block_tokens
        if request.prompt_tokens - cached < cached:
            chosen = self._exploit(request, match, holders, workers, now)
        else:
            chosen = self._explore(request, match, workers)
        self._send(request, match, chosen, now)
        return chosen

    def started(self, request: Request, worker: Worker, now: float) -> None:
        """Note how long it waited for its prefix."""
        sent = self._sent.get(request)
        if sent is None or not sent.prefix.run:
            return
        key = sent.prefix, worker
        if key not in self._waits:
            self._waits[key] = _Waits(self.window / 2, now)
        self._waits[key].add(now - sent.time, now)
        self._waits.move_to_end(key)

    def finished(self, request: Request, worker: Worker, end: End, output_tokens: int, now: float) -> None:
        """Note how long its output was; if it comes back it was never sent."""
        if end == "returned":
            self._forget(request)
        elif output_tokens:
            self._outputs.append((now, output_tokens))
            self._output_tokens += output_tokens

    def evicted(self, worker: Worker, blocks: Sequence[Hashable], kept: int, now: float) -> None:
        """Forget what the worker's cache has lost."""
        self.index.evict(worker, blocks, kept)

    # -- decisions -----------------------------------------------------------------------------------------

    def _exploit(
        self, request: Request, match: Match, holders: Sequence[Worker], workers: Sequence[Worker], now: float
    ) -> Worker:
        chosen = self._cheapest(request, match, holders)
        waits = self._waits.get((match.end, chosen))
        others = [worker for worker in workers if worker not in holders]
        if others and waits and waits.doubled(now):
            del self._waits[match.end, chosen]
            return self._cheapest(request, match, others)
        return self._relief(chosen, match, workers) or chosen

    def _relief(self, chosen: Worker, match: Match, workers: Sequence[Worker]) -> Worker | None:
        """The least loaded worker, if the chosen one is the most loaded and by too much."""
        if self._routed < REBALANCED_AFTER * len(workers) or match.end.hits.get(chosen, 0) < HOT:
            return None
        loads = {worker: self._load(worker) for worker in workers}
        least = min(workers, key=loads.__getitem__)
        overloaded = loads[chosen] == max(loads.values()) and loads[chosen] > self.balance * loads[least]
        return least if overloaded else None

    def _explore(self, request: Request, match: Match, workers: Sequence[Worker]) -> Worker:
        warmest = max(workers, key=self._cached_share)
        if self._cached_share(warmest) > self.imbalance:
            return warmest
        return self._cheapest(request, match, workers)

    def _cached_share(self, worker: Worker) -> float:
        work = self._work[worker]
        return 1 - work.uncached / work.prompt if work.prompt else 0.0

    # -- costs ---------------------------------------------------------------------------------------------

    def _cheapest(self, request: Request, match: Match, workers: Sequence[Worker]) -> Worker:
        if len(workers) == 1:
            return workers[0]
        return min(workers, key=lambda worker: self._cost(request, match, worker))

    def _cost(self, request: Request, match: Match, worker: Worker) -> float:
        """L + M + P, in seconds."""
        held = match.held.get(worker, 0)
        missed = request.prompt_tokens - held * request.block_tokens
        evicted = self._eviction(worker, len(request.blocks) - held, request.block_tokens)
        return self._load(worker) + evicted + self.prefill_seconds * missed

    def _load(self, worker: Worker) -> float:
        """L."""
        work = self._work[worker]
        mean = self._output_tokens / len(self._outputs) if self._outputs else self.output_guess
        return self.prefill_seconds * work.uncached + self.decode_seconds * mean * work.requests

    def _eviction(self, worker: Worker, blocks: int, block_tokens: int) -> float:
        """M."""
        victims = self.index.victims(worker, blocks, block_tokens)
        hit = sum(len(node.run) * node.hits.get(worker, 0) for node in victims)
        return self.prefill_seconds * block_tokens * hit / self._work[worker].requests if hit else 0.0

    # -- the window ----------------------------------------------------------------------------------------

    def _send(self, request: Request, match: Match, worker: Worker, now: float) -> None:
        self._routed += 1
        uncached = request.prompt_tokens - match.held.get(worker, 0) * request.block_tokens
        end = self.index.insert(request, worker)
        path = list(end.lineage())
        prefix = match.end if match.end in path else match.end.parent  # it was cut in two where they part
        self._sent[request] = _Sent(worker, now, uncached, end, prefix)
        self._work[worker].add(1, request.prompt_tokens, uncached)
        for node in path:
            node.hits[worker] = node.hits.get(worker, 0) + 1

    def _forget(self, request: Request) -> None:
        """Take back what `_send` added, unless the window has passed."""
        sent = self._sent.pop(request, None)
        if sent is None:
            return
        self._work[sent.worker].add(-1, -request.prompt_tokens, -sent.uncached)
        for node in sent.end.lineage():
            node.hits[sent.worker] -= 1

    def _expire(self, now: float) -> None:
        """Forget what was sent, generated and waited before the window."""
        since = now - self.window
        while self._sent and next(iter(self._sent.values())).time < since:
            self._forget(next(iter(self._sent)))
        while self._outputs and self._outputs[0][0] < since:
            self._output_tokens -= self._outputs.popleft()[1]
        while self._waits and next(iter(self._waits.values())).began < since:
            self._waits.popitem(last=False)
