"""What must hold after every step of every engine under every policy, on random traces."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.dlpm import DLPM
from baselines.fcfs import FCFS
from baselines.lpm import LPM, LPMWithFallback
from baselines.scheduler import Scheduler
from baselines.vtc import VTC
from suite.backends.cost import Cost
from suite.backends.simulator.cluster import alone
from suite.backends.simulator.engine import Engine
from suite.backends.simulator.live import Live, lives
from suite.backends.simulator.sglang import SGLangEngine
from suite.backends.simulator.step import Limits
from suite.backends.simulator.streams import chunks
from suite.backends.simulator.tree import Content, Node, Tree
from suite.backends.simulator.vllm import VLLMEngine
from suite.trace import REPLY, Header, Request, Segment, Trace, checked

COST = Cost(((2.0**-10, 2.0**-13, 2.0**-23, 0.0, 0.0), (2.0**-8 + 2.0**-10, 0.0, 0.0, 2.0**-20, 2.0**-17)))
"""Powers of two, as are all times here, so that sums are exact and ties of times are ties for everybody."""

POLICIES: list[Callable[[], Scheduler]] = [
    FCFS,
    LPM,
    lambda: LPMWithFallback(threshold=3),
    VTC,
    lambda: VTC(charge="extend"),
    lambda: DLPM(quantum=60),
]
RUNNING = 5
ENGINES = {"vllm": (VLLMEngine, 24 * 16), "sglang": (SGLangEngine, 400)}


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Up to 25 requests of three clients that share prefixes in every way, some after another's reply."""
    requests: list[Request] = []
    for i in range(draw(st.integers(1, 25))):
        client = draw(st.sampled_from("abc"))
        after: tuple[str, ...] = ()
        prompt = [Segment(f"{client}{draw(st.integers(0, 2))}", draw(st.sampled_from([15, 32, 48, 70])))]
        if requests and draw(st.integers(0, 3)) == 0:
            parent = draw(st.sampled_from(requests))
            after = (parent.id,)
            prompt = [*parent.prompt, Segment(REPLY + parent.id, parent.output_tokens)]
        if draw(st.booleans()):
            prompt.append(Segment(f"q{draw(st.integers(0, 9))}", draw(st.integers(1, 40))))
        arrival = draw(st.integers(0, 32)) / 16
        output = draw(st.sampled_from([1, 2, 7, 33, 80]))
        requests.append(Request(str(i), client, arrival, tuple(prompt), output, after=after, think=0.125))
    return checked(Trace(Header("random", 0, "test"), tuple(requests)))


def _engine(kind: str, policy: Scheduler) -> Engine:
    """An engine that is short of memory; SGLang reserves so little for outputs that it has to retract."""
    make, kv_tokens = ENGINES[kind]
    return make(policy, COST, Limits(RUNNING, tokens=64, clip=8), repeat(1.0), kv_tokens)


def _serve(engine: Engine, trace: Trace) -> list[Live]:
    """The requests of the trace, served by this engine alone."""
    requests = lives(trace)
    alone(requests, engine).run(lambda share: None)
    return requests


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25, deadline=None)
@given(trace=traces())
def test_memory_and_matches_are_exact_after_every_step(
    kind: str, policy: Callable[[], Scheduler], trace: Trace
) -> None:
    engine = _engine(kind, policy())
    end = engine.end

    def checked_end() -> None:
        end()
        _check_memory(engine)
        _check_matches(engine)

    engine.end = checked_end  # type: ignore[method-assign]
    requests = _serve(engine, trace)
    _check_outcome(requests, [engine])


