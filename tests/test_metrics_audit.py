"""The fairness audit: gaps against brute force, bounds by hand, and both on runs of the simulator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_runs import rejected, requests, run, service, starved

from suite.backends.simulator import Simulator
from suite.metrics.audit import ALONE, COLUMNS, audit, curve
from suite.metrics.backlog import MOST_CLIENTS, Backlog, at_replica
from suite.metrics.bounds import Bound, bound, replica_bounds
from suite.metrics.service import DEFAULT_WEIGHTS, KINDS, Kind, curves
from suite.policies import parse
from suite.results import SERVICE_COLUMNS, Manifest, Run
from suite.trace import Header, Request, Segment, Trace, checked

NAN = float("nan")


# -- gaps ------------------------------------------------------------------------------------------------

rows = st.tuples(
    st.integers(0, 20), st.sampled_from("abc"), st.integers(0, 50), st.integers(0, 50), st.integers(0, 30)
)
spans = st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.integers(0, 20) | st.just(None))


@settings(max_examples=100, deadline=None)
@given(st.lists(rows, max_size=25), st.lists(spans, min_size=2, max_size=12), st.sampled_from(KINDS))
def test_the_widest_gap_is_that_of_all_sub_intervals(
    log: list[tuple[int, str, int, int, int]], waits: list[tuple[str, int, int | None]], kind: Kind
) -> None:
    frame = _waiting(waits)
    logged = _log(log)
    backlog = Backlog(frame, logged)
    gap = backlog.widest(backlog.normalised(kind, DEFAULT_WEIGHTS))
    assert (gap.size if gap else 0.0) == pytest.approx(_brute_force(frame, logged, kind))


def _waiting(waits: list[tuple[str, int, int | None]]) -> pd.DataFrame:
    """Requests that wait from one time until another or, starved, for ever; client c has weight 2."""
    return requests(
        *(
            {
                "client": client, "arrival": start, "admitted": NAN if length is None else start + length,
                "status": "starved" if length is None else "finished", "weight": 1.0 + (client == "c"),
            }
            for client, start, length in waits
        )
    )  # fmt: skip


def _log(rows: list[tuple[int, str, int, int, int]]) -> pd.DataFrame:
    full = [
        (float(time), client, "replica-0", extend, cached, 0, output)
        for time, client, extend, cached, output in rows
    ]
    return pd.DataFrame(full, columns=list(SERVICE_COLUMNS)).sort_values("time", kind="stable")


def _brute_force(frame: pd.DataFrame, log: pd.DataFrame, kind: Kind) -> float:
    """Every pair, every maximal common interval, every sub-interval from the first time in the log on."""
    times = [half / 2 for half in range(100)]
    logged = set(log["time"])
    waits = {
        client: [any(start <= time and not time >= end for start, end in spans) for time in times]
        for client, spans in _spans(frame).items()
    }
    weight = frame.groupby("client")["weight"].first()
    total = {c: line.before(times) / weight[c] for c, line in curves(log, list(waits), kind).items()}
    widest = 0.0
    for one, other in combinations(waits, 2):
        difference = (total[one] - total[other]).tolist()
        both = [a and b for a, b in zip(waits[one], waits[other], strict=True)]
        for begin, end in _runs(both):
            first = next((i for i in range(begin, end + 1) if times[i] in logged), end)
            within = combinations(difference[first : end + 1], 2)
            widest = max([widest, *(abs(later - earlier) for earlier, later in within)])
    return widest


def _spans(frame: pd.DataFrame) -> dict[str, list[tuple[float, float]]]:
    spans: dict[str, list[tuple[float, float]]] = {}
    for client, start, end in frame[["client", "arrival", "admitted"]].itertuples(index=False):
        spans.setdefault(client, []).append((start, end))
    return spans


def _runs(flags: list[bool]) -> Iterator[tuple[int, int]]:
    """First index of each run of true flags and the index after it, which may be the last there is."""
    begin = None
    for i, flag in enumerate([*flags, False]):
        if flag and begin is None:
            begin = i
        elif not flag and begin is not None:
            yield begin, min(i, len(flags) - 1)
            begin = None


def test_an_output_that_ends_in_the_interval_counts_and_a_prompt_at_its_end_does_not() -> None:
    """Both wait in [1, 5): a's outputs at 3 and 5 count, what stands at 1 and b's prompt at 5 do not."""
    frame = _waiting([("a", 1, 4), ("b", 1, 4)])
    log = _log([(1, "a", 0, 0, 100), (3, "a", 0, 0, 5), (5, "a", 0, 0, 1), (5, "b", 70, 0, 0)])
    backlog = Backlog(frame, log)
    gap = backlog.widest(backlog.normalised("actual", DEFAULT_WEIGHTS))
    assert gap is not None
    assert gap.size == 12


def test_of_many_clients_those_that_waited_longest_are_looked_at_and_it_is_said() -> None:
    many = [(f"{i:03}", 0, 1 + i) for i in range(MOST_CLIENTS + 2)]
    frame = requests(*({"client": c, "arrival": s, "admitted": s + n, "finish": s + n} for c, s, n in many))
    row = audit(run(frame))
    assert row["bound_pairs"] == "2,016 of 2,145 pairs: the 64 clients that waited longest"
    assert Backlog(frame, service(frame)).clients == [f"{i:03}" for i in range(2, MOST_CLIENTS + 2)]


# -- bounds ----------------------------------------------------------------------------------------------


def _of(target: str, parameters: dict[str, Any], router: str | None = None, replicas: int = 1) -> Run:
    """A run with a prompt of 300 tokens, where at most 70 output tokens were yet to come.

    With several replicas that is so at replica-0; at replica-1 it is a prompt of 500 and 10 output tokens.
    """
    frame = requests(
        {"client": "a", "arrival": 0, "finish": 1, "prompt_tokens": 300, "output_tokens": 20},
        {"client": "a", "arrival": 0, "admitted": 1, "finish": 9, "output_tokens": 30},
        {"client": "b", "arrival": 1, "finish": 7, "prompt_tokens": 100, "output_tokens": 40},
        {**rejected("b", 0), "prompt_tokens": 50_000, "worker": None},
        *[{"client": "b", "arrival": 2, "finish": 7, "prompt_tokens": 500, "output_tokens": 10,
           "worker": "replica-1"}] * (replicas > 1),
    )  # fmt: skip
    made = run(frame)
    before = router and {"name": router.split(":")[1], "target": router, "parameters": {}, "source": ""}
    manifest = replace(
        made.manifest,
        scheduler={"name": "x", "target": target, "parameters": parameters, "source": "", "router": before},
        backend={"kind": "simulator", "replicas": replicas},
    )
    return replace(made, manifest=manifest)


def _bound(*of: Any, **more: Any) -> Bound:
    found = bound(_of(*of, **more))
    assert isinstance(found, Bound), found
    return found


WEIGHTS = {"input_weight": 1.0, "output_weight": 2.0}
VTC = ("baselines.vtc:VTC", {"charge": "full", **WEIGHTS})
DLPM = ("baselines.dlpm:DLPM", {"quantum": 1000.0, **WEIGHTS})
D2LPM, ROUND_ROBIN = "baselines.d2lpm:D2LPM", "baselines.round_robin:RoundRobin"


def test_bounds_by_hand() -> None:
    """At 1 s the first 20 outputs are there and 30 + 40 are to come: U = 300 + 2 * 70."""
    vtc = _bound(*VTC)
    assert (vtc.service, vtc.between(1, 1), vtc.between(1, 2)) == ("client", 880, 660)
    extend = _bound("baselines.vtc:VTC", {"charge": "extend", **WEIGHTS})
    assert (extend.service, extend.between(1, 1)) == ("actual", 880)
    dlpm = _bound(*DLPM)
    assert (dlpm.service, dlpm.between(1, 1), dlpm.between(2, 4)) == ("actual", 2880, 2330)


def test_the_bound_of_replicas_is_so_many_times_the_largest_of_one() -> None:
    """U of replica-1 is 500 + 2 * 10, that of replica-0 is 440 with the requests of replica-1 left out."""
    for policy, router, one in (
        (DLPM, D2LPM, 2 * (520 + 1000)),
        (VTC, D2LPM, 2 * 520),
        (VTC, "baselines.client_round_robin:ClientRoundRobin", 2 * 520),
    ):
        assert _bound(*policy, router=router, replicas=4).between(1, 1) == 4 * one


def test_each_replica_has_a_bound_of_its_own_whatever_the_router() -> None:
    for router in (D2LPM, ROUND_ROBIN):
        found = replica_bounds(_of(*DLPM, router=router, replicas=2))
        assert {worker: one.between(1, 1) for worker, one in found.items()} == {
            "replica-0": 2 * (440 + 1000), "replica-1": 2 * (520 + 1000),
        }  # fmt: skip


def test_one_replica_has_no_bound_beside_that_of_the_run() -> None:
    assert replica_bounds(_of(*DLPM)) == {}
    assert replica_bounds(_of("baselines.fcfs:FCFS", {}, ROUND_ROBIN, 2)) == {}
    unknown = _of(*DLPM, router="sglang-router:cache_aware", replicas=2)
    unknown.requests["worker"] = None
    assert replica_bounds(unknown) == {}
    routed_again = _of(*DLPM, router=D2LPM, replicas=2)
    routed_again.manifest.engine["retries"] = 1
    assert replica_bounds(routed_again) == {}


def test_a_router_before_one_replica_changes_no_bound() -> None:
    assert _bound(*DLPM, router=ROUND_ROBIN) == _bound(*DLPM)


def test_the_weights_of_the_policy_are_those_of_the_bound() -> None:
    dlpm = _bound("baselines.dlpm:DLPM", {"quantum": 0.5, "input_weight": 3.0, "output_weight": 0.1})
    assert tuple(dlpm.weights) == (3.0, 0.1)
    assert dlpm.between(1, 1) == pytest.approx(2 * (900 + 7 + 0.5))


def test_where_there_is_no_bound_the_reason_is_given() -> None:
    assert bound(_of("baselines.fcfs:FCFS", {})) == "no bound is known for x"
    assert bound(_of("mine.py:DLPM", {})) == "no bound is known for x"
    for router in (ROUND_ROBIN, "baselines.client_round_robin:ClientRoundRobin"):
        found = bound(_of(*DLPM, router=router, replicas=2))
        assert found == f"no bound is known for DLPM behind {router.split(':')[1]}"


# -- runs ------------------------------------------------------------------------------------------------


def simulated(trace: Trace, scheduler: str, labelled: str | None = None, **limits: Any) -> Run:
    """A run of the simulator, said to be under the scheduler `labelled` where that is given."""
    backend = Simulator(model="llama-3.2-3b", gpu="h100", **limits)
    outcome = backend.run(trace, parse(scheduler), Path(), lambda share, note="": None)
    spec = parse(labelled or scheduler)
    manifest = Manifest(
        cell="0", labels={}, trace={"digest": trace.digest, "header": {}},
        scheduler=spec.record, backend=backend.model_dump(mode="json"), engine=outcome.engine, versions={},
    )  # fmt: skip
    return Run(manifest, outcome.requests, outcome.service, outcome.streams)


@st.composite
def adversarial(draw: st.DrawFn) -> Trace:
    """Clients unlike each other in prompts, outputs, shared documents and weights, almost all at once."""
    kinds = draw(
        st.lists(
            st.tuples(
                st.sampled_from([1, 16, 40, 200]), st.sampled_from([1, 4, 30, 100]),
                st.integers(1, 20), st.sampled_from([0.5, 1.0, 1.0, 4.0]),
            ),
            min_size=2, max_size=4,
        )
    )  # fmt: skip
    made = []
    for i in range(draw(st.integers(20, 60))):
        client = draw(st.integers(0, len(kinds) - 1))
        question, output, documents, weight = kinds[client]
        document = Segment(f"{client} {i % documents}", draw(st.sampled_from([16, 64, 300])))
        output = draw(st.sampled_from([output, 1, max(1, output // 3)]))
        arrival = draw(st.sampled_from([0.0, 0.0, 0.125, 1.0]))
        made.append(
            Request(
                str(i), f"c{client}", arrival, (document, Segment(f"q{i}", question)), output, weight=weight
            )
        )
    return checked(Trace(Header("adversarial", 0, "test"), tuple(made)))


POLICIES = ("vtc", "vtc:charge=extend", "dlpm:quantum=1", "dlpm:quantum=100", "dlpm:quantum=2000")
machines = st.fixed_dictionaries(
    {
        "engine": st.sampled_from(["vllm", "sglang"]),
        "max_running": st.sampled_from([1, 2, 4, 16]),
        "token_budget": st.sampled_from([16, 64, 2048]),
        "kv_tokens": st.sampled_from([512, 1024, 4096]),
        "clip_tokens": st.sampled_from([1, 4096]),
    }
)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40, deadline=None)
@given(trace=adversarial(), machine=machines)
def test_no_policy_breaks_its_bound(policy: str, trace: Trace, machine: dict[str, Any]) -> None:
    row = audit(simulated(trace, policy, **machine))
    assert row["bound_held"] or row["bound_none"] == ALONE, row


@pytest.mark.parametrize("policy", ["vtc", "dlpm:quantum=1"])
def test_a_batch_that_ends_bit_by_bit_goes_beyond_the_pool_and_not_beyond_the_bound(policy: str) -> None:
    """512 tokens of memory, filled anew whenever one of many requests ends, and 64 requests running at most.

    With the pool for M the bound would be 2 (1 + 2 * 512 + 1), and broken.
    """
    made = [
        Request(f"first {i}", "a", 0.0, (Segment(f"first {i}", 1),), max(1, 512 // (i + 1) - 32))
        for i in range(64)
    ]
    made += [
        Request(f"{client}{i}", client, arrival, (Segment(f"{client}{i}", 1),), 480)
        for i in range(60) for client, arrival in (("a", 0.0), ("b", 0.004))
    ]  # fmt: skip
    trace = checked(Trace(Header("bit by bit", 0, "test"), tuple(made)))
    row = audit(simulated(trace, policy, engine="sglang", max_running=64, kv_tokens=512, clip_tokens=1,
                          token_budget=256))  # fmt: skip
    assert isinstance(row["bound_gap"], float)
    assert row["bound_gap"] > 2 * (1 + 2 * 512 + 1)
    assert row["bound_held"] is True


ROUTED = ("d2lpm:quantum=300+dlpm:quantum=100", "client-round-robin+vtc", "power-of-two+dlpm:quantum=1")


@pytest.mark.parametrize("policy", ROUTED)
@settings(max_examples=20, deadline=None)
@given(trace=adversarial(), machine=machines, replicas=st.integers(2, 3), delay=st.sampled_from([0.0, 0.01]))
def test_no_replica_breaks_its_bound(
    policy: str, trace: Trace, machine: dict[str, Any], replicas: int, delay: float
) -> None:
    losses = [{"replica": 0, "at": 0.05, "back": 0.2}]
    made = simulated(trace, policy, replicas=replicas, dispatch_delay=delay, losses=losses, **machine)
    row = audit(made)
    assert row["worker_held"] is not False, row


def test_replicas_are_audited_each_on_its_own() -> None:
    """a and b wait at replica-0 from 0 to 9 s, while a gets 100 there and 400 at replica-1."""
    waiting = [{"client": client, "arrival": 0, "admitted": 9, "finish": 9} for client in "ab"]
    frame = requests(
        *waiting, {"client": "a", "arrival": 0, "finish": 1, "prompt_tokens": 98},
        {"client": "a", "arrival": 1, "finish": 2, "prompt_tokens": 398, "worker": "replica-1"},
    )  # fmt: skip
    made = replace(_of(*DLPM, router=D2LPM, replicas=2), requests=frame, service=service(frame))
    row = audit(made)
    assert (row["worker_gap"], row["worker_bound"], row["worker_held"]) == (
        100,
        2 * (98 + 2 + 1000),
        True,
    )
    assert row["bound_gap"] == 100 + 400
    tight = replace(
        made.manifest, scheduler=made.manifest.scheduler | {"parameters": DLPM[1] | {"quantum": -80}}
    )
    assert (
        audit(replace(made, manifest=tight))["worker_window"] == "replica-0: 'a' ahead of 'b' from 0 s to 1 s"
    )


def test_a_request_waits_at_a_replica_from_when_it_was_surely_there() -> None:
    frame = requests(
        {"client": "a", "arrival": 1, "admitted": 2, "finish": 3},
        {"client": "a", "arrival": 1, "admitted": 6, "finish": 7},
        {"client": "a", "arrival": 6, "admitted": 9, "finish": 9},
        starved("a", 1.0),
        {"client": "a", "arrival": 1, "finish": 3, "worker": "replica-1"},
    )
    made = run(frame)
    backend = {"dispatch_delay": 0.5, "losses": [{"replica": 1, "at": 3.0, "back": 5.0},
                                                 {"replica": 1, "at": 8.0, "back": None}]}  # fmt: skip
    there, log = at_replica(replace(made, manifest=replace(made.manifest, backend=backend)), "replica-0")
    assert there["arrival"].tolist() == [1.5, 5.5, 8.5, 8.5]
    assert (log["worker"] == "replica-0").all()
    assert len(log) == 6


def favourites() -> Trace:
    """Forty requests each of a and b, at once, all alike."""
    made = (
        Request(f"{client}{i}", client, 0.0, (Segment(f"{client}{i}", 20),), 10)
        for i in range(40)
        for client in "ab"
    )
    return Trace(Header("favourites", 0, "test"), tuple(made))


UNFAIR = """
from baselines.scheduler import Scheduler


