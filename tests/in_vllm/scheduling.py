"""Policies inside the real vLLM scheduler, without a model."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness import POLICIES, Engine, entries, request, scenario, scheduler, workload
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from baselines.decisions import replayed
from suite.backends.host import load
from suite.backends.vllm_plugin import FairAsyncScheduler, FairScheduler

WAYS = {"sync": (FairScheduler, Scheduler, 1), "async": (FairAsyncScheduler, AsyncScheduler, 2)}
POLICY_FILE = Path(__file__).with_name("policies.py")
seen: Counter[str] = Counter()


@contextmanager
def fair(policy: dict[str, Any], way: str = "sync", **extra: Any) -> Iterator[tuple[Engine, Path]]:
    """An engine under a policy, and the folder of its logs."""
    cls, _, depth = WAYS[way]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = Engine(scheduler(cls, folder, {"scheduler": policy, "logs": name, **extra}), depth)
        watch_view(engine.scheduler)
        grown = engine.scheduler.matches.grown
        engine.scheduler.matches.grown = lambda request: (
            seen.update(["output while waiting"]),
            grown(request),
        )
        try:
            yield engine, folder
        finally:
            engine.scheduler.host.close()


def watch_view(core: Any) -> None:
    """Each time a policy asks for the longest-prefix order, hold it against what vLLM would find."""
    view = core.host.waiting
    order = view.by_longest_prefix

    def checked(*args: Any) -> Any:
        for served in view.by_arrival():
            engine = served.engine
            hit = core.kv_cache_manager.coordinator.find_longest_cache_hit(
                engine.block_hashes, engine.num_tokens - 1
            )
            assert view.matched(served) == hit[1]
            seen["match looked at"] += 1
        return order(*args)

    view.by_longest_prefix = checked


def own(name: str, **parameters: Any) -> dict[str, Any]:
    return {"target": f"{POLICY_FILE}:{name}", "parameters": parameters}


def serve(engine: Engine, requests: list[Any], each_step: Callable[[], None] = lambda: None) -> None:
    """Send two requests a step and serve them all."""
    queue = list(reversed(requests))
    while queue or engine.scheduler.has_unfinished_requests():
        for _ in range(min(2, len(queue))):
            engine.scheduler.add_request(queue.pop())
        each_step()
        engine.step()
        assert engine.steps < 5000, "it does not end"
    engine.drain()


# -- every policy, every state ---------------------------------------------------------------------------


def run_with_aborts(policy: str, way: str, seed: int) -> None:
    """Serve a workload, withdrawing requests in every state, and hold the logs against what happened."""
    requests = workload(seed)
    with fair(POLICIES[policy], way) as (engine, folder):
        aborted: dict[str, str] = {}

        def abort() -> None:
            if engine.steps % 9 == 8 and (found := victim(engine, len(aborted) + seed)):
                state, id = found
                aborted[id] = state
                engine.scheduler.finish_requests(id, RequestStatus.FINISHED_ABORTED)

        serve(engine, requests, abort)
        core = engine.scheduler
        assert len(core.waiting) == len(core.host.waiting) == len(core.waiting.served) == 0
        assert not core.host.aside
        assert core.kv_cache_manager.block_pool.get_num_free_blocks() == 25
        engine.scheduler.host.close()
        seen.update(f"abort {state}" for state in aborted.values())
        check_service(entries(folder / "service-0.jsonl"), requests, engine, aborted)
        decisions = entries(folder / "decisions-0.jsonl")
        seen.update(kind for kind, *_ in decisions)
        spec = POLICIES[policy]
        assert replayed(decisions, load(spec["target"])(**spec["parameters"])) == decisions


def victim(engine: Engine, turn: int) -> tuple[str, str] | None:
    """Whom to withdraw: each state has its turn, and what is rarer comes first."""
    running = [each.request_id for each in engine.scheduler.running]
    waiting = list(engine.scheduler.waiting)
    states = {
        "prefilling": [id for id in running if id in engine.prefilling],
        "preempted": [each.request_id for each in waiting if each.num_preemptions],
        "decoding": [id for id in running if id not in engine.prefilling],
        "waiting": [each.request_id for each in waiting if not each.num_preemptions],
    }
    order = [state for state in states if states[state]]
    if not order:
        return None
    state = order[turn % len(order)] if turn % 3 else order[0]
    return state, states[state][0]


def check_service(log: list[list[Any]], requests: list[Any], engine: Engine, aborted: dict[str, str]) -> None:
    by_id = {each.request_id: each for each in requests}
    kinds: dict[str, list[list[Any]]] = {}
    for kind, _, *facts in log:
        kinds.setdefault(kind, []).append(facts)
    assert [line[0] for line in log].index("policy") == 0
    finished = {facts[0]: facts[2:] for facts in kinds["finished"]}
    assert len(kinds["finished"]) == len(finished) == len(requests), "each request leaves once"
    assert {id for id, facts in finished.items() if facts[0] == "abort"} == set(aborted)
    produced: Counter[str] = Counter()
    for (tokens,) in kinds["generated"]:
        produced.update(tokens)
    sent: Counter[str] = Counter()
    for id, tokens in engine.delivered.items():
        assert finished[id][1] == tokens, id
        sent[by_id[id].sampling_params.extra_args["client_id"]] += tokens
    assert produced == sent, "output tokens by client are those delivered"
    check_extend({facts[0]: facts[1:] for facts in kinds["admitted"]}, kinds, finished, by_id, engine)


def check_extend(
    admitted: dict[str, list[Any]],
    kinds: dict[str, list[list[Any]]],
    finished: dict[str, list[Any]],
    by_id: dict[str, Any],
    engine: Engine,
) -> None:
    assert len(kinds["admitted"]) == len(admitted), "each request is admitted once"
    preempted = {id for (id,) in kinds.get("preempted", [])}
    for id, (client, extend, cached) in admitted.items():
        reason, output, uncomputed = finished[id]
        prompt = by_id[id].num_prompt_tokens
        assert client == by_id[id].sampling_params.extra_args["client_id"]
        assert extend + cached == prompt
        assert uncomputed == prompt - min(prompt, engine.reached[id]), id
        seen["cached"] += cached > 0
        seen["uncomputed"] += uncomputed > 0
        seen["uncomputed after a preemption"] += uncomputed > 0 and id in preempted
        if id not in preempted and reason == "stop":
            assert engine.scheduled[id] == extend + output - 1, (id, engine.scheduled[id], extend, output)
    unserved = set(by_id) - set(admitted)
    assert all(finished[id] == ["abort", 0, 0] for id in unserved)


def as_stock(way: str) -> None:
    """FCFS in the plugin schedules step by step what vLLM's own scheduler schedules."""
    _, stock, depth = WAYS[way]
    for seed in range(6):
        with tempfile.TemporaryDirectory() as name, fair(POLICIES["fcfs"], way) as (ours, _):
            theirs = Engine(scheduler(stock, Path(name), None), depth)
            steps = []
            for engine in (theirs, ours):
                made: list[Any] = []
                steps.append(made)
                schedule = engine.scheduler.schedule

                def noted(schedule: Any = schedule, made: list[Any] = made) -> Any:
                    output = schedule()
                    made.append((output.num_scheduled_tokens, output.preempted_req_ids or None))
                    return output

                engine.scheduler.schedule = noted
                serve(engine, workload(seed))
            assert steps[0] == steps[1]
            seen["preempted as stock"] += theirs.preempted
            assert theirs.delivered == ours.delivered


