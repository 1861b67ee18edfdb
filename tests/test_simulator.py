"""Small scenes with answers worked out by hand."""

from __future__ import annotations

from itertools import islice, pairwise, repeat
from math import isnan
from pathlib import Path
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from baselines.fcfs import FCFS
from baselines.lpm import LPM
from baselines.scheduler import Candidates, Scheduler, Waiting
from suite.backends.cost import Cost
from suite.backends.simulator import Simulator
from suite.backends.simulator.cluster import alone
from suite.backends.simulator.cost import COMPUTE_EFFICIENCY, MEMORY_EFFICIENCY, STEP_OVERHEAD, roofline
from suite.backends.simulator.engine import Engine, PolicyError
from suite.backends.simulator.live import Live, lives
from suite.backends.simulator.noise import Noise
from suite.backends.simulator.presets import GPUS, MODELS
from suite.backends.simulator.sglang import SGLangEngine
from suite.backends.simulator.step import Limits
from suite.backends.simulator.streams import chunks
from suite.backends.simulator.vllm import VLLMEngine
from suite.errors import BadInput
from suite.policies import SchedulerSpec
from suite.trace import Header, Request, Segment, Trace, checked

SECOND = Cost(((1.0, 0.0, 0.0, 0.0, 0.0),))
"""Every step takes a second."""

FIFO = SchedulerSpec("fcfs", "baselines.fcfs:FCFS")

ENGINES = {"vllm": VLLMEngine, "sglang": SGLangEngine}


def prompt(*segments: tuple[str, int]) -> tuple[Segment, ...]:
    return tuple(Segment(*segment) for segment in segments)


def serve(
    kind: str,
    *requests: Request,
    policy: Scheduler | None = None,
    running: int = 8,
    budget: int = 1000,
    kv_tokens: int = 16 * 1000,
) -> dict[str, Live]:
    served, engine = make(kind, *requests, policy=policy, running=running, budget=budget, kv_tokens=kv_tokens)
    alone(served, engine).run(lambda share: None)
    return {live.id: live for live in served}


def make(
    kind: str,
    *requests: Request,
    policy: Scheduler | None = None,
    running: int = 8,
    budget: int = 1000,
    kv_tokens: int = 16 * 1000,
) -> tuple[list[Live], Engine]:
    """The requests and an engine for them."""
    trace = checked(Trace(Header("scene", 0, "test"), requests))
    limits = Limits(running, budget)
    return lives(trace), ENGINES[kind](policy or FCFS(), SECOND, limits, repeat(1.0), kv_tokens)


@pytest.mark.parametrize("kind", ENGINES)
def test_a_prompt_is_computed_in_chunks_and_gives_the_first_token_at_its_end(kind: str) -> None:
    live = serve(kind, Request("a", "x", 0.5, prompt(("p", 100)), 3), budget=64)["a"]
    assert (live.admitted, live.first_token, live.finish) == (0.5, 2.5, 4.5)


def test_vllm_decodes_first_and_prefills_with_what_budget_is_left() -> None:
    first = Request("a", "x", 0.0, prompt(("p", 8)), 20)
    second = Request("b", "x", 0.0, prompt(("q", 20)), 1)
    done = serve("vllm", first, second, budget=8)
    # b gets 7 tokens beside each decode of a: steps 2, 3, 4 (7 + 7 + 6)
    assert (done["a"].first_token, done["b"].first_token) == (1, 4)
    assert done["a"].finish == 20


def test_sglang_prefills_before_it_decodes() -> None:
    first = Request("a", "x", 0.0, prompt(("p", 8)), 20)
    second = Request("b", "x", 0.0, prompt(("q", 20)), 1)
    done = serve("sglang", first, second, budget=8)
    # b takes three whole steps (8 + 8 + 4), in which a does not decode
    assert (done["a"].first_token, done["b"].first_token) == (1, 4)
    assert done["a"].finish == 23


@pytest.mark.parametrize("kind", ENGINES)
def test_a_decode_that_waits_for_a_prefill_is_one_long_gap_between_two_tokens(kind: str) -> None:
    """The prompt of b is one step for SGLang, and in vLLM nothing waits: a token comes every second."""
    first = Request("a", "x", 0.0, prompt(("p", 8)), 20)
    second = Request("b", "x", 3.5, prompt(("q", 20)), 1)
    requests, engine = make(kind, first, second)
    alone(requests, engine).run(lambda share: None)
    streams = chunks(requests, [engine])
    times, tokens = (streams.loc[streams["id"] == "a", name].tolist() for name in ("time", "tokens"))
    each = [(later - before) / n for (before, later), n in zip(pairwise(times), tokens[1:], strict=True)]
    assert max(each) == (2 if kind == "sglang" else 1)