def _check_memory(engine: Engine) -> None:
    """No block leaks, none has two owners, a held node's ancestors are held."""
    pool, held, idle = engine.pool, 0, 0
    for node in _nodes(pool.tree.root):
        parent = node.parent
        assert parent is not None
        label = sum(tokens for _, tokens in pool.tree.label(node))
        assert parent.end == node.start < node.end == node.start + label
        assert parent.holds >= (node.holds > 0)
        blocks = node.end // pool.block - node.start // pool.block
        held, idle = (held + blocks, idle) if node.holds else (held, idle + blocks)
    private = sum(pool.blocks(computed) - live.tip.end // pool.block for live, computed in _running(engine))
    assert idle == pool.idle
    assert pool.free >= 0
    assert pool.free + idle + held + private == pool.capacity


def _nodes(root: Node) -> Iterator[Node]:
    for child in root.children.values():
        yield child
        yield from _nodes(child)


def _running(engine: Engine) -> Iterator[tuple[Live, int]]:
    for live in engine.batch.members:
        yield live, live.prompt_tokens + engine.batch.generated(live) - 1
    if engine.chunked:
        yield engine.chunked, engine.chunked.computed


def _check_matches(engine: Engine) -> None:
    """The view's matches equal a token-by-token comparison with everything that is cached."""
    waiting = list(engine.waiting.by_arrival())
    followed = [live for live in waiting if isinstance(live, Live) and live.followed]
    if not followed:
        return
    assert len(followed) == len(waiting)
    cached = [list(_tokens(path)) for path in _paths(engine.pool.tree, engine.pool.tree.root, ())]
    for live in followed:
        prompt = list(_tokens(live.content))
        longest = max((_common(prompt, path) for path in cached), default=0)
        block = engine.pool.block
        assert engine.waiting.matched(live) == min(longest, len(prompt) - 1) // block * block


def _paths(tree: Tree, node: Node, content: Content) -> Iterator[Content]:
    content += tree.label(node)
    if not node.children:
        yield content
    for child in node.children.values():
        yield from _paths(tree, child, content)


def _tokens(content: Content) -> Iterator[int]:
    for address, tokens in content:
        yield from range(address, address + tokens)


def _common(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _check_outcome(requests: list[Live], engines: Sequence[Engine]) -> None:
    """Nobody lost, tokens conserved, causes before effects, the logs agree with the requests."""
    finished = [live for live in requests if live.status == "finished"]
    assert all(live.status in ("finished", "rejected", "cancelled") for live in requests)
    for live in finished:
        assert live.generated == live.output_tokens
        assert 0 <= live.cached < live.prompt_tokens
        assert live.sent <= live.arrival <= live.admitted < live.first_token <= live.finish
        assert live.sent == live.not_before
    assert all(
        list(times) == sorted(times) for times in ([row[0] for row in e.journal.rows] for e in engines)
    )
    rows = [row for engine in engines for row in engine.journal.rows]
    _, _, extend, cached, recomputed, output = zip(*rows or [(0,) * 6], strict=True)
    assert sum(output) == sum(live.output_tokens for live in finished)
    assert sum(extend) == sum(live.prompt_tokens - live.cached for live in finished)
    assert sum(cached) == sum(live.cached for live in finished)
    assert sum(recomputed) == sum(live.recomputed for live in requests)


@pytest.mark.parametrize("kind", ENGINES)
@settings(max_examples=40, deadline=None)
@given(trace=traces())
def test_service_charged_equals_service_logged(kind: str, trace: Trace) -> None:
    policy = DLPM(quantum=60)
    granted: dict[str, float] = {}
    refill = policy._refill

    def counted_refill(clients: object) -> None:
        before = dict(policy.deficits)
        refill(clients)  # type: ignore[arg-type]
        for client, deficit in policy.deficits.items():
            granted[client] = granted.get(client, 0.0) + deficit - before[client]

    policy._refill = counted_refill  # type: ignore[method-assign,assignment]
    engine = _engine(kind, policy)
    _serve(engine, trace)
    logged: dict[str, float] = {}
    for _, client, extend, _, _, output in engine.journal.rows:
        logged[client] = logged.get(client, 0.0) + extend + 2 * output
    charged = {c: granted.get(c, 0.0) - deficit for c, deficit in policy.deficits.items()}
    assert charged == pytest.approx(logged)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=15, deadline=None)
@given(trace=traces())
def test_taking_decode_stretches_at_once_changes_nothing(
    kind: str, policy: Callable[[], Scheduler], trace: Trace
) -> None:
    quick, slow = _engine(kind, policy()), _engine(kind, policy())
    slow._stretch = lambda: 1  # type: ignore[method-assign]
    end = slow.end

    def logged_end() -> None:
        end()
        slow.journal.settle(slow.batch.by_client)

    slow.end = logged_end  # type: ignore[method-assign]
    at_once, stepwise = _serve(quick, trace), _serve(slow, trace)
    assert quick.steps == slow.steps
    for one, other in zip(at_once, stepwise, strict=True):
        assert (one.status, one.cached, one.preemptions) == (other.status, other.cached, other.preemptions)
        assert (one.admitted, one.first_token, one.finish) == pytest.approx(
            (other.admitted, other.first_token, other.finish), rel=0, abs=0, nan_ok=True
        )
    step_ends = [row[0] for row in slow.journal.rows]
    for arrival in (live.arrival for live in stepwise):
        seen = next((end for end in step_ends if end >= arrival), 0.0)
        assert _output_until(quick, seen) == _output_until(slow, seen), "the log is settled at arrivals"


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=15, deadline=None)
@given(trace=traces())
def test_streams_hold_every_token_at_its_time(
    kind: str, policy: Callable[[], Scheduler], trace: Trace
) -> None:
    """Taken step by step, with a chunk for each token, there are as many tokens at the end of each chunk."""
    quick, slow = _engine(kind, policy()), _engine(kind, policy())
    slow._stretch = lambda: 1  # type: ignore[method-assign]
    requests = _serve(quick, trace)
    ours, tokens = _streams(requests, quick), _streams(_serve(slow, trace), slow)
    for live in requests:
        times, sizes = ours.get(live.id, ([], []))
        assert sum(sizes) == live.generated == (live.output_tokens if live.status == "finished" else 0)
        assert all(earlier < later for earlier, later in pairwise(times))
        if live.generated:
            assert (times[0], sizes[0], times[-1]) == (live.first_token, 1, live.finish)
            assert set(tokens[live.id][1]) == {1}
            assert list(accumulate(sizes)) == [bisect_right(tokens[live.id][0], time) for time in times]


