"""Policies inside the real SGLang scheduler, without a model."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness import (
    BUDGET,
    POLICIES,
    SLOTS,
    Engine,
    arriving,
    entries,
    request,
    scenario,
    scheduler,
    workload,
)
from sglang.srt.managers import load_snapshot, schedule_policy
from sglang.srt.managers import scheduler as sglang_scheduler
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.mem_cache.radix_cache import RadixKey

from baselines.decisions import replayed
from suite.backends import sglang_plugin
from suite.backends.host import load

WAYS: dict[str, dict[str, Any]] = {
    "sync": {},
    "overlap": {"disable_overlap_schedule": False},
    "mixed": {"enable_mixed_chunk": True},
    "mixed overlap": {"enable_mixed_chunk": True, "disable_overlap_schedule": False},
    "pages": {"page_size": 16, "tokens": 320, "disable_overlap_schedule": False},
}
STOCK: dict[str, list[str]] = {
    "fcfs": ["first", "long", "short", "cached", "middle"],
    "lpm": ["first", "cached", "long", "short", "middle"],
    "dfs-weight": ["first", "cached", "long", "short", "middle"],
    "lof": ["first", "cached", "short", "middle", "long"],
    "hrrn": ["first", "short", "cached", "middle", "long"],
    "shortest-prefill-first": ["short", "middle", "long", "first", "cached"],
    "random": [],
}
"""SGLang's own policies, and the order that each gives to the requests of `stock_policies`; any, if empty."""
POLICY_FILE = Path(__file__).parents[1] / "in_vllm" / "policies.py"
"""The same file as in vLLM."""
CLIP = 8
"""Output tokens for which admission reserves memory: few, so that requests are retracted later."""
seen: Counter[str] = Counter()


@contextmanager
def fair(policy: dict[str, Any], way: str = "sync", **more: Any) -> Iterator[tuple[Engine, Path]]:
    """An engine under a policy, and the folder of its logs."""
    suite = {name: more.pop(name) for name in ("steps", "timing") if name in more}
    more.setdefault("schedule_policy", policy.get("stock", "fcfs"))
    with tempfile.TemporaryDirectory() as name, patch.object(schedule_policy, "CLIP_MAX_NEW_TOKENS", CLIP):
        core = scheduler({"scheduler": policy, "logs": name, **suite}, **{**WAYS[way], **more})
        watch_matches(core)
        try:
            yield Engine(core), Path(name)
        finally:
            core.host.close()


def watch_matches(core: Any) -> None:
    """Whenever a policy has asked for matches, hold them against what SGLang finds."""
    view, order, started = core.host.waiting, core.host.waiting.by_longest_prefix, core.host.started

    def ordered(*clients: Any) -> Any:
        for served in view.by_arrival():
            tokens = served.engine.origin_input_ids + served.engine.output_ids
            found = core.tree_cache.tree_core.match_full_device_prefix(
                RadixKey(tokens, limit=len(tokens) - 1)
            )
            assert view.matched(served) == found[0]
            seen["match looked at"] += 1
        return order(*clients)

    def starting(served: Any, cached: int) -> None:
        if core.host.waiting._matched is not None:
            assert core.host.waiting.matched(served) == cached, "the match is what SGLang then uses"
            seen["match used"] += cached > 0
        started(served, cached)

    view.by_longest_prefix, core.host.started = ordered, starting


def own(name: str, **parameters: Any) -> dict[str, Any]:
    return {"target": f"{POLICY_FILE}:{name}", "parameters": parameters}


def decided(folder: Path, policy: dict[str, Any], run: int = 0) -> list[list[Any]]:
    """The decision log, which a fresh policy gives again; of a stock policy, the events."""
    log = entries(folder / f"decisions-{run}.jsonl")
    assert "stock" in policy or replayed(log, load(policy["target"])(**policy["parameters"])) == log
    return log


def empty(core: Any) -> None:
    """Nothing is left of any request."""
    assert not any(
        (core._queue, core.host.waiting, core._queue.served, core._queue.released, core.host.aside)
    )
    assert core.req_to_token_pool.available_size() == core.max_running_requests
    held = core.tree_cache.evictable_size() + core.token_to_kv_pool_allocator.available_size()
    assert held == core.max_total_num_tokens


# -- every policy, every state ---------------------------------------------------------------------------