@pytest.mark.parametrize(("kind", "same_step", "later"), [("vllm", 48, 48), ("sglang", 0, 50)])
def test_when_and_how_exactly_a_shared_prefix_is_matched(kind: str, same_step: int, later: int) -> None:
    """vLLM hashes blocks of 16 at allocation; SGLang caches single tokens after they are computed."""
    a, b, c = (
        Request(id, "x", arrival, prompt(("doc", 50), (f"question {id}", 20)), 5)
        for id, arrival in (("a", 0.0), ("b", 0.0), ("c", 3.0))
    )
    done = serve(kind, a, b, c)
    assert [done[id].cached for id in "abc"] == [0, same_step, later]


@pytest.mark.parametrize(("kind", "cached"), [("vllm", 48), ("sglang", 63)])
def test_at_least_one_token_is_computed_on_a_full_hit(kind: str, cached: int) -> None:
    first, again = (Request(id, "x", arrival, prompt(("p", 64)), 1) for id, arrival in (("a", 0), ("b", 9)))
    assert serve(kind, first, again)["b"].cached == cached


@pytest.mark.parametrize("kind", ENGINES)
def test_a_reply_is_cached_up_to_its_last_token_and_its_turn_waits_for_it(kind: str) -> None:
    first = Request("a", "x", 0.0, prompt(("p", 32)), 17)
    second = Request("b", "x", 3.0, prompt(("p", 32), ("reply:a", 17), ("q", 15)), 1, after=("a",), think=2.0)
    done = serve(kind, first, second)
    assert done["a"].finish == 17
    assert done["b"].arrival == 19
    assert done["b"].cached == 48


@pytest.mark.parametrize(("kind", "left"), [("vllm", 48), ("sglang", 0)])
def test_eviction_takes_blocks_from_the_end_or_whole_leaves(kind: str, left: int) -> None:
    """128 tokens of memory: a leaves 80 cached, b needs 80, so 32 must go."""
    a, b, again = (
        Request(id, "x", arrival, prompt((document, 80)), 1)
        for id, arrival, document in (("a", 0, "A"), ("b", 5, "B"), ("c", 10, "A"))
    )
    done = serve(kind, a, b, again, kv_tokens=128)
    assert done["c"].cached == left


@pytest.mark.parametrize("kind", ENGINES)
def test_the_least_recently_used_prefix_is_evicted_first(kind: str) -> None:
    ids = {"a": "A", "b": "B", "a2": "A", "c": "C", "a3": "A", "b2": "B"}
    requests = [
        Request(id, "x", 5.0 * i, prompt((document, 64), (f"tail {id}", 1)), 1)
        for i, (id, document) in enumerate(ids.items())
    ]
    done = serve(kind, *requests, kv_tokens=176)
    assert done["a2"].cached == 64
    assert done["a3"].cached == 64
    assert done["b2"].cached < 64


@pytest.mark.parametrize("kind", ENGINES)
def test_admission_needs_memory_for_the_whole_prompt(kind: str) -> None:
    big = Request("big", "x", 0.0, prompt(("p", 160)), 10)
    next_ = Request("next", "x", 0.0, prompt(("q", 100)), 1)
    done = serve(kind, big, next_, kv_tokens=256, budget=1000)
    assert done["next"].admitted == done["big"].finish == 10


@pytest.mark.parametrize("kind", ENGINES)
def test_running_requests_are_limited(kind: str) -> None:
    requests = [Request(str(i), "x", 0.0, prompt((f"p{i}", 10)), 5) for i in range(4)]
    done = serve(kind, *requests, running=2)
    assert [done[str(i)].admitted for i in range(4)] == [0, 0, 5, 5]


def test_vllm_preempts_the_last_one_started_when_decoding_runs_out_of_blocks() -> None:
    a, b = (Request(id, "x", 0.0, prompt((id, 32)), 40) for id in "ab")
    done = serve("vllm", a, b, kv_tokens=16 * 6)
    # With 64 of 96 tokens for the prompts, each decodes 16 tokens into one more block; then a needs another.
    assert (done["a"].preemptions, done["b"].preemptions) == (0, 1)
    assert done["a"].finish == 40
    # b has 32 + 17 known tokens and computed 48 of them. Its blocks wait at the end of the queue while a
    # takes what it needs: two more, both from b's end. So one is found again, the others computed anew.
    assert done["b"].recomputed == 32
    assert done["b"].generated == 40