# -- the promises of the interface -----------------------------------------------------------------------


def resumed_only_with_room(way: str) -> None:
    """The generator is resumed after an admission only if a slot and budget are left, and refused once."""
    with fair(own("Watched"), way) as (engine, _):
        core = engine.scheduler
        schedule = core.schedule
        answers = core.host._policy._policy.answers

        def watched() -> Any:
            answers.clear()
            before = {each.request_id for each in core.running}
            output = schedule()
            started = len({each.request_id for each in core.running} - before)
            spent = output.total_num_scheduled_tokens
            full = len(core.running) == 6 or spent == 64
            assert answers.count(True) == started - (1 if full and started else 0), (answers, started, spent)
            assert answers.count(False) <= (not full)
            seen["full step"] += full and started > 0
            seen["told no"] += answers.count(False)
            return output

        core.schedule = watched
        serve(engine, workload(3))


def idle_policy() -> None:
    """A policy that offers nothing leaves its requests waiting, and the engine asks again."""
    with fair(own("Idle")) as (engine, _):
        engine.scheduler.add_request(request("r", [5] * 20, 2))
        for expected in (0, 0, 20, 1):
            before = engine.scheduled["r"]
            engine.step()
            assert engine.scheduled["r"] - before == expected
        assert not engine.scheduler.has_unfinished_requests()


def failing_policy() -> None:
    """What a policy raises takes the engine down and stands in the log, with its place."""
    for policy, message in (
        (own("Raises", at="candidates"), "RuntimeError: broken policy"),
        (own("Raises", at="admitted"), "RuntimeError: broken policy"),
        (own("Stale"), "which is not a waiting request"),
    ):
        with fair(policy) as (engine, folder):
            engine.scheduler.add_request(request("r", [5] * 20, 2))
            raised = None
            try:
                engine.step()
            except (RuntimeError, ValueError) as error:
                raised = error
            assert raised is not None
            kind, _, told = entries(folder / "service-0.jsonl")[-1]
            assert kind == "failed"
            assert message in told
            assert "Raises" not in policy["target"] or "policies.py:" in told