def run_with_aborts(policy: dict[str, Any], way: str, seed: int) -> None:
    """Serve a workload, withdrawing requests in every state, and hold the logs against what happened."""
    requests = workload(seed)
    with fair(policy, way) as (engine, folder):
        aborted: dict[str, str] = {}
        arrivals = arriving(requests)

        def act(engine: Engine) -> Iterable[Any]:
            yield from arrivals(engine)
            if engine.passes % 9 == 8 and (found := victim(engine, len(aborted) + seed, aborted)):
                state, rid = found
                aborted[rid] = state
                yield AbortReq(rid=rid)

        engine.serve(act)
        empty(engine.core)
        engine.core.host.close()
        seen.update(f"abort {state}" for state in aborted.values())
        exact = WAYS[way].get("disable_overlap_schedule", True)
        check_service(entries(folder / "service-0.jsonl"), requests, engine, exact)
        seen.update(kind for kind, *_ in decided(folder, policy))


def victim(engine: Engine, turn: int, aborted: Iterable[str]) -> tuple[str, str] | None:
    """Whom to withdraw: each state has its turn, and what is rarer comes first."""
    core = engine.core
    waiting = [each for each in core.waiting_queue if each.rid not in aborted]
    running = [each for each in core.running_batch.reqs if not each.finished() and each.rid not in aborted]
    chunked = [core.chunked_req] if core.chunked_req and core.chunked_req.rid not in aborted else []
    states = {
        "prefilling again": [each for each in chunked if each.retraction_count],
        "prefilling": [each for each in chunked if not each.retraction_count],
        "retracted": [each for each in waiting if each.retraction_count],
        "decoding": running,
        "waiting": [each for each in waiting if not each.retraction_count],
    }
    order = [state for state in states if states[state]]
    if not order:
        return None
    state = order[turn % len(order)] if turn % 3 else order[0]
    return state, states[state][0].rid


def check_service(log: list[list[Any]], requests: list[Any], engine: Engine, exact: bool) -> None:
    by_id = {each.rid.removeprefix("rid-"): each for each in requests}
    kinds: dict[str, list[list[Any]]] = {}
    for kind, _, *facts in log:
        kinds.setdefault(kind, []).append(facts)
    assert [line[0] for line in log].index("policy") == 0
    finished = {facts[0]: facts[2:] for facts in kinds["finished"]}
    outbox = engine.core.outbox
    assert len(kinds["finished"]) == len(finished) == len(requests), "each request leaves once"
    ends = {id: "abort" if outbox.ended[each.rid] == "abort" else "stop" for id, each in by_id.items()}
    assert {id: facts[0] for id, facts in finished.items()} == ends
    produced: Counter[str] = Counter()
    for (tokens,) in kinds["generated"]:
        produced.update(tokens)
    sent: Counter[str] = Counter()
    for id, each in by_id.items():
        assert finished[id][1] == outbox.delivered[each.rid], id
        sent[each.routing_key] += outbox.delivered[each.rid]
    assert produced == sent, "output tokens by client are those delivered"
    check_extend({facts[0]: facts[1:] for facts in kinds["admitted"]}, kinds, finished, by_id, engine, exact)


def check_extend(
    admitted: dict[str, list[Any]],
    kinds: dict[str, list[list[Any]]],
    finished: dict[str, list[Any]],
    by_id: dict[str, Any],
    engine: Engine,
    exact: bool,
) -> None:
    assert len(kinds["admitted"]) == len(admitted), "each request is admitted once"
    again = recomputed(kinds)
    for id, (client, extend, cached) in admitted.items():
        _, output, uncomputed = finished[id]
        prompt, rid = len(by_id[id].input_ids), by_id[id].rid
        assert client == by_id[id].routing_key
        assert extend + cached == prompt
        assert uncomputed == prompt - min(prompt, max(cached, engine.reached[rid])), id
        seen["cached"] += cached > 0
        seen["uncomputed"] += uncomputed > 0
        seen["recomputed"] += again[id] > 0
        told = extend - uncomputed + again[id] + max(0, output - 1)
        # run ahead, the engine computes up to a token more for each time that a request leaves the batch
        ahead = 0 if exact else 1 + len([1 for (each,) in kinds.get("preempted", []) if each == id])
        assert 0 <= engine.computed[rid] - told <= ahead, (id, engine.computed[rid], told)
    unserved = set(by_id) - set(admitted)
    assert all(finished[id] == ["abort", 0, 0] for id in unserved)


def recomputed(kinds: dict[str, list[list[Any]]]) -> Counter[str]:
    """Tokens computed once more, by request."""
    again: Counter[str] = Counter()
    for id, _, tokens, _ in kinds.get("resumed", []):
        again[id] += tokens
    for id, _, tokens in kinds.get("spared", []):
        again[id] -= tokens
        seen["spared"] += 1
    return again