def _streams(requests: list[Live], engine: Engine) -> dict[str, tuple[list[float], list[int]]]:
    """Times and sizes of each request's chunks."""
    frame = chunks(requests, [engine])
    return {str(id): (rows["time"].tolist(), rows["tokens"].tolist()) for id, rows in frame.groupby("id")}


def _output_until(engine: Engine, time: float) -> dict[str, int]:
    """Output tokens in the log up to a time, by client."""
    tokens: dict[str, int] = {}
    for row_time, client, *_, output in engine.journal.rows:
        if row_time <= time and output:
            tokens[client] = tokens.get(client, 0) + output
    return tokens


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=15, deadline=None)
@given(trace=traces())
def test_work_conservation(kind: str, policy: Callable[[], Scheduler], trace: Trace) -> None:
    """After a decision, either nobody waits, or no slot, budget or memory was left for the next offer."""
    engine = _engine(kind, policy())
    admit, refused = engine._admit, []
    attempt = engine._try

    def noted_try(live: Live, work: object) -> bool:
        admitted = attempt(live, work)  # type: ignore[arg-type]
        refused.append(not admitted)
        return admitted

    def checked_admit(work: object) -> None:
        refused.clear()
        admit(work)  # type: ignore[arg-type]
        stopped_by_memory = bool(refused and refused[-1])
        assert not engine.waiting or stopped_by_memory or not engine._open(work)  # type: ignore[arg-type]

    assert engine.policy.work_conserving
    engine._try = noted_try  # type: ignore[method-assign]
    engine._admit = checked_admit  # type: ignore[method-assign]
    _serve(engine, trace)


@pytest.mark.parametrize("kind", ENGINES)
def test_random_traces_do_preempt_and_evict(kind: str) -> None:
    """The tests above would be empty if the pool were never short."""
    requests = tuple(
        Request(str(i), "abc"[i % 3], 0.01 * i, (Segment(f"p{i % 5}", 70), Segment(f"q{i}", 30)), 60)
        for i in range(20)
    )
    engine = _engine(kind, LPM())
    served = _serve(engine, Trace(Header("dense", 0, "test"), requests))
    assert sum(live.preemptions for live in served) > 0
    assert engine.pool.evicted > 0
    assert sum(live.recomputed for live in served) > 0


PROMPT, OUTPUT, QUANTUM = 90, 40, 100.0


def _full(extend: int, cached: int, output: int) -> float:
    return extend + cached + 2 * output


def _extend(extend: int, cached: int, output: int) -> float:
    return extend + 2 * output


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(
    ("policy", "service", "bound"),
    [
        (lambda: DLPM(quantum=QUANTUM), _extend, 2 * (PROMPT + 2 * RUNNING * OUTPUT + QUANTUM)),
        (VTC, _full, 2 * max(PROMPT, 2 * RUNNING * OUTPUT)),
        (lambda: VTC(charge="extend"), _extend, 2 * max(PROMPT, 2 * RUNNING * OUTPUT)),
    ],
)
def test_service_of_backlogged_clients_stays_within_the_published_bound(
    kind: str, policy: Callable[[], Scheduler], service: Callable[[int, int, int], float], bound: float
) -> None:
    """DLPM's Theorem 4.1 and VTC's Theorem 4.4, on the service that each charges; FCFS breaks both."""
    assert 0 < _widest_gap(_engine(kind, policy()), service) <= bound
    assert _widest_gap(_engine(kind, FCFS()), service) > bound


def _backlog() -> Trace:
    """Three requests of a for each of b, all there at once; a has few documents and b has many."""
    requests = []
    for i in range(240):
        client, documents = ("b", 40) if i % 4 == 3 else ("a", 2)
        content = (Segment(f"{client}{i % documents}", 60), Segment(f"question {i}", PROMPT - 60))
        requests.append(Request(f"{i}", client, 0.0, content, OUTPUT))
    return Trace(Header("backlog", 0, "test"), tuple(requests))


def _widest_gap(engine: Engine, service: Callable[[int, int, int], float]) -> float:
    """The widest gap in service while both clients have requests of the backlog waiting."""
    requests = _serve(engine, _backlog())
    last = min(max(live.admitted for live in requests if live.client == c) for c in "ab")
    received, widest = {"a": 0.0, "b": 0.0}, 0.0
    for time, rows in groupby(engine.journal.rows, key=lambda row: row[0]):
        if time >= last:
            break
        for _, client, extend, cached, _, output in rows:
            received[client] += service(extend, cached, output)
        widest = max(widest, abs(received["a"] - received["b"]))
    return widest