def set_aside(way: str) -> None:
    """What vLLM cannot start yet is hidden from the policy for the step, and tried again in the next."""
    with fair(POLICIES["fcfs"], way) as (engine, folder):
        core = engine.scheduler
        blocked = request("blocked", [5] * 20, 3)
        gone = request("gone", [6] * 20, 3)
        for each in (blocked, gone):
            each.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
            core.add_request(each)
        core.add_request(request("ready", [7] * 64, 30))  # takes all of the step
        engine.step()
        assert engine.scheduled == {"ready": 64}
        assert len(core.waiting) == len(core.host.waiting) == 2
        assert not core.host.aside
        core.finish_requests("gone", RequestStatus.FINISHED_ABORTED)
        engine.step()
        assert engine.scheduled["blocked"] == 0
        blocked.status = RequestStatus.WAITING
        engine.step()
        assert engine.scheduled["blocked"] == 20
        while core.has_unfinished_requests():
            engine.step()
        engine.drain()
        core.host.close()
        log = entries(folder / "decisions-0.jsonl")
        assert [entry for entry in log if entry[0] in ("aside", "back")].count(["aside", 0]) == 2
        assert replayed(log, load("baselines.fcfs:FCFS")()) == log
        service = entries(folder / "service-0.jsonl")
        assert [line[2:] for line in service if line[0] == "finished" and line[2] == "gone"] == [
            ["gone", "anonymous", "abort", 0, 0]
        ]


def started_by_the_engine(way: str) -> None:
    """A request that holds KV memory while it waits is started by vLLM before the policy is asked."""
    with fair(POLICIES["fcfs"], way) as (engine, folder):
        core = engine.scheduler
        fetched = request("fetched", [5] * 20, 3)
        fetched.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        core.add_request(request("first", [6] * 20, 30))
        core.add_request(fetched)
        with patch("suite.backends.vllm_queue._holds_memory", lambda each: each is fetched):
            core._holds_kv_blocks = lambda each: each is fetched  # what later releases ask instead
            engine.step()
            assert core.host.aside == {core.waiting.served["fetched"]}
            assert len(core.waiting) == len(core.host.waiting) == 0
            core.add_request(request("second", [7] * 60, 3))
            fetched.status = RequestStatus.WAITING
            engine.step()
        assert engine.scheduled == {"first": 21, "fetched": 20, "second": 43}
        while core.has_unfinished_requests():
            engine.step()
        engine.drain()
        core.host.close()
        service = entries(folder / "service-0.jsonl")
        starts = [line[2:] for line in service if line[0] == "admitted"]
        assert sorted(starts) == [
            ["fetched", "anonymous", 20, 0],
            ["first", "anonymous", 20, 0],
            ["second", "anonymous", 60, 0],
        ]
        log = entries(folder / "decisions-0.jsonl")
        assert log.index(["admitted", 1, 0]) < log.index(["offer", 2]), "told before the next decision"
        assert replayed(log, load("baselines.fcfs:FCFS")()) == log


def reset(way: str) -> None:
    """A reset with nothing left to do begins a run, with a fresh policy, logs of its own and a cold cache."""
    with fair(POLICIES["lpm"], way) as (engine, folder):
        core = engine.scheduler
        serve(engine, workload(1, 12))
        policy = core.host._policy
        core.add_request(request("late", [9] * 40, 40))
        for _ in range(3):
            engine.step()
        assert not core.reset_prefix_cache()
        assert core.reset_prefix_cache(reset_running_requests=True)
        assert core.host._policy is policy
        while core.has_unfinished_requests():
            engine.step()
        engine.drain()
        assert engine.delivered["late"] == 40
        assert len(core.kv_cache_manager.block_pool.cached_block_hash_to_block)
        assert core.reset_prefix_cache()
        assert core.host._policy is not policy
        serve(engine, workload(1, 12))
        core.shutdown()
        first, second = (entries(folder / f"service-{n}.jsonl") for n in (0, 1))
        for log in (first, second):
            kind, _, facts = log[0]
            assert (kind, facts["name"], facts["cached_blocks"], facts["blocks"]) == ("policy", "lpm", 0, 25)
            assert facts["scheduler_class"] == WAYS[way][0].__name__
        late = [line[0] for line in first if "late" in line[2:3]]
        assert late == ["admitted", "preempted", "resumed", "finished"]
        assert first[-1][2:] == ["late", "anonymous", "stop", 40, 0]
        # the same requests after the reset find what they found in the first run
        starts = [[line[2:] for line in log if line[0] == "admitted"] for log in (first, second)]
        assert starts[0][:-1] == starts[1]