def forced_retraction(way: str) -> None:
    """With retractions forced on it every few steps, the sums by client are those sent."""
    requests = workload(7)
    forced = {"TEST_RETRACT": True, "TEST_RETRACT_INTERVAL": 5}
    with patch.multiple(sglang_scheduler, **forced), fair(POLICIES["dlpm"], way) as (engine, folder):
        engine.serve(arriving(requests))
        engine.core.host.close()
        log = entries(folder / "service-0.jsonl")
        exact = WAYS[way].get("disable_overlap_schedule", True)
        check_service(log, requests, engine, exact)
        assert engine.core.outbox.delivered == {
            each.rid: each.sampling_params.max_new_tokens for each in requests
        }
        seen["forced retraction"] += len([line for line in log if line[0] == "preempted"])
        decided(folder, POLICIES["dlpm"])


def as_stock(way: str) -> None:
    """FCFS in the plugin does batch by batch what SGLang's own FCFS does. That one marks the prefixes of all
    waiting requests as used, so they are compared with no cache, or with memory to spare; and it puts a
    request that lost its place last, so none does here.
    """
    requests = workload(3)
    for each in requests:
        each.sampling_params.ignore_eos = True
    for more in ({"disable_radix_cache": True}, {"tokens": 20000}):
        logs, works = [], []
        for policy in ({"stock": "fcfs"}, POLICIES["fcfs"]):
            with fair(policy, way, **more) as (engine, folder):
                engine.serve(arriving(requests))
                engine.core.host.close()
                log = entries(folder / "service-0.jsonl")
                logs.append([[line[0], *line[2:]] for line in log if line[0] not in ("policy", "active")])
                works.append((engine.work, engine.computed))
        assert works[0] == works[1]
        assert logs[0] == logs[1]
        seen["cached as stock"] += sum(line[4] for line in logs[0] if line[0] == "admitted")


# -- the promises of the interface -----------------------------------------------------------------------


def resumed_only_with_room(way: str) -> None:
    """The generator is resumed after an admission only if a slot and budget are left, and refused once."""
    with fair(own("Watched"), way) as (engine, _):
        core = engine.core
        form = core.get_new_batch_prefill
        answers = core.host._policy._policy.answers

        def watched(*args: Any) -> Any:
            answers.clear()
            chunked, running = core.chunked_req, len(core.running_batch.reqs)
            plan = form(*args)
            batch = plan.batch_to_run
            if batch is None:
                assert not answers.count(True)
                return plan
            decoding = len(batch.decoding_reqs or ())
            new = len(batch.reqs) - decoding - (chunked is not None)
            full = batch.extend_num_tokens >= BUDGET or running + new + (chunked is not None) == SLOTS
            assert answers.count(True) in (new, new - 1), (answers, new)
            assert answers.count(True) == new - 1 or not full or not new
            assert answers.count(False) <= (not full)
            seen["full batch"] += full and new > 0
            seen["told no"] += answers.count(False)
            return plan

        core.get_new_batch_prefill = watched
        engine.serve(arriving(workload(3)))


def idle_policy() -> None:
    """A policy that offers nothing leaves its requests waiting, and the engine asks again."""
    with fair(own("Idle")) as (engine, folder):
        sent = iter([request("r", [5] * 20, 2)])
        engine.serve(lambda engine: [each for each in [next(sent, None)] if each])
        assert engine.work == [20, 1]
        engine.core.host.close()
        assert [kind for kind, *_ in decided(folder, own("Idle"))].count("decide") == 3


def failing_policy() -> None:
    """What a policy raises takes the engine down and stands in the log, with its place."""
    for policy, message in (
        (own("Raises", at="candidates"), "RuntimeError: broken policy"),
        (own("Raises", at="admitted"), "RuntimeError: broken policy"),
        (own("Stale"), "which is not a waiting request"),
    ):
        with fair(policy) as (engine, folder):
            raised = None
            try:
                engine.serve(arriving([request("r", [5] * 20, 2)]))
            except (RuntimeError, ValueError) as error:
                raised = error
            assert raised is not None
            kind, _, told = entries(folder / "service-0.jsonl")[-1]
            assert kind == "failed"
            assert message in told
            assert "Raises" not in policy["target"] or "policies.py:" in told