class Favourite(Scheduler):
    def candidates(self, waiting, now):
        for request in sorted(waiting.by_arrival(), key=lambda request: request.client):
            if {condition} and not (yield request):
                return
"""


@pytest.mark.parametrize("condition", ["True", "request.client == 'a'"], ids=["last", "never"])
def test_an_unfair_policy_breaks_the_bound_and_the_window_is_named(condition: str, tmp_path: Path) -> None:
    """a is served first, b last or never. Bound: 2 (20 + 2 * 2 * 10 + 10) = 140."""
    file = tmp_path / "unfair.py"
    file.write_text(UNFAIR.format(condition=condition))
    made = simulated(favourites(), f"{file}:Favourite", "dlpm:quantum=10", max_running=2)
    row = audit(made)
    assert (row["bound"], row["bound_held"]) == (140, False)
    served = made.requests[made.requests["client"] == "a"]
    until = served["admitted"].max()
    assert row["bound_window"] == f"'a' ahead of 'b' from 0 s to {until:.6g} s"
    before = served[served["admitted"] < until]
    assert row["bound_gap"] == 20 * len(before) + 20 * (served["finish"] <= until).sum()
    gap = None if (made.requests["status"] == "starved").any() else row["bound_gap"]
    assert row["backlogged_gap_actual"] == row["backlogged_gap_client"] == gap
    assert audit(simulated(favourites(), "dlpm:quantum=10", max_running=2))["bound_held"] is True


def test_an_unfair_scheduler_breaks_the_bound_of_its_replica_and_it_is_named(tmp_path: Path) -> None:
    """For the total nothing is promised here; each replica has its own bound, 140 as above."""
    file = tmp_path / "unfair.py"
    file.write_text(UNFAIR.format(condition="True"))
    told = "client-round-robin+dlpm:quantum=10"
    row = audit(
        simulated(favourites(), f"client-round-robin+{file}:Favourite", told, max_running=2, replicas=2)
    )
    assert row["bound_none"] == "no bound is known for DLPM behind client-round-robin"
    assert (row["worker_bound"], row["worker_held"]) == (140, False)
    assert str(row["worker_window"]).startswith("replica-0: 'a' ahead of 'b' from 0 s to ")
    fair = audit(simulated(favourites(), told, max_running=2, replicas=2))
    assert fair["worker_held"] is True
    assert isinstance(fair["worker_gap"], float)
    assert fair["worker_gap"] < 140


def test_who_starves_beside_a_client_that_never_waits_makes_no_small_gap() -> None:
    frame = requests(
        *({"client": "a", "arrival": t, "finish": t + 1.0} for t in range(1, 9)), starved("b", 0.0),
        {"client": "a", "arrival": 9, "admitted": 10, "finish": 11},
    )  # fmt: skip
    row = audit(run(frame))
    assert row["backlogged_gap_actual"] is row["backlogged_gap_client"] is None
    assert curve(run(frame)) is None


def test_the_curve_peaks_at_the_gap_beside_its_bound() -> None:
    made = simulated(favourites(), "vtc", max_running=3)
    row, found = audit(made), curve(made)
    assert found is not None
    assert found["gap"].max() > 0
    assert found["gap"].max() == row["bound_gap"]
    assert found["bound"].unique() == [row["bound"]]
    assert found["time"].is_monotonic_increasing
    assert found[["client", "other"]].drop_duplicates().to_numpy().tolist() == [["a", "b"]]


def test_without_a_bound_the_curve_is_of_the_widest_gap() -> None:
    made = simulated(favourites(), "fcfs", max_running=2)
    row, found = audit(made), curve(made)
    assert found is not None
    assert found["bound"].isna().all()
    assert found["gap"].max() == row["backlogged_gap_actual"]
    assert (row["bound"], row["bound_held"]) == (None, None)
    assert row["bound_none"] == "no bound is known for fcfs"


def test_a_client_alone_has_no_gap() -> None:
    trace = Trace(Header("one", 0, "test"), (Request("r", "a", 0.0, (Segment("p", 20),), 10),))
    made = simulated(trace, "vtc")
    row = audit(made)
    assert tuple(row) == COLUMNS
    assert (row["bound_none"], row["backlogged_gap_actual"], curve(made)) == (ALONE, None, None)


def test_a_run_in_which_nothing_was_served_is_audited() -> None:
    frame = requests(
        {"client": "a", "arrival": 0, "admitted": NAN, "output_tokens": 0, "status": "starved"},
        {"client": "b", "arrival": 0, "admitted": NAN, "output_tokens": 0, "status": "starved"},
    )
    assert audit(run(frame))["backlogged_gap_actual"] is None
    made = simulated(favourites(), "vtc", max_running=2)
    assert bound(replace(made, requests=frame)) == "no request was admitted"