@pytest.mark.parametrize("kind", ENGINES)
def test_what_can_never_fit_is_rejected_and_what_comes_after_it_cancelled(kind: str) -> None:
    small = Request("small", "x", 0.0, prompt(("p", 10)), 1)
    big = Request("big", "x", 0.0, prompt(("p", 500)), 1)
    turn = Request("turn", "x", 0.0, prompt(("p", 500), ("reply:big", 1)), 1, after=("big",))
    last = Request("last", "x", 0.0, prompt(("q", 5)), 1, after=("turn", "small"))
    done = serve(kind, small, big, turn, last, kv_tokens=320)
    status = {id: live.status for id, live in done.items()}
    assert status == {"small": "finished", "big": "rejected", "turn": "cancelled", "last": "cancelled"}


@pytest.mark.parametrize("kind", ENGINES)
def test_time_jumps_over_idle_gaps(kind: str) -> None:
    done = serve(kind, *(Request(str(t), "x", t, prompt(("p", 5)), 2) for t in (3.0, 1000.0)))
    assert [live.finish for live in done.values()] == [5.0, 1002.0]


@pytest.mark.parametrize("kind", ENGINES)
def test_ties_in_arrival_are_served_in_trace_order(kind: str) -> None:
    requests = [Request(id, "x", 1.0, prompt((id, 5)), 1) for id in "zay"]
    done = serve(kind, *requests, running=1)
    assert sorted(done, key=lambda id: done[id].admitted) == ["z", "a", "y"]


@pytest.mark.parametrize("kind", ENGINES)
def test_lpm_sees_the_cache_as_it_is_at_each_decision(kind: str) -> None:
    """b shares a document with what has been served, c does not, so b overtakes c."""
    a = Request("a", "x", 0.0, prompt(("doc", 64), ("1", 5)), 5)
    c = Request("c", "x", 1.0, prompt(("other", 64), ("2", 5)), 5)
    b = Request("b", "x", 2.0, prompt(("doc", 64), ("3", 5)), 5)
    done = serve(kind, a, c, b, policy=LPM(), running=1)
    assert done["b"].admitted < done["c"].admitted


class Nobody(Scheduler):
    """Never offers anyone."""

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        return
        yield


class Twice(Scheduler):
    """Offers the same request again."""

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        request = next(iter(waiting.by_arrival()))
        yield request
        yield request


class NoGenerator(Scheduler):
    """Returns a list."""

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        return list(waiting.by_arrival())  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ENGINES)
def test_whom_nobody_offers_starves_when_nothing_else_is_left(kind: str) -> None:
    """Late comers are waited for: the policy might change its mind."""
    turn = Request("turn", "x", 0.0, prompt(("p", 5), ("reply:a", 9)), 1, after=("a",))
    done = serve(
        kind,
        Request("a", "x", 0.0, prompt(("p", 5)), 9),
        turn,
        Request("late", "x", 50.0, prompt(("q", 5)), 9),
        policy=Nobody(),
    )
    assert {id: live.status for id, live in done.items()} == {
        "a": "starved",
        "turn": "cancelled",
        "late": "starved",
    }
    assert done["late"].arrival == 50
    assert isnan(done["a"].admitted)
    assert isnan(done["turn"].arrival)


class Once(FCFS):
    """Offers each request once, so that one that lost its place never gets it back."""

    def __init__(self) -> None:
        self._offered: set[object] = set()

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        for request in list(waiting.by_arrival()):
            if request not in self._offered:
                self._offered.add(request)
                yield request


def test_a_preempted_request_may_starve_too() -> None:
    """It keeps what it got: its admission and its first tokens."""
    a, b = (Request(id, "x", 0.0, prompt((id, 32)), 40) for id in "ab")
    done = serve("vllm", a, b, policy=Once(), kv_tokens=16 * 6)
    assert (done["a"].status, done["b"].status) == ("finished", "starved")
    assert (done["b"].first_token, done["b"].generated) == (1, 17)
    assert isnan(done["b"].finish)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Twice(), r"Twice offers Live\('a', .*\), which is not a waiting request"),
        (NoGenerator(), "NoGenerator has a `candidates` that is not a generator"),
    ],
)
def test_a_policy_that_breaks_the_rules_is_reported(kind: str, policy: Scheduler, message: str) -> None:
    requests = (Request(id, "x", 0.0, prompt((id, 5)), 9) for id in "ab")
    with pytest.raises(PolicyError, match=message):
        alone(*make(kind, *requests, policy=policy)).run(lambda share: None)


