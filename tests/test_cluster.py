"""Many replicas behind a router, on one virtual clock."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from math import inf, isnan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import Job, NaiveEngine
from naive_cluster import NaiveCluster
from naive_sglang import NaiveSGLang
from naive_vllm import NaiveVLLM
from pydantic import ValidationError
from test_simulator_invariants import COST, ENGINES, POLICIES, RUNNING, traces

from baselines.client_round_robin import ClientRoundRobin
from baselines.d2lpm import D2LPM
from baselines.dlpm import DLPM
from baselines.fcfs import FCFS
from baselines.least_outstanding import LeastOutstanding
from baselines.lpm import LPM
from baselines.round_robin import RoundRobin
from baselines.router import End, Request, Router, Worker
from baselines.scheduler import Scheduler
from suite import policies
from suite.backends.base import Outcome
from suite.backends.cost import Cost
from suite.backends.simulator import Simulator
from suite.backends.simulator.block_keys import block_keys
from suite.backends.simulator.cluster import REPORT, Cluster, Delays, Loss, Replica, alone
from suite.backends.simulator.dispatch import Dispatch
from suite.backends.simulator.engine import Engine, PolicyError
from suite.backends.simulator.live import Live, lives
from suite.backends.simulator.sglang import SGLangEngine
from suite.backends.simulator.step import Limits
from suite.backends.simulator.tree import Content
from suite.backends.simulator.vllm import VLLMEngine
from suite.errors import BadInput
from suite.trace import Header, Segment, Trace, checked
from suite.trace import Request as Traced
from suite.verify import random_case

SECOND = Cost(((1.0, 0.0, 0.0, 0.0, 0.0),))
"""Every step takes a second."""


def quiet(share: float, note: str = "") -> None:
    """Progress that nobody watches."""


# -- scenes worked out by hand -----------------------------------------------------------------------------


def scene(
    *requests: Traced,
    router: Router | None = None,
    replicas: int = 2,
    dispatch: float = 0.0,
    losses: Sequence[Loss] = (),
) -> dict[str, Live]:
    """Serve the requests on replicas of vLLM whose steps take a second each; return them by id."""
    served = lives(checked(Trace(Header("scene", 0, "test"), requests)))
    cluster = behind(router or RoundRobin(), served, replicas, vllm, Delays(dispatch), losses)
    cluster.run(quiet)
    return {live.id: live for live in served}


def vllm() -> Engine:
    """With room for all."""
    return VLLMEngine(FCFS(), SECOND, Limits(8, 1000), repeat(1.0), 16_000)


def behind(
    router: Router,
    requests: list[Live],
    replicas: int,
    build: Callable[[], Engine],
    delays: Delays,
    losses: Sequence[Loss] = (),
) -> Cluster:
    """A cluster behind a router."""
    places = [Replica(f"replica-{number}", build) for number in range(replicas)]
    dispatch = Dispatch(router, [place.name for place in places], 16_000, 16)
    return Cluster(requests, places, dispatch, delays, losses)


def asked(id: str, arrival: float, output: int = 3, **given: Any) -> Traced:
    """A request of ten tokens of its own."""
    return Traced(id, "x", arrival, (Segment(f"prompt of {id}", 10),), output, **given)


def test_replicas_work_side_by_side() -> None:
    """Round robin: a and c on one replica, b on the other. c waits for the end of the step under way."""
    done = scene(asked("a", 0.0), asked("b", 0.5), asked("c", 1.5))
    assert {id: live.worker for id, live in done.items()} == {
        "a": "replica-0",
        "b": "replica-1",
        "c": "replica-0",
    }
    assert {id: live.admitted for id, live in done.items()} == {"a": 0.0, "b": 0.5, "c": 2.0}
    assert {id: live.finish for id, live in done.items()} == {"a": 3.0, "b": 3.5, "c": 5.0}


def test_a_request_takes_the_dispatch_delay_to_its_replica() -> None:
    done = scene(asked("a", 0.0), asked("b", 0.5, after=("a",), think=1.0), dispatch=0.25)
    a, b = done["a"], done["b"]
    assert (a.sent, a.arrival, a.admitted, a.finish) == (0.0, 0.25, 0.25, 3.25)
    assert (b.sent, b.arrival, b.admitted, b.finish) == (4.25, 4.5, 4.5, 7.5)


def test_what_comes_after_a_request_may_go_to_another_replica() -> None:
    """Its prefix is cached where the first turn was served, and nowhere else."""
    first = Traced("a", "x", 0.0, (Segment("p", 48),), 17)
    turn = (Segment("p", 48), Segment("reply:a", 17), Segment("q", 5))
    done = scene(first, Traced("b", "x", 0.0, turn, 1, after=("a",)))
    assert (done["b"].worker, done["b"].cached) == ("replica-1", 0)
    alone_at_one = scene(first, Traced("b", "x", 0.0, turn, 1, after=("a",)), replicas=1)
    assert alone_at_one["b"].cached == 64


def test_what_a_lost_replica_had_admitted_fails_and_the_rest_is_served_elsewhere() -> None:
    """a and c go to replica 0, which is lost in the middle of the third step: c has just been delivered."""
    later = asked("d", 0.0, after=("a",))
    done = scene(asked("a", 0.0, output=9), asked("b", 0.0), asked("c", 2.25), later, losses=[Loss(0, 2.5)])
    a, c = done["a"], done["c"]
    assert (a.status, a.error, a.worker, a.generated) == ("failed", "replica-0 was lost", "replica-0", 2)
    assert isnan(a.finish)
    assert (c.status, c.worker, c.sent, c.arrival, c.admitted) == ("finished", "replica-1", 2.25, 2.5, 3.0)
    assert done["d"].status == "cancelled"


def test_who_is_on_the_way_to_a_replica_that_is_lost_is_routed_again() -> None:
    done = scene(asked("a", 0.0), dispatch=1.0, losses=[Loss(0, 0.5)])
    assert (done["a"].worker, done["a"].arrival, done["a"].finish) == ("replica-1", 1.5, 4.5)


def test_requests_wait_at_the_router_until_a_replica_is_back() -> None:
    """It comes back with an empty cache."""
    requests = [Traced(id, "x", time, (Segment("p", 48),), 1) for id, time in (("a", 0), ("b", 3), ("c", 7))]
    done = scene(*requests, replicas=1, losses=[Loss(0, 2.0, 5.0)])
    assert [live.cached for live in done.values()] == [0, 0, 32]
    assert [live.admitted for live in done.values()] == [0.0, 5.0, 7.0]
    assert done["b"].arrival == 5.0


def test_who_waits_for_a_replica_that_never_comes_back_starves() -> None:
    done = scene(asked("a", 1.0), asked("b", 0.0, after=("a",)), replicas=1, losses=[Loss(0, 0.5)])
    assert [(live.status, live.worker) for live in done.values()] == [("starved", None), ("cancelled", None)]


def test_at_one_time_steps_end_before_losses_and_losses_come_before_arrivals() -> None:
    """a gets its last token when replica 0 is lost; b comes at that time and goes to the other one."""
    done = scene(asked("a", 0.0, output=2), asked("b", 2.0), losses=[Loss(0, 2.0)])
    assert (done["a"].status, done["a"].finish) == ("finished", 2.0)
    assert (done["b"].worker, done["b"].finish) == ("replica-1", 5.0)


def test_a_lost_prefill_gives_back_what_was_not_computed() -> None:
    """100 tokens in chunks of 64; the replica is lost in the second step."""
    (live,) = requests = lives(
        Trace(Header("one", 0, "test"), (Traced("a", "x", 0.0, (Segment("p", 100),), 3),))
    )
    engine = VLLMEngine(FCFS(), SECOND, Limits(8, 64), repeat(1.0), 16_000)
    Cluster(requests, [Replica("replica-0", lambda: engine)], losses=[Loss(0, 1.5)]).run(quiet)
    assert live.status == "failed"
    assert engine.journal.rows == [(0.0, "x", 100, 0, 0, 0), (1.5, "x", -36, 0, 0, 0)]


class Elsewhere(Router):
    """Names a worker that nobody knows."""

    def route(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        return Worker("replica-0")


def test_a_router_that_names_no_worker_is_reported() -> None:
    with pytest.raises(PolicyError, match=r"router Elsewhere routes .*'a'.* to Worker\('replica-0'\), which"):
        scene(asked("a", 0.0), router=Elsewhere())


# -- what always holds -------------------------------------------------------------------------------------


class Witness(LeastOutstanding):
    """Holds its host to its promises, and learns the delays."""

    def __init__(self) -> None:
        super().__init__()
        self.up: list[Worker] = []
        self.at: dict[Request, Worker] = {}
        self.begun: set[Request] = set()
        self.ends: Counter[str] = Counter()
        self.evictions = 0

    def joined(self, worker: Worker, now: float) -> None:
        super().joined(worker, now)
        assert worker not in self.up
        self.up.append(worker)

    def lost(self, worker: Worker, now: float) -> None:
        super().lost(worker, now)
        assert worker not in self.at.values(), "every request has left"
        self.up.remove(worker)

    def route(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        assert list(workers) == self.up
        assert request.arrival <= now
        assert len(request.blocks) == request.prompt_tokens // request.block_tokens
        self.at[request] = super().route(request, workers, now)
        return self.at[request]

    def started(self, request: Request, worker: Worker, now: float) -> None:
        super().started(request, worker, now)
        assert self.at[request] is worker
        assert request not in self.begun
        self.begun.add(request)

    def finished(self, request: Request, worker: Worker, end: End, output_tokens: int, now: float) -> None:
        super().finished(request, worker, end, output_tokens, now)
        assert self.at.pop(request) is worker
        assert (request in self.begun) == (output_tokens > 0)
        assert end != "returned" or not output_tokens
        self.ends[end] += 1

    def evicted(self, worker: Worker, blocks: Sequence[Hashable], kept: int, now: float) -> None:
        assert worker in self.up
        assert 0 <= kept < len(blocks)
        self.evictions += len(blocks) - kept


@st.composite
def losses(draw: st.DrawFn, replicas: int) -> list[Loss]:
    """Each replica is lost at most once; some come back. Times as in the traces, so that they tie."""
    lost = draw(st.lists(st.integers(0, replicas - 1), unique=True))
    times = [(draw(st.integers(0, 40)) / 16, draw(st.sampled_from([1 / 16, 1.0, inf]))) for _ in lost]
    return [Loss(replica, at, at + away) for replica, (at, away) in zip(lost, times, strict=True)]


def short_of_memory(kind: str, policy: Scheduler) -> Engine:
    """An engine as `test_simulator_invariants` has them."""
    make, kv_tokens = ENGINES[kind]
    return make(policy, COST, Limits(RUNNING, tokens=64, clip=8), repeat(1.0), kv_tokens)


DELAYS = st.sampled_from([Delays(), Delays(1 / 16, 0.0), Delays(0.0, 1 / 8), Delays(1 / 64, 1 / 16)])


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=10, deadline=None)
@given(trace=traces(), replicas=st.integers(1, 3), delays=DELAYS, data=st.data())
def test_no_request_is_lost_or_served_twice(
    kind: str,
    policy: Callable[[], Scheduler],
    trace: Trace,
    replicas: int,
    delays: Delays,
    data: st.DataObject,
) -> None:
    router, requests = Witness(), lives(trace)
    faults = data.draw(losses(replicas))
    cluster = behind(router, requests, replicas, lambda: short_of_memory(kind, policy()), delays, faults)
    cluster.run(quiet)
    assert not router.at, "nothing is outstanding"
    fates = Counter(live.status for live in requests)
    assert set(fates) <= {"finished", "rejected", "failed", "starved", "cancelled"}
    assert router.ends["stop"] == fates["finished"]
    assert router.ends["abort"] == fates["rejected"] + fates["failed"]
    assert all(replica.held == {} for replica in cluster.replicas.values())
    for live in requests:
        check_course(live, delays)
    check_tokens(requests, [engine for replica in cluster.replicas.values() for engine in replica.engines])


def check_course(live: Live, delays: Delays) -> None:
    """Causes come before effects, the delay is on the way, and who is not served was not there."""
    if live.status == "finished":
        assert live.sent + delays.dispatch <= live.arrival <= live.admitted < live.first_token <= live.finish
        assert live.generated == live.output_tokens
        assert live.sent == live.not_before
    elif live.status == "failed":
        assert live.error == f"{live.worker} was lost"
        assert live.arrival <= live.admitted
        assert live.generated < live.output_tokens
    else:
        assert isnan(live.admitted)
        assert not live.generated
        assert (live.worker is None) == (live.status != "rejected")
    assert live.status == "finished" or isnan(live.finish)


def check_tokens(requests: list[Live], engines: Sequence[Engine]) -> None:
    """What the journals hold is what the requests got; no replica that is there holds any memory."""
    rows = [row for engine in engines for row in engine.journal.rows]
    _, _, extend, cached, recomputed, output = zip(*rows or [(0,) * 6], strict=True)
    assert sum(output) == sum(live.generated for live in requests)
    assert sum(cached) == sum(live.cached for live in requests)
    assert sum(recomputed) == sum(live.recomputed for live in requests)
    computed = sum(live.prompt_tokens - live.cached for live in requests if live.generated)
    begun = [live for live in requests if not live.generated and not isnan(live.admitted)]
    assert computed <= sum(extend) <= computed + sum(live.prompt_tokens - live.cached for live in begun)


@pytest.mark.parametrize("kind", ENGINES)
def test_a_cluster_of_one_serves_as_an_engine_alone_does(kind: str) -> None:
    """To the bit: with noise, preemptions and closed loops, under every policy."""
    preempted = 0
    for seed in range(12):
        case = random_case(seed)
        config: dict[str, Any] = {
            "engine": kind, "max_running": case.running, "token_budget": case.tokens,
            "kv_tokens": case.kv_tokens, "clip_tokens": case.clip, "noise": {"cv": 0.3} if seed % 2 else None,
        }  # fmt: skip
        for policy in ("fcfs", "lpm", "vtc", "dlpm:quantum=60"):
            bare, routed = (run(config, case.trace, label) for label in (policy, f"round-robin+{policy}"))
            assert bare.requests.equals(routed.requests)
            assert bare.service.equals(routed.service)
            assert bare.streams is not None
            assert bare.streams.equals(routed.streams)
            assert bare.engine.items() <= routed.engine.items()
            preempted += bare.requests["preemptions"].sum()
    assert preempted


def run(config: dict[str, Any], trace: Trace, label: str) -> Outcome:
    """The outcome of the simulator with these settings."""
    return Simulator(**config).run(trace, policies.parse(label), Path(), quiet)


class Deaf(D2LPM):
    """Does not hear of evictions."""

    evicted = Router.evicted


ROUTERS: list[Callable[[], Router]] = [RoundRobin, ClientRoundRobin, LeastOutstanding, Deaf]
"""Their decisions hang on what the host tells them, and when, but not on evictions."""


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("router", ROUTERS)
def test_a_cluster_does_what_naive_engines_side_by_side_do(kind: str, router: Callable[[], Router]) -> None:
    fates: Counter[str] = Counter()
    for seed in range(24):
        rng = random.Random(seed)
        replicas, delay = rng.randint(1, 3), rng.choice([0.0, 1 / 32])
        policy = rng.choice([FCFS, LPM, partial(DLPM, quantum=60)])
        lost = [(number, rng.randint(0, 99) / 64) for number in range(replicas) if rng.random() < 0.4]
        faults = [(number, at, at + rng.choice([1 / 16, 0.5, inf])) for number, at in lost]
        trace = in_binary(random_case(seed).trace)
        requests, build = lives(trace), partial(short_of_memory, kind)
        losses = [Loss(*fault) for fault in faults]
        behind(router(), requests, replicas, lambda: build(policy()), Delays(delay), losses).run(quiet)  # noqa: B023
        naive = NaiveCluster(trace, lambda: naive_engine(kind, policy()), replicas, router(), delay, faults)  # noqa: B023
        naive.run()
        assert list(map(course, requests)) == list(map(course, naive.jobs)), seed
        fates += Counter(live.status for live in requests)
    assert all(fates[status] for status in ("finished", "failed", "cancelled")), fates


def in_binary(trace: Trace) -> Trace:
    """The trace with think times of whole 64ths, so that times are exact sums and ties are ties for all."""
    requests = tuple(replace(request, think=round(64 * request.think) / 64) for request in trace.requests)
    return Trace(trace.header, requests)


def course(request: Live | Job) -> tuple[Any, ...]:
    """What became of a request and when, None for what did not happen."""
    times = (request.admitted, request.first_token, request.finish)
    counts = (request.status, request.cached, request.preemptions, request.generated)
    return *counts, *(None if isnan(time) else time for time in times)


def naive_engine(kind: str, policy: Scheduler) -> NaiveEngine:
    """The naive one of `short_of_memory`."""
    nothing, (_, kv_tokens) = Trace(Header("none", 0, "test"), ()), ENGINES[kind]
    if kind == "vllm":
        return NaiveVLLM(nothing, policy, COST, RUNNING, 64, kv_tokens)
    return NaiveSGLang(nothing, policy, COST, RUNNING, 64, kv_tokens, 8)


@settings(max_examples=30, deadline=None)
@given(trace=traces(), data=st.data())
def test_the_accounts_of_d2lpm_settle(trace: Trace, data: st.DataObject) -> None:
    """Nothing is outstanding at the end; each client has paid at each replica for what it sent and got there,
    as far as that was not lost with the replica."""
    router, requests = D2LPM(quantum=100), lives(trace)
    faults = [Loss(loss.replica, loss.at) for loss in data.draw(losses(2))]
    cluster = behind(router, requests, 3, lambda: short_of_memory("vllm", FCFS()), Delays(1 / 64), faults)
    cluster.run(quiet)
    assert set(router.outstanding.values()) == {0}
    due: Counter[tuple[str, str]] = Counter()
    for live in requests:
        if live.worker and cluster.replicas[live.worker].engine:
            due[live.worker, live.client] += live.prompt_tokens + 2 * live.generated
    accounts = {
        (w.name, client): a for w, clients in router.accounts.items() for client, a in clients.items()
    }
    assert {key: account.charged for key, account in accounts.items() if account.charged} == due


# -- blocks and evictions ----------------------------------------------------------------------------------

contents = st.lists(
    st.tuples(st.integers(0, 3).map(lambda stream: stream << 24), st.integers(1, 20)), max_size=8
).map(tuple)


@given(contents, contents, st.sampled_from([1, 4, 7]))
def test_keys_of_blocks_are_equal_just_when_their_tokens_are(
    one: Content, other: Content, block: int
) -> None:
    pairs = [
        pair
        for content in (one, other)
        for pair in zip(block_keys(content, block), blocks_of(content, block), strict=True)
    ]
    for key, tokens in pairs:
        assert all((key == its_key) == (tokens == its_tokens) for its_key, its_tokens in pairs)


def blocks_of(content: Content, block: int) -> list[list[int]]:
    """The tokens of each full block."""
    tokens = [token for address, count in content for token in range(address, address + count)]
    return [tokens[end - block : end] for end in range(block, len(tokens) + 1, block)]


@pytest.mark.parametrize("delay", [0.0, 1 / 16])
def test_every_block_that_vllm_evicts_is_reported_once(delay: float) -> None:
    """Some reports are still under way when the last request is done."""
    evicted = 0
    for seed in range(20):
        case = random_case(seed)
        router, limits = Witness(), Limits(case.running, case.tokens)
        build = partial(VLLMEngine, FCFS(), COST, limits, repeat(1.0), case.kv_tokens)
        cluster = behind(router, lives(case.trace), 2, build, Delays(0.0, delay))
        cluster.run(quiet)
        for _, kind, _, report, what in cluster._events:
            if kind == REPORT:
                report(*what)
        total = sum(engine.pool.evicted for place in cluster.replicas.values() for engine in place.engines)
        assert router.evictions == total
        evicted += total
    assert evicted


def test_sglang_reports_the_whole_blocks_that_a_leaf_had() -> None:
    """A pool of 100 tokens holds one prompt of 70 and 3 of its output; the second evicts all of the first."""
    told: list[tuple[str, tuple[Hashable, ...], int, float]] = []

    class Listener(RoundRobin):
        def evicted(self, worker: Worker, blocks: Sequence[Hashable], kept: int, now: float) -> None:
            told.append((worker.name, tuple(blocks), kept, now))

    both = tuple(Traced(id, "x", time, (Segment(id, 70),), 4) for id, time in (("a", 0.0), ("b", 10.0)))
    requests = lives(Trace(Header("two", 0, "test"), both))
    build = partial(SGLangEngine, FCFS(), SECOND, Limits(8, 1000), repeat(1.0), 100)
    behind(Listener(), requests, 1, build, Delays(0.0, 0.5)).run(quiet)
    first = requests[0].prompt[0][0]
    # at 10 the output of a (its third token is the last one cached) and its prompt go, the deepest first
    assert told[-1] == ("replica-0", tuple(range(first, first + 64, 16)), 0, 10.5)


# -- the backend -------------------------------------------------------------------------------------------

TURNS = Trace(
    Header("turns", 0, "test"),
    tuple(
        Traced(f"{i}", "ab"[i % 2], i / 4, (Segment(f"p{i % 3}", 64), Segment(f"q{i}", 9)), 20)
        for i in range(40)
    ),
)


def test_the_frames_say_which_replica_served_whom() -> None:
    outcome = run({"replicas": 4, "kv_tokens": 4000}, TURNS, "round-robin+dlpm")
    assert outcome.requests["worker"].tolist() == [f"replica-{i % 4}" for i in range(40)]
    assert outcome.service["time"].is_monotonic_increasing
    by_worker = outcome.service.groupby("worker")[["extend", "cached", "output"]].sum()
    own = outcome.requests.groupby("worker")[["prompt_tokens", "output_tokens"]].sum()
    assert (by_worker["extend"] + by_worker["cached"]).tolist() == own["prompt_tokens"].tolist()
    assert by_worker["output"].tolist() == own["output_tokens"].tolist()
    assert outcome.streams is not None
    assert outcome.streams.groupby("id")["tokens"].sum().tolist() == [20] * 40


def test_the_word_counts_by_worker_and_says_how_evictions_were_reported() -> None:
    config = {"replicas": 2, "losses": [{"replica": 1, "at": 1.1, "back": 5.0}]}
    outcome = run(config, TURNS, "round-robin+fcfs")
    workers = outcome.engine["workers"]
    assert workers["replica-1"]["losses"] == 1
    assert sum(worker["requests"] for worker in workers.values()) == 40
    assert outcome.engine["replicas"] == 2
    assert outcome.engine["eviction_reports"] == "none: the router does not listen"
    failed = outcome.requests[outcome.requests["status"] == "failed"]
    assert set(failed["error"]) == {"replica-1 was lost"}
    assert run({"replicas": 2}, TURNS, "d2lpm+dlpm").engine["eviction_reports"] == "exact"


def test_a_run_of_a_cluster_can_be_repeated_to_the_bit() -> None:
    config = {"replicas": 3, "kv_tokens": 600, "noise": {"cv": 0.2}, "report_delay": 0.1}
    one, other = (run(config, TURNS, "d2lpm+dlpm") for _ in range(2))
    assert one.requests.equals(other.requests)
    assert one.service.equals(other.service)
    assert one.engine == other.engine


def test_noise_differs_between_replicas() -> None:
    """Each gets the same request at the same time, so only noise tells them apart."""
    trace = Trace(Header("twins", 0, "test"), tuple(asked(id, 0.0, output=9) for id in "ab"))
    noisy, exact = (
        run({"replicas": 2, "noise": noise}, trace, "round-robin+fcfs") for noise in ({"cv": 0.2}, None)
    )
    assert noisy.requests["finish"].nunique() == 2
    assert exact.requests["finish"].nunique() == 1


def test_several_replicas_need_a_router() -> None:
    with pytest.raises(BadInput, match=r"2 replicas need a router; write round-robin\+dlpm"):
        run({"replicas": 2}, TURNS, "dlpm")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"replicas": 0}, "greater than or equal to 1"),
        ({"dispatch_delay": -1}, "greater than or equal to 0"),
        ({"report_delay": inf}, "finite"),
        ({"losses": [{"replica": 1, "at": 0}]}, "there is no replica 1; the only one is 0"),
        ({"replicas": 2, "losses": [{"replica": 2, "at": 0}]}, "there is no replica 2; they are 0 to 1"),
        ({"losses": [{"replica": 0, "at": 5, "back": 5}]}, r"back \(5 s\) must be after at \(5 s\)"),
        (
            {"losses": [{"replica": 0, "at": 9}, {"replica": 0, "at": 1, "back": 10}]},
            "replica 0 is lost at 9 s, while it is not there",
        ),
    ],
)
def test_losses_and_delays_that_cannot_be_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Simulator(**config)


def test_progress_is_told_up_to_the_end() -> None:
    shares: list[float] = []
    requests = lives(TURNS)
    alone(requests, vllm()).run(shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
