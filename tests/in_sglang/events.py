"""What else happens to requests in a server of SGLang's, without a model."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from harness import POLICIES, SLOTS, Engine, arriving, entries, request, scenario, token, workload
from scheduling import WAYS, check_service, decided, empty, fair
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.managers import schedule_policy
from sglang.srt.managers import scheduler as sglang_scheduler
from sglang.srt.managers.io_struct import (
    AbortReq,
    ContinueGenerationReqInput,
    FlushCacheReqInput,
    PauseGenerationReqInput,
)
from sglang.srt.server_args import ServerArgs

from suite.backends import sglang_plugin


def passed_over(way: str) -> None:
    """What SGLang passes over is hidden from the policy for the pass, and tried again in the next."""
    with fair(POLICIES["fcfs"], way) as (engine, folder):
        arrived = engine.core.host.arrived

        def marked(each: Any, *facts: Any) -> Any:
            each.token_indices_to_pool = [1] if each.rid == "rid-other" else None
            return arrived(each, *facts)

        engine.core.host.arrived = marked
        engine.serve(arriving([request(id, [n] * 20, 3) for n, id in enumerate(("a", "other", "b"), 5)], 3))
        empty(engine.core)
        engine.core.host.close()
        log = decided(folder, POLICIES["fcfs"])
        found = [entry[:2] for entry in log if entry[0] in ("aside", "back", "admitted")]
        starts = ["admitted", 0], ["aside", 1], ["admitted", 2], ["back", 1], ["admitted", 1]
        assert found == list(starts)


def flush() -> None:
    """A flush with nothing left to do begins a run, with a fresh policy, logs of its own and a cold cache."""
    with fair(POLICIES["lpm"]) as (engine, folder):
        core = engine.core
        policy = core.host._policy
        engine.serve(
            lambda engine: (
                workload(1, 12) if engine.passes == 1 else [FlushCacheReqInput()][: engine.passes == 2]
            )
        )
        assert core.host._policy is policy, "not while requests are running"
        assert core.tree_cache.evictable_size()
        first = engine.passes + 1
        engine.serve(lambda engine: [FlushCacheReqInput()] if engine.passes == first else ())
        assert core.host._policy is not policy
        second = engine.passes + 1
        engine.serve(lambda engine: workload(1, 12) if engine.passes == second else ())
        core.host.close()
        logs = [entries(folder / f"service-{n}.jsonl") for n in (0, 1)]
        for log in logs:
            kind, _, word = log[0]
            assert (kind, word["name"], word["cached_tokens"], word["tokens"]) == ("policy", "lpm", 0, 300)
            assert (word["engine"], word["cache"], word["matches"]) == (
                "sglang",
                "UnifiedRadixCache",
                "incremental",
            )
        assert [[line[0], *line[2:]] for line in logs[0][1:]] == [
            [line[0], *line[2:]] for line in logs[1][1:]
        ]
        decided(folder, POLICIES["lpm"], run=1)


def withdrawn_all_at_once(way: str) -> None:
    """All requests are withdrawn, wherever they are; then others are served."""
    requests = workload(5, 30)
    later = [request(f"later{i}", [i + 3] * 20, 3, "a") for i in range(3)]
    with fair(POLICIES["vtc"], way) as (engine, folder):
        arrivals = arriving(requests, each=10)

        def act(engine: Engine) -> Iterable[Any]:
            yield from arrivals(engine)
            if engine.passes == 12:
                yield AbortReq(abort_all=True)
            if engine.passes == 14:
                yield from later

        engine.serve(act)
        empty(engine.core)
        engine.core.host.close()
        exact = WAYS[way].get("disable_overlap_schedule", True)
        check_service(entries(folder / "service-0.jsonl"), requests + later, engine, exact)
        decided(folder, POLICIES["vtc"])


def paused(way: str) -> None:
    """A pause that takes back all that runs, and the continuation."""
    requests = workload(6, 20)
    with fair(POLICIES["dlpm"], way) as (engine, folder):

        def act(engine: Engine) -> Iterable[Any]:
            if engine.passes == 1:
                yield from requests
            if engine.passes == 9:
                yield PauseGenerationReqInput(mode="retract")
            if engine.passes == 11:
                yield ContinueGenerationReqInput()

        engine.serve(act)
        empty(engine.core)
        engine.core.host.close()
        log = entries(folder / "service-0.jsonl")
        assert len([line for line in log if line[0] == "preempted"]) >= 2
        exact = WAYS[way].get("disable_overlap_schedule", True)
        check_service(log, requests, engine, exact)
        decided(folder, POLICIES["dlpm"])


def no_room_in_the_queue() -> None:
    """A request that lost its place and finds the queue full has left; one that finds it so has not come."""
    requests = workload(7)
    forced = {"TEST_RETRACT": True, "TEST_RETRACT_INTERVAL": 5}
    with (
        patch.multiple(sglang_scheduler, **forced),
        fair(POLICIES["fcfs"], max_queued_requests=1) as (engine, folder),
    ):
        engine.serve(arriving(requests, each=1))
        empty(engine.core)
        engine.core.host.close()
        log = entries(folder / "service-0.jsonl")
        came = {entry[2] for entry in decided(folder, POLICIES["fcfs"]) if entry[0] == "arrived"}
        left = {line[2]: line[4] for line in log if line[0] == "finished"}
        assert set(left) == came
        assert 0 < len(came) < len(requests)
        admitted = {line[2] for line in log if line[0] == "admitted"}
        assert [id for id, reason in left.items() if reason == "abort" and id in admitted], "turned away"


def health_checks() -> None:
    """SGLang's health checks come first, and neither the policy nor the logs hear of them."""
    with fair(POLICIES["fcfs"], steps=True) as (engine, folder):
        probe = request("probe", [7], 1)
        probe.rid = f"{HEALTH_CHECK_RID_PREFIX}_1"
        requests = [request("r", [5] * 20, 2)]
        engine.serve(lambda engine: {1: [probe], 2: requests}.get(engine.passes, ()))
        assert engine.work == [1, 20, 1]
        empty(engine.core)
        engine.core.host.close()
        log = entries(folder / "service-0.jsonl")
        assert [line[0] for line in log] == [
            "policy",
            "admitted",
            "generated",
            "step",
            "generated",
            "finished",
            "step",
        ]
        assert [entry[2] for entry in decided(folder, POLICIES["fcfs"]) if entry[0] == "arrived"] == ["r"]