# -- cost --------------------------------------------------------------------------------------------------


def test_roofline_of_a_decode_step_is_its_memory_traffic() -> None:
    """One sequence of 1,000 tokens: layers and output head (15.01 GB) and its KV cache (128 KiB a token)."""
    traffic = (2 * (6.979e9 + 128256 * 4096) + 1000 * 131072) / (3.35e12 * MEMORY_EFFICIENCY)
    step = roofline(MODELS["llama-3.1-8b"], GPUS["h100"]).step(new=1, attended=1000, read=1000, sequences=1)
    assert step == pytest.approx(STEP_OVERHEAD + traffic, rel=1e-3)


def test_roofline_of_a_long_prefill_is_its_arithmetic() -> None:
    """4,096 tokens of an 8B model: 2 FLOPs a layer parameter (6.98e9) and token, and attention."""
    pairs = 4096 * 4097 // 2
    flops = 2 * 6.98e9 * 4096 + 4 * 32 * 4096 * pairs
    cost = roofline(MODELS["llama-3.1-8b"], GPUS["a10g"])
    step = cost.step(new=4096, attended=pairs, read=4096, sequences=1)
    assert step == pytest.approx(STEP_OVERHEAD + flops / (70e12 * COMPUTE_EFFICIENCY), rel=1e-3)


numbers = st.floats(0, 1e-3)
lines = st.lists(st.tuples(st.floats(1e-4, 1), numbers, numbers, numbers, numbers), min_size=1, max_size=2)


@given(lines, st.integers(1, 50), st.integers(1, 5000), st.integers(1, 200))
def test_a_stretch_of_decode_steps_is_the_sum_of_its_steps(
    lines: list[tuple[float, float, float, float, float]], batch: int, context: int, steps: int
) -> None:
    cost = Cost(tuple(lines))
    one_by_one = sum(cost.step(batch, context + i * batch, context + i * batch, batch) for i in range(steps))
    assert cost.decode(batch, context, steps) == pytest.approx(one_by_one, rel=1e-9)


@given(lines, st.integers(1, 50), st.integers(1, 5000), st.floats(0, 100), st.integers(1, 200))
def test_steps_to_a_time_are_the_fewest_that_reach_it(
    lines: list[tuple[float, float, float, float, float]], batch: int, context: int, time: float, most: int
) -> None:
    cost = Cost(tuple(lines))
    steps = cost.steps_to(time, batch, context, most)
    assert 1 <= steps <= most
    assert steps == most or cost.decode(batch, context, steps) >= time * (1 - 1e-9)
    assert steps == 1 or cost.decode(batch, context, steps - 1) < time * (1 + 1e-9)


def noisy(noise: Noise, trace: Trace) -> list[float]:
    """When each request of a trace ends."""
    outcome = Simulator(noise=noise).run(trace, FIFO, Path(), lambda share, note="": None)
    return [float(time) for time in outcome.requests["finish"]]


def test_noise_has_the_mean_and_the_variation_that_were_asked_for() -> None:
    factors = list(islice(Noise(cv=0.3, slowdown=2).factors("trace"), 20_000))
    assert min(factors) > 0
    assert mean(factors) == pytest.approx(2, rel=0.01)
    assert stdev(factors) / mean(factors) == pytest.approx(0.3, rel=0.03)


def test_noise_is_the_same_for_the_same_seed_and_trace_alone() -> None:
    trace = Trace(
        Header("three", 0, "test"),
        tuple(Request(id, id, 0.1, prompt((id, 50)), 20) for id in "abc"),
    )
    once = noisy(Noise(cv=0.2, seed=1), trace)
    assert once == noisy(Noise(cv=0.2, seed=1), trace)
    assert once != noisy(Noise(cv=0.2, seed=2), trace)
    first, second = (list(islice(Noise(cv=0.2).factors(digest), 3)) for digest in ("one", "two"))
    assert first != second


def test_without_variation_the_slowdown_is_exact() -> None:
    trace = Trace(Header("one", 0, "test"), (Request("a", "x", 0.0, prompt(("p", 50)), 20),))
    plain, slow = (noisy(Noise(cv=0, slowdown=slowdown), trace) for slowdown in (1.0, 1.05))
    assert slow == pytest.approx([1.05 * end for end in plain], rel=1e-12)
    unnoisy = Simulator().run(trace, FIFO, Path(), lambda share, note="": None)
    assert plain == unnoisy.requests["finish"].tolist()


