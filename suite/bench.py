"""How fast the suite itself is: the simulator beside a bare prefix walk, and the cost of a policy's decision.

Absolute times depend on the machine and on what else it does; ratios of things timed side by side in one
process are what can be quoted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.table import Column, Table

from baselines.scheduler import Scheduler
from suite.backends.simulator import Simulator
from suite.backends.simulator.cluster import alone
from suite.backends.simulator.engine import Engine
from suite.backends.simulator.live import Live, lives
from suite.collector import collector_paused
from suite.policies import SchedulerSpec, parse
from suite.trace import Header, Request, Segment, Trace
from workloads.spec import load

POLICIES = ("fcfs", "lpm", "vtc", "dlpm")
SHORT_QUEUE = 32
WAITING = (100, 1_000, 10_000)
DECISIONS = 300
ON = Simulator(model="llama-3.1-8b", gpu="h100", token_budget=8192)


def simulator(file: Path | None) -> list[Table]:
    """Time the simulator on a Mooncake trace (the ready one if `file` is None), and decisions of each policy.

    Raises `BadInput` if the trace is not to be found.
    """
    overrides = {"file": str(file)} if file else {}
    return [_throughput(overrides), _decisions()]


# -- throughput --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Timed:
    seconds: float
    requests: list[Live]
    steps: int

    @property
    def longest_queue(self) -> int:
        """Most requests that waited at once."""
        served = [live for live in self.requests if live.status == "finished"]
        moves = [(live.admitted, -1) for live in served] + [(live.arrival, 1) for live in served]
        waiting = longest = 0
        for _, move in sorted(moves):
            waiting += move
            longest = max(longest, waiting)
        return longest


def _throughput(overrides: dict[str, Any]) -> Table:
    natural = load("mooncake_hour", overrides).generate(0)
    walk = min(_walk(natural) for _ in range(3))
    with collector_paused():
        walk_paused = min(_walk(natural) for _ in range(3))
    columns = ("seconds", "requests/s", "x walk", "x walk, paused", "longest queue", "steps")
    table = Table(
        "trace", "scheduler", *_right(*columns),
        title=f"Simulator, {len(natural.requests)} requests, {ON.model} on {ON.gpu}",
        caption=f"Best of three. The walk puts every request's 512-token blocks through a dictionary trie: "
        f"{walk:.3f} s as it is, {walk_paused:.3f} s with the garbage collector paused, as it is while the "
        f"simulator runs.",
    )  # fmt: skip
    stretched, stretch = _until_queue_is_short(overrides)
    for name, trace in (("natural speed", natural), (f"{stretch} times slower", stretched)):
        for policy in POLICIES:
            timed = min((_time(trace, parse(policy)) for _ in range(3)), key=lambda timed: timed.seconds)
            table.add_row(
                name, policy, f"{timed.seconds:.2f}", f"{len(trace.requests) / timed.seconds:,.0f}",
                f"{timed.seconds / walk:.1f}", f"{timed.seconds / walk_paused:.1f}",
                f"{timed.longest_queue}", f"{timed.steps:,}",
            )  # fmt: skip
    return table


def _right(*names: str) -> Iterator[Column]:
    return (Column(name, justify="right") for name in names)


def _walk(trace: Trace) -> float:
    """Seconds to put every request's segments through a trie of dictionaries."""
    prompts = [[segment.id for segment in request.prompt] for request in trace.requests]
    start = perf_counter()
    root: dict[str, Any] = {}
    for prompt in prompts:
        node = root
        for block in prompt:
            child = node.get(block)
            if child is None:
                child = node[block] = {}
            node = child
    return perf_counter() - start


def _until_queue_is_short(overrides: dict[str, Any]) -> tuple[Trace, int]:
    """The trace stretched by the least power of two that keeps the queue short under every policy."""
    for stretch in (2**power for power in range(11)):
        trace = load("mooncake_hour", overrides | {"shape.stretch": stretch}).generate(0)
        if all(_time(trace, parse(policy)).longest_queue < SHORT_QUEUE for policy in POLICIES):
            break
    return trace, stretch


def _time(trace: Trace, scheduler: SchedulerSpec) -> _Timed:
    requests, engine = lives(trace), ON.engine_for(scheduler.build())
    cluster = alone(requests, engine)
    start = perf_counter()
    cluster.run(lambda share: None)
    return _Timed(perf_counter() - start, requests, engine.steps)


# -- decisions ---------------------------------------------------------------------------------------------


def _decisions() -> Table:
    table = Table(
        "scheduler", *_right(*(f"{waiting:,} waiting" for waiting in WAITING)),
        title="Microseconds a decision: one request arrives, one is chosen and admitted",
        caption="Mean over 300, of 40 clients with 400 documents, half of them cached; view upkeep included.",
    )  # fmt: skip
    for policy in POLICIES:
        costs = (_decision(parse(policy).build(), waiting) for waiting in WAITING)
        table.add_row(policy, *(f"{cost * 1e6:,.0f}" for cost in costs))
    return table


def _decision(policy: Scheduler, waiting: int) -> float:
    """Seconds of policy and view for one arrival and one admission, with this many waiting."""
    requests, engine = lives(_documents(waiting + DECISIONS)), ON.engine_for(policy)
    _cache_documents(engine, requests[:400:2])
    for sequence, live in enumerate(requests):
        live.sequence, live.arrival = sequence, 0.0
    queue, rest = requests[:waiting], requests[waiting:]
    for live in queue:
        _arrive(engine, live)
    _admit_one(engine)
    start = perf_counter()
    for live in rest:
        _arrive(engine, live)
        _admit_one(engine)
    return (perf_counter() - start) / len(rest)


def _arrive(engine: Engine, live: Live) -> None:
    engine.waiting.add(live)
    engine.policy.arrived(live, 0.0)


def _admit_one(engine: Engine) -> None:
    offers = engine.policy.candidates(engine.waiting, 0.0)
    chosen = next(offers)
    cached = engine.waiting.matched(chosen) if getattr(chosen, "followed", False) else 0
    engine.waiting.remove(chosen)
    engine.policy.admitted(chosen, cached, 0.0)
    offers.close()


def _documents(requests: int) -> Trace:
    made = (
        Request(
            str(i), f"client {i % 40}", 0.0, (Segment(f"document {i % 400}", 512), Segment(f"{i}", 32)), 16
        )
        for i in range(requests)
    )
    return Trace(Header("documents", 0, "bench"), tuple(made))


def _cache_documents(engine: Engine, requests: Sequence[Live]) -> None:
    """Put the first 512 tokens of these prompts into the cache."""
    pool = engine.pool
    for live in requests:
        pool.take(pool.blocks(512))
        pool.hold(pool.tree.root)
        tip, _ = pool.insert(pool.tree.root, live.content, 512, live.target)
        pool.drop(tip)
