"""The simulator against a second, naive implementation of the same engines, event for event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest
from naive import Job, NaiveEngine
from naive_sglang import NaiveSGLang
from naive_vllm import BLOCK, NaiveVLLM

from baselines.dlpm import DLPM
from baselines.fcfs import FCFS
from baselines.lpm import LPM
from baselines.scheduler import Candidates, Scheduler, Waiting
from baselines.vtc import VTC
from suite.backends.cost import Cost
from suite.backends.simulator.cluster import alone
from suite.backends.simulator.engine import Engine
from suite.backends.simulator.live import Live, lives
from suite.backends.simulator.sglang import SGLangEngine
from suite.backends.simulator.step import Limits
from suite.backends.simulator.vllm import VLLMEngine
from suite.trace import Header, Request, Segment, Trace
from suite.verify import Case, random_case

SEEDS = (*range(80), 755, 905)
"""The random cases on which every engine and policy is compared. The last two show whether a retraction of
SGLang evicts before it retracts, which none of the others does."""

COST = Cost(((1.0007e-3, 1.0301e-4, 1.0709e-7, 0.0, 0.0), (3.1013e-3, 0.0, 0.0, 1.0129e-6, 1.1027e-5)))
"""Some steps are bound by one line, some by the other; odd enough that no step ends just when one arrives."""

POLICIES: dict[str, Callable[[], Scheduler]] = {
    "fcfs": FCFS,
    "lpm": LPM,
    "vtc": VTC,
    "vtc-extend": lambda: VTC(charge="extend"),
    "dlpm": lambda: DLPM(quantum=60),
}

OCCURS = {
    "vllm": ("preempted", "evicted match", "chunked", "shared in step"),
    "sglang": ("preempted", "evicted match", "chunked", "duplicate"),
}
"""What must be seen among the cases of an engine and a policy, or they compare too little."""


def naive_engine(case: Case, kind: str, policy: Scheduler) -> NaiveEngine:
    """The reference, not yet run."""
    if kind == "vllm":
        return NaiveVLLM(case.trace, policy, COST, case.running, case.tokens, case.kv_tokens)
    return NaiveSGLang(case.trace, policy, COST, case.running, case.tokens, case.kv_tokens, case.clip)


def simulated(case: Case, kind: str, policy: Scheduler) -> tuple[list[Live], Engine]:
    """The requests as the simulator serves them, and its engine."""
    make = VLLMEngine if kind == "vllm" else SGLangEngine
    limits = Limits(case.running, case.tokens, clip=case.clip)
    requests, engine = lives(case.trace), make(policy, COST, limits, repeat(1.0), case.kv_tokens)
    alone(requests, engine).run(lambda share: None)
    return requests, engine


def listen(policy: Scheduler) -> list[tuple[Any, ...]]:
    """Let the policy keep a log of what it is told: the event, the request and, at a start, cached tokens."""
    log: list[tuple[Any, ...]] = []

    def hear(event: str, details: int) -> None:
        told = getattr(policy, event)

        def tell(request: Request, *rest: Any) -> None:
            log.append((event, request.id, *rest[:details]))
            told(request, *rest)

        setattr(policy, event, tell)

    for event, details in {"arrived": 0, "admitted": 1, "resumed": 1, "preempted": 0, "finished": 0}.items():
        hear(event, details)
    return log


def facts(requests: Iterable[Job] | Iterable[Live]) -> dict[str, tuple[Any, ...]]:
    """What became of each request."""
    return {live.id: (live.status, live.cached, live.preemptions, live.generated) for live in requests}


def times(requests: Iterable[Job] | Iterable[Live]) -> dict[str, float]:
    """When it happened, NaN for what did not."""
    fields = ("arrival", "admitted", "first_token", "finish")
    return {f"{live.id} {field}": getattr(live, field) for live in requests for field in fields}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", OCCURS)
def test_the_simulator_does_what_the_naive_engine_does(kind: str, policy: str) -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        seen += _compared(kind, policy, random_case(seed))
    assert all(seen[event] for event in OCCURS[kind]), seen
    assert kind == "sglang" or not seen["duplicate"]


def test_a_retracted_request_reserves_only_the_output_it_still_lacks() -> None:
    """With this clip, case 136 admits a retracted request that would not fit with its whole output."""
    seen = _compared("sglang", "fcfs", replace(random_case(136), clip=12))
    assert seen["preempted"]


def _compared(kind: str, policy: str, case: Case) -> Counter[str]:
    """Serve the case with both implementations, compare everything, return what was seen."""
    expecting, acting = POLICIES[policy](), POLICIES[policy]()
    expected, actual = listen(expecting), listen(acting)
    naive = naive_engine(case, kind, expecting)
    naive.run()
    requests, engine = simulated(case, kind, acting)
    assert actual == expected, case
    assert facts(requests) == facts(naive.jobs), case
    assert times(requests) == pytest.approx(times(naive.jobs), rel=1e-9, nan_ok=True), case
    assert engine.steps == naive.steps, case
    return naive.seen


class Favourite(LPM):
    """Serves client a alone, by longest prefix."""

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        for request in waiting.by_longest_prefix([client for client in waiting.clients() if client == "a"]):
            if not (yield request):
                return


@pytest.mark.parametrize("kind", OCCURS)
def test_whom_the_policy_never_offers_starves(kind: str) -> None:
    """The others are served as if it were not there, and what comes after it is cancelled."""
    fates: Counter[str] = Counter()
    for seed in range(20):
        case = random_case(seed)
        naive = naive_engine(case, kind, Favourite())
        naive.run()
        requests, _ = simulated(case, kind, Favourite())
        assert facts(requests) == facts(naive.jobs), case
        assert times(requests) == pytest.approx(times(naive.jobs), rel=1e-9, nan_ok=True), case
        fates += Counter(live.status for live in requests)
    assert all(fates[status] for status in ("finished", "starved", "cancelled")), fates


def test_vllm_keeps_duplicate_blocks_that_the_simulator_shares() -> None:
    """The one intended difference: what vLLM computes twice, it caches twice.

    The second request of a document of two whole blocks computes the last block again. vLLM caches the copy
    beside the first, which then ages; the simulator frees the copy and renews the first. So the simulator
    has a block more for what comes next, and keeps all of the other document.
    """
    prompts = {
        "other": [Segment("other document", 32)],
        "first": [Segment("document", 32)],
        "second": [Segment("document", 32)],
        "filler": [Segment("filler", 20)],
        "other again": [Segment("other document", 32), Segment("question", 8)],
    }
    requests = [
        Request(id, "a", float(i), tuple(prompt), output_tokens=1)
        for i, (id, prompt) in enumerate(prompts.items())
    ]
    case = Case(Trace(Header("duplicates", 0, "test"), tuple(requests)), 4, 64, 6 * BLOCK, 4096)
    naive = naive_engine(case, "vllm", FCFS())
    naive.run()
    served, _ = simulated(case, "vllm", FCFS())
    assert naive.seen["duplicate"] == 1
    assert [job.cached for job in naive.jobs] == [0, 0, 16, 0, 16]
    assert [live.cached for live in served] == [0, 0, 16, 0, 32]