def what_requests_say() -> None:
    """What a request says of itself is taken as far as it makes sense."""
    said: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
        ({}, ("id", "anonymous", 1.0, 0)),
        ({"client_id": 7, "request_id": "t1", "weight": 2, "priority": 3}, ("t1", "7", 2.0, 3)),
        ({"client_id": ["x"], "weight": "nan", "priority": "x"}, ("id", "['x']", 1.0, 0)),
        ({"client_id": "\ud800" * 1000, "weight": -1, "priority": "-2"}, ("id", "\ud800" * 512, 1.0, -2)),
        ({"client_id": "", "weight": 1e300, "priority": 1e300}, ("id", "anonymous", 1e6, 2**31)),
        ({"client_id": "a", "weight": 1e-300, "priority": {}}, ("id", "a", 1e-6, 0)),
        ({"client_id": "a", "weight": 2**63, "priority": float("inf")}, ("id", "a", 1e6, 0)),
    ]
    for facts, expected in said:
        with fair(POLICIES["dlpm"]) as (engine, folder):
            engine.scheduler.add_request(request("id", [5] * 20, 5, **facts))
            served = engine.scheduler.waiting.served["id"]
            assert (served.id, served.client, served.weight, served.priority) == expected, facts
            while engine.scheduler.has_unfinished_requests():
                engine.step()
            engine.scheduler.host.close()
            assert entries(folder / "service-0.jsonl")[-1][0] == "finished"


def measurements(way: str) -> None:
    """Lines of steps and timings cover every step and every offer."""
    with fair(POLICIES["dlpm"], way, steps=True, timing=True) as (engine, folder):
        serve(engine, workload(2))
        engine.scheduler.shutdown()
        log = entries(folder / "service-0.jsonl")
        steps = [line[2:] for line in log if line[0] == "step"]
        assert [step[0] for step in steps] == engine.work
        assert all(new <= attended and new <= read and 0 < n <= 6 for new, attended, read, n in steps)
        prompt = next(line for line in log if line[0] == "admitted")
        assert steps[0][1] >= prompt[4] * (prompt[4] + 1) // 2 or steps[0][0] == 64
        timings = [line[2] for line in log if line[0] == "timing"]
        offers = [line for line in entries(folder / "decisions-0.jsonl") if line[0] == "offer"]
        assert sum(facts["offers"] for facts in timings) == len(offers) > 0
        assert engine.steps <= sum(facts["steps"] for facts in timings) <= engine.steps + 5
        assert [facts["steps"] for facts in timings[:-1]] == [100] * (len(timings) - 1) != []
        assert all(0 < facts["deciding_ns"] < 100 * facts["scheduling_ns"] for facts in timings)


def measured_without_increments() -> None:
    """Over a sliding window, where nothing is told of the cache, timings are taken all the same."""
    with tempfile.TemporaryDirectory() as name:
        suite = {"scheduler": POLICIES["lpm"], "logs": name, "timing": True}
        core = scheduler(FairScheduler, Path(name), suite, window=64)
        serve(Engine(core), workload(2, 12))
        core.shutdown()
        log = entries(Path(name) / "service-0.jsonl")
        assert log[0][2]["matches"] == "recomputed"
        assert [line[2]["deciding_ns"] > 0 for line in log if line[0] == "timing"] == [True]


def check(results: dict[str, str]) -> None:
    """Note of every scenario whether it held."""
    for way in WAYS:
        for policy in POLICIES:
            with scenario(results, f"{policy}, {way}"):
                for seed in range(4):
                    run_with_aborts(policy, way, seed)
        for both in (as_stock, resumed_only_with_room, set_aside, started_by_the_engine, reset, measurements):
            with scenario(results, f"{both.__name__}, {way}"):
                both(way)
    for alone in (idle_policy, failing_policy, what_requests_say, measured_without_increments):
        with scenario(results, alone.__name__):
            alone()
    with scenario(results, "nothing of scheduling was left out"):
        states = ("abort waiting", "abort prefilling", "abort decoding", "abort preempted")
        kinds = ("preempted", "resumed", "refused", "enough", "pass", "longest")
        rest = (
            "cached",
            "uncomputed",
            "preempted as stock",
            "full step",
            "told no",
            "output while waiting",
            "match looked at",
        )
        assert all(seen[what] for what in (*states, *kinds, *rest)), seen