def told_in_time(way: str) -> None:
    """Of a request that is withdrawn between two chunks the policy hears before it decides again."""
    requests = {1: [request("long", [5] * 200, 4)], 3: [request("r", [6] * 20, 4), AbortReq(rid="rid-long")]}
    with fair(POLICIES["fcfs"], way) as (engine, folder):
        engine.serve(lambda engine: requests.get(engine.passes, ()))
        engine.core.host.close()
        told = [entry[:2] for entry in decided(folder, POLICIES["fcfs"])]
        between = told[told.index(["arrived", 1]) + 1 : told.index(["offer", 1])]
        assert between == [["finished", 0], ["decide"]]


def open_to_newcomers() -> None:
    """A batch without room is not closed to who comes later, unless somebody waits for it."""
    fillers = [request(f"r{i}", [i + 5] * 10, 60) for i in range(4)]
    sent = {1: fillers, 3: [request("long", [16] * 250, 132)], 30: [request("late", [17] * 5, 2)]}
    for each in (each for requests in sent.values() for each in requests):
        each.sampling_params.ignore_eos = False
    starts = []
    for policy in ({"stock": "fcfs"}, POLICIES["fcfs"]):
        with (
            fair(policy, tokens=600, prefill_decode_interval=4) as (engine, folder),
            patch.object(schedule_policy, "CLIP_MAX_NEW_TOKENS", 4096),
        ):
            engine.serve(lambda engine: sent.get(engine.passes, ()))
            engine.core.host.close()
            kinds = [line[0] for line in entries(folder / "service-0.jsonl") if line[0] != "active"]
            starts.append([n for n, kind in enumerate(kinds) if kind == "admitted"])
    assert starts[0] == starts[1]


def stopped_early(way: str) -> None:
    """A request that ends at a token of its own choice."""
    early = request("r", [5] * 20, 30, "a")
    early.sampling_params.ignore_eos = False
    early.sampling_params.stop_token_ids = {token("rid-r", 22)}
    with fair(POLICIES["vtc"], way) as (engine, folder):
        engine.serve(arriving([early]))
        empty(engine.core)
        engine.core.host.close()
        log = entries(folder / "service-0.jsonl")
        assert [line[2] for line in log if line[0] == "generated"] == [{"a": 1}] * 3
        assert log[-1][2:] == ["r", "a", "stop", 3, 0]


