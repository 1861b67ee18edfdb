"""What a routing decision costs: `route`, `started` and `finished` of each router over a full prefix index.

CPU time, so that what else the machine does counts little. It depends on the machine all the same; what is
compared ran in one process.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from time import thread_time

import numpy as np
from rich.markup import escape
from rich.table import Column, Table

from baselines.prefix_index import PrefixIndex
from baselines.router import Request, Router, Worker
from suite.policies import available_routers, parse_router

TOKENS = 1_000_000
"""What the workers of a set-up hold together: their KV pools, all full."""
BLOCK = 16
WORKERS = (8, 64)
PROMPTS = (2_000, 20_000)
DOCUMENTS = 100
CLIENTS = 40
DECISIONS = 1_000
WARM_UP = 100
SECONDS = 0.01
"""Of the routers' clock, from one request to the next."""


def routers(names: Sequence[str], say: Callable[[str], None]) -> Table:
    """Time the decisions of these routers, of all that have a name if there are none.

    `say` is told what is under way. Raises `BadInput` for an unknown router.
    """
    set_ups = [(workers, tokens) for workers in WORKERS for tokens in PROMPTS]
    table = Table(
        Column("router"),
        *(Column(f"{workers} workers,\n{tokens:,} tokens", justify="right") for workers, tokens in set_ups),
        title="CPU microseconds a routing decision, median / p99",
        caption=f"Of {DECISIONS:,} requests of {CLIENTS} clients, each routed, started and finished. Three "
        f"quarters of a prompt are one of {DOCUMENTS} documents. Routers with a prefix index: {TOKENS:,} "
        f"tokens in blocks of {BLOCK}, all pools full, so that most decisions evict too. Making the blocks' "
        f"keys is not counted.",
    )
    for name in names or sorted(available_routers()):
        spec = parse_router(name)
        cells = []
        for workers, tokens in set_ups:
            say(f"{name}: {workers} workers, prompts of {tokens:,} tokens")
            median, late = np.percentile(_decisions(spec.build(), workers, tokens), (50, 99)) * 1e6
            cells.append(f"{median:,.1f} / {late:,.1f}")
        table.add_row(escape(name), *cells)
    return table


def _decisions(router: Router, count: int, prompt_tokens: int) -> list[float]:
    """CPU seconds of each decision."""
    workers = [Worker(f"replica-{place}", TOKENS // count) for place in range(count)]
    for worker in workers:
        router.joined(worker, 0.0)
    make = _Prompts(prompt_tokens)
    index = getattr(router, "index", None)
    if isinstance(index, PrefixIndex):
        _fill(index, workers, make)
    times = [_decide(router, workers, make.request()) for _ in range(WARM_UP + DECISIONS)]
    return times[WARM_UP:]


def _fill(index: PrefixIndex, workers: Sequence[Worker], make: _Prompts) -> None:
    for worker in workers:
        capacity = TOKENS // len(workers) // BLOCK
        while index.held(worker) < capacity:
            index.insert(make.request(), worker)


def _decide(router: Router, workers: Sequence[Worker], request: Request) -> float:
    now = request.arrival
    start = thread_time()
    worker = router.route(request, workers, now)
    router.started(request, worker, now)
    router.finished(request, worker, "stop", 16, now)
    return thread_time() - start


class _Prompts:
    """Requests that share documents, with keys made anew for each, as a front makes them."""

    def __init__(self, prompt_tokens: int) -> None:
        self._tokens = prompt_tokens
        self._blocks = prompt_tokens // BLOCK
        self._random = random.Random(0)
        self._made = 0

    def request(self) -> Request:
        """The next one."""
        self._made += 1
        own = self._blocks // 4
        document = self._random.randrange(DOCUMENTS)
        keys = [*_keys(document, self._blocks - own), *_keys(DOCUMENTS + self._made, own)]
        client = f"client {self._random.randrange(CLIENTS)}"
        return Request(str(self._made), client, self._made * SECONDS, self._tokens, keys, BLOCK)


def _keys(content: int, blocks: int) -> list[bytes]:
    return [(content << 32 | place).to_bytes(16) for place in range(blocks)]