def lpm_stays_lpm() -> None:
    """With more than 128 waiting the suite's LPM is still LPM; SGLang's own is not, and the log says so."""
    document, orders, active = [3] * 60, {}, []
    requests = [request("first", document, 40)]
    requests += [request(f"r{i}", [i + 10] * 40, 1) for i in range(150)]
    requests += [request("last", [*document, 4], 1)]
    for policy in (POLICIES["lpm"], {"stock": "lpm"}):
        with fair(policy, max_running_requests=1, tokens=1000) as (engine, folder):
            engine.serve(arriving(requests, each=200))
            engine.core.host.close()
            log = entries(folder / "service-0.jsonl")
            orders[len(orders)] = [line[2] for line in log if line[0] == "admitted"]
            active.append([line[2:] for line in log if line[0] == "active"])
    assert orders[0][:3] == ["first", "last", "r0"]
    assert orders[1].index("last") > 20
    passes = Counter((name, waiting > 128) for name, waiting in active[1])
    assert not active[0]
    assert passes[("fcfs", True)] >= 20
    assert passes[("lpm", False)] >= 100
    assert set(passes) == {("fcfs", True), ("lpm", False)}


def stock_policies() -> None:
    """Each of SGLang's own policies runs as the engine has it, and the logs are those of any other run."""
    prompts = {"long": [5] * 50, "short": [6] * 10, "cached": [3] * 40 + [7] * 20, "middle": [8] * 30}
    for name, order in STOCK.items():
        requests = [request("first", [3] * 60, 10, "a")]
        requests += [request(id, tokens, 2 + len(tokens) % 7, "b") for id, tokens in prompts.items()]
        with fair({"stock": name}, max_running_requests=1, tokens=1000) as (engine, folder):
            engine.serve(arriving(requests, each=5))
            empty(engine.core)
            engine.core.host.close()
            log = entries(folder / "service-0.jsonl")
            check_service(log, requests, engine, True)
            word = log[0][2]
            assert (word["target"], word["name"], word["parameters"]) == (f"sglang:{name}", name, {})
            assert {line[2] for line in log if line[0] == "active"} == {name}
            started = [line[2] for line in log if line[0] == "admitted"]
            assert started == order or (not order and sorted(started) == sorted(["first", *prompts])), started
            events = {kind for kind, *_ in entries(folder / "decisions-0.jsonl")}
            assert events == {"arrived", "admitted", "generated", "finished"}


def contracts() -> None:
    """What the plugin overrides is there to be overridden, and the plugin is in force."""
    ours = sglang_plugin.FairScheduler
    (stock,) = ours.__bases__
    overridden = ("get_next_batch_to_run", "run_batch", "process_batch_result", "flush_cache",
                  "get_new_batch_prefill", "_add_request_to_queue", "get_num_allocatable_reqs")  # fmt: skip
    assert all(callable(getattr(stock, name)) for name in overridden)
    assert callable(schedule_policy.SchedulePolicy._determine_active_policy)
    assert sglang_scheduler.Scheduler is ours
    assert sglang_scheduler.PrefillAdder is sglang_plugin.FairAdder
    assert Path(load_snapshot.shm_path_for("one")).parent == Path(tempfile.gettempdir())
    with patch.object(sglang_scheduler, "PrefillAdder", sglang_plugin.FairAdder.__bases__[0]):
        raised = ""
        try:
            scheduler({"scheduler": POLICIES["fcfs"], "logs": "nowhere"})
        except RuntimeError as error:
            raised = str(error)
        assert "not in force" in raised


def check(results: dict[str, str]) -> None:
    """Note of every scenario whether it held."""
    with scenario(results, "contracts"):
        contracts()
    for way in WAYS:
        for name, policy in {**POLICIES, "stock lpm": {"stock": "lpm"}}.items():
            with scenario(results, f"{name}, {way}"):
                for seed in range(3):
                    run_with_aborts(policy, way, seed)
        for each in (forced_retraction, as_stock, resumed_only_with_room):
            with scenario(results, f"{each.__name__}, {way}"):
                each(way)
    for alone in (idle_policy, failing_policy, lpm_stays_lpm, stock_policies):
        with scenario(results, alone.__name__):
            alone()
    with scenario(results, "nothing of scheduling was left out"):
        states = ("waiting", "prefilling", "prefilling again", "decoding", "retracted")
        kinds = ("preempted", "resumed", "refused", "enough", "pass", "longest")
        rest = ("cached", "uncomputed", "recomputed", "spared", "forced retraction", "cached as stock",
                "full batch", "told no", "match looked at", "match used")  # fmt: skip
        assert all(seen[what] for what in (*(f"abort {state}" for state in states), *kinds, *rest)), seen