@given(st.floats(0.02, 60), st.floats(0, 1), st.integers(0, 5))
def test_a_stretch_of_decode_steps_ends_with_the_one_in_which_a_request_comes(
    seconds: float, cv: float, seed: int
) -> None:
    """However long noise makes its steps. The prompt is the first step, the stretch has the second factor."""
    cost = Cost(((0.01, 0.0, 0.0, 1e-6, 0.0),))
    first, factor = islice(Noise(cv=cv, seed=seed).factors("trace"), 2)
    engine = VLLMEngine(FCFS(), cost, Limits(8, 100), iter((first, factor)), 16_000)
    requests = tuple(Request(id, "x", 0.0, prompt(("p", 5)), 9_000) for id in "ab")
    live, late = lives(Trace(Header("two", 0, "test"), requests))
    engine.deliver(live, 0.0)
    engine.begin(0.0)
    engine.end()
    engine.begin(engine.now)
    start, whole = engine.now, engine.ends
    time = start + min(seconds, 0.99 * (whole - start))
    engine.deliver(late, time)
    engine.end()
    steps = engine.batch.ticks
    assert engine.now == start + factor * cost.decode(1, 6, steps) >= time
    assert start + factor * cost.decode(1, 6, steps - 1) < time


# -- settings ----------------------------------------------------------------------------------------------

ONE = Trace(Header("one", 0, "test"), (Request("a", "x", 0.0, prompt(("p", 5)), 1),))


def test_pool_is_what_weights_and_activations_leave() -> None:
    tokens = Simulator(model="llama-3.1-8b", gpu="a10g").pool_tokens()
    assert tokens == pytest.approx((24e9 * 0.9 - 1.5e9 - 2 * 8.03e9) / 131072, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpu": "h10"}, r"unknown gpu 'h10'; did you mean 'h100'"),
        ({"noise": {"cv": 1e200}}, "noise.cv"),
        ({"noise": {"cv": 0.1, "slowdown": 1e308}}, "noise.slowdown"),
        ({"model": "lama-3.1-8b"}, r"unknown model .*did you mean 'llama-3.1-8b'"),
        ({"token_budget": 8}, r"token_budget \(8\) must be at least max_running \(256\)"),
        ({"max_running": 0}, r"greater than or equal to 1"),
        ({"noise": {"cv": -0.1}}, r"noise.cv\n.*greater than or equal to 0"),
        ({"noise": {"cv": 0.1, "slowdown": 0}}, r"noise.slowdown\n.*greater than or equal to 0.001"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Simulator.model_validate(settings)


def test_coefficients_that_are_not_there_are_named() -> None:
    with pytest.raises(BadInput, match=r"nowhere.yaml: cannot be read"):
        Simulator(cost=Path("nowhere.yaml"))


def test_a_model_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GPUS, "tiny", GPUS["a10g"].__class__(8e9, 1e12, 1e11))
    with pytest.raises(
        ValidationError, match=r"'llama-3\.1-8b' leaves no memory for a KV cache on gpu 'tiny'"
    ):
        Simulator(gpu="tiny")


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError):
        Simulator.model_validate({"gpus": "a10g"})


def test_fitted_coefficients_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "cost.yaml"
    file.write_text("{step: 2, token: 0.5, attended: 0, read: 0, sequence: 0}")
    outcome = Simulator(cost=file).run(ONE, FIFO, Path(), lambda share, note="": None)
    assert outcome.requests["finish"].tolist() == [2 + 5 * 0.5]
    file.write_text("{step: 2, token: -1, attended: 0, read: 0, sequence: 0}")
    with pytest.raises(BadInput, match=r"cost.yaml: token: .*greater than or equal to 0"):
        Simulator(cost=file)


def test_outcome_has_a_row_for_every_request_and_the_service_log() -> None:
    requests = [
        Request("a", "x", 0.0, prompt(("p", 40)), 3, session="s"),
        Request("b", "y", 100.0, prompt(("p", 40)), 1),
    ]
    trace = Trace(Header("two", 0, "test"), tuple(requests))
    outcome = Simulator().run(trace, FIFO, Path(), lambda share, note="": None)
    assert outcome.requests[["id", "client", "status"]].to_numpy().tolist() == [
        ["a", "x", "finished"],
        ["b", "y", "finished"],
    ]
    assert outcome.requests["session"].isna().tolist() == [False, True]
    totals = outcome.service.groupby("client")[["extend", "cached", "recomputed", "output"]].sum()
    assert totals.loc["x"].tolist() == [40, 0, 0, 3]
    assert totals.loc["y"].tolist() == [8, 32, 0, 1]
    assert outcome.engine["kv_tokens"] == Simulator().pool_tokens() // 16 * 16