def what_requests_say() -> None:
    """What a request says of itself is taken as far as it makes sense."""
    own_id = '{"client_id": "a", "request_id": "t1", "weight": 2}'
    bottomless = '{"client_id": ' + "[" * 100_000
    cases: list[tuple[str | None, Any, tuple[Any, ...]]] = [
        (None, own_id, ("t1", "a", 2.0, 0)),
        ("b", own_id, ("t1", "b", 2.0, 0)),
        (None, '{"client_id": ', ('{"client_id": ', "anonymous", 1.0, 0)),
        (None, bottomless, (bottomless[:512], "anonymous", 1.0, 0)),
        (None, None, ("rid-r", "anonymous", 1.0, 0)),
        ("7", {"request_id": "t1", "weight": 2, "priority": 3}, ("t1", "7", 2.0, 3)),
        ("a", {"weight": "nan", "priority": "x"}, ("rid-r", "a", 1.0, 0)),
        ("\ud800" * 1000, {"weight": -1, "priority": "-2"}, ("rid-r", "\ud800" * 512, 1.0, -2)),
        ("", {"weight": 1e300, "priority": 1e300}, ("rid-r", "anonymous", 1e6, 2**31)),
        ("a", {"weight": 1e-300, "priority": {}}, ("rid-r", "a", 1e-6, 0)),
        ("a", {"weight": 2**63, "priority": float("inf")}, ("rid-r", "a", 1e6, 0)),
        ("a", ["no mapping"], ("rid-r", "a", 1.0, 0)),
    ]
    for client, says, expected in cases:
        made = request("r", [5] * 20, 5, client)
        made.sampling_params.custom_params = None if isinstance(says, str) else says
        made.rid = says if isinstance(says, str) else made.rid
        with fair(POLICIES["dlpm"]) as (engine, folder):
            arrived, found = engine.core.host.arrived, []

            def noted(*args: Any, arrived: Any = arrived, found: Any = found) -> Any:
                found.append(arrived(*args))
                return found[-1]

            engine.core.host.arrived = noted
            engine.serve(arriving([made]))
            (served,) = found
            assert (served.id, served.client, served.weight, served.priority) == expected, says
            engine.core.host.close()
            assert entries(folder / "service-0.jsonl")[-1][0] == "finished"


def measurements(way: str) -> None:
    """Lines of steps and timings cover every step and every offer."""
    with fair(POLICIES["dlpm"], way, steps=True, timing=True) as (engine, folder):
        engine.serve(arriving(workload(2)))
        first = engine.passes + 1
        engine.serve(lambda engine: [FlushCacheReqInput()] if engine.passes == first else ())
        engine.core.host.close()
        log = entries(folder / "service-0.jsonl")
        steps = [line[2:] for line in log if line[0] == "step"]
        assert [step[0] for step in steps] == engine.work
        assert all(new <= attended and new <= read and 0 < n <= SLOTS for new, attended, read, n in steps)
        timings = [line[2] for line in log if line[0] == "timing"]
        offers = [line for line in entries(folder / "decisions-0.jsonl") if line[0] == "offer"]
        assert sum(facts["offers"] for facts in timings) == len(offers) > 0
        assert sum(facts["steps"] for facts in timings) == len(steps)
        assert [facts["steps"] for facts in timings[:-1]] == [100] * (len(timings) - 1) != []
        assert all(0 < facts["deciding_ns"] < 100 * facts["scheduling_ns"] for facts in timings)


def what_is_not_served() -> None:
    """A server that schedules or counts in other ways does not start under the plugin."""
    options = ServerArgs(model_path="none", device="cpu")
    for name, off in sglang_plugin.OFF.items():
        assert getattr(options, name) in (off, None), f"SGLang's default of {name} is another"
    for stock, option, value in (
        ("fcfs", "pp_size", 2),
        ("fcfs", "enable_hierarchical_cache", True),
        ("lpm", "speculative_algorithm", "EAGLE"),
        ("lpm", "lora_drain_wait_threshold", 1.0),
        ("lpm", "schedule_policy", "fcfs"),
        (None, "enable_priority_scheduling", True),
        (None, "schedule_policy", "shortest-prefill-first"),
    ):
        raised = ""
        try:
            sglang_plugin._refuse(SimpleNamespace(**{option: value}), stock)
        except ValueError as error:
            raised = str(error)
        assert f"needs SGLang with {option}=" in raised
    sglang_plugin._refuse(SimpleNamespace(enable_priority_scheduling=True), "fcfs")
    sglang_plugin._refuse(options, None)


def left_out() -> None:
    """A waiting request that SGLang leaves out of its new list, as 0.5.15 does on a timeout, is withdrawn."""
    with fair(POLICIES["fcfs"]) as (engine, folder):
        requests = [request(f"r{i}", [i + 5] * 60, 3, "a") for i in range(3)]

        def act(engine: Engine) -> Iterable[Any]:
            if engine.passes == 2:
                engine.core.waiting_queue = [
                    each for each in engine.core.waiting_queue if each.rid != "rid-r2"
                ]
            return requests if engine.passes == 1 else ()

        engine.serve(act)
        empty(engine.core)
        engine.core.host.close()
        left = [line[2:] for line in entries(folder / "service-0.jsonl") if line[0] == "finished"]
        assert left == [["r2", "a", "abort", 0, 0], ["r0", "a", "stop", 3, 0], ["r1", "a", "stop", 3, 0]]
        decided(folder, POLICIES["fcfs"])


def check(results: dict[str, str]) -> None:
    """Note of every scenario whether it held."""
    for way in WAYS:
        for each in (
            passed_over,
            withdrawn_all_at_once,
            paused,
            told_in_time,
            stopped_early,
            measurements,
        ):
            with scenario(results, f"{each.__name__}, {way}"):
                each(way)
    for alone in (
        flush,
        no_room_in_the_queue,
        health_checks,
        open_to_newcomers,
        what_requests_say,
        what_is_not_served,
        left_out,
    ):
        with scenario(results, alone.__name__):
            alone()
