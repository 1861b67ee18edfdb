"""Validity: what was measured is shown, what is wrong makes a run invalid, what is worth knowing does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from synthetic_runs import NAN, rejected, requests, run, starved

from suite.errors import BadInput
from suite.metrics.validity import Check, checks, reasons
from suite.results import Run

HEALTH = {
    "send_lag_p99_s": 0.002,
    "loop_lag_p99_s": 0.001,
    "cpu_shares": [0.2, 0.45],
    "limits": {"send_lag_p99_s": 0.05, "loop_lag_p99_s": 0.05, "cpu_share": 0.9},
}
POLICY = {"target": "baselines.x:X", "source": "2" * 64, "cached_blocks": 0}
SERVED = ({"client": "a", "arrival": 0, "finish": 8}, {"client": "b", "arrival": 4, "finish": 10})


def made(*more: dict[str, Any], invalid: tuple[str, ...] = (), target: str = "", **engine: Any) -> Run:
    """A run of two requests and `more`, with this word of the engine."""
    one = run(requests(*SERVED, *more))
    scheduler = {**one.manifest.scheduler, **({"target": target} if target else {})}
    manifest = replace(one.manifest, engine=engine, invalid=list(invalid), scheduler=scheduler)
    return replace(one, manifest=manifest)


def real(**changed: Any) -> Run:
    """A run in real time on an engine that the policy was in."""
    return made(client={**HEALTH, **changed}, policy=POLICY)


def found(one: Run) -> dict[str, Check]:
    return {check.name: check for check in checks(one)}


def test_a_run_on_a_virtual_clock_has_nothing_to_measure_of_a_client() -> None:
    one = made()
    assert found(one)["send lag, P99"] == Check("send lag, P99", "virtual clock", "")
    assert found(one)["policy at work"].measured == "in every step"
    assert all(check.ok for check in checks(one))
    assert reasons(one) == []


def test_a_sound_run_in_real_time_shows_what_was_measured() -> None:
    shown = {check.name: (check.measured, check.limit) for check in checks(real())}
    assert shown == {
        "send lag, P99": ("2 ms", "at most 50 ms"),
        "client's loop lag, P99": ("1 ms", "at most 50 ms"),
        "client's busiest process": ("45% of a core", "at most 90% of a core"),
        "cache at the start": ("0 cached blocks", "empty"),
        "policy at work": ("baselines.x:X, source 22222222", "the one asked for"),
        "replicas": ("1", "none lost unasked"),
        "replies of another length": ("0 of 2", "note"),
        "failed requests": ("0 of 2", "none"),
        "starved requests": ("0 of 2", "note: infinite latency"),
        "all clients active": ("4 s, 40% of the makespan", "note: 5% to rank Jain by"),
        "judged when made": ("valid", "valid"),
    }
    assert reasons(real()) == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"send_lag_p99_s": 0.08}, "send lag, P99: 80 ms (at most 50 ms)"),
        ({"loop_lag_p99_s": 0.051}, "client's loop lag, P99: 51 ms (at most 50 ms)"),
        ({"cpu_shares": [0.1, 0.95]}, "client's busiest process: 95% of a core (at most 90% of a core)"),
    ],
)
def test_a_client_beyond_its_limits_makes_the_run_invalid(changed: dict[str, Any], reason: str) -> None:
    assert reasons(real(**changed)) == [reason]


def test_a_cache_that_was_not_cold_and_another_policy_make_it_invalid() -> None:
    warm = made(client=HEALTH, policy={**POLICY, "cached_blocks": 3})
    assert reasons(warm) == ["cache at the start: 3 cached blocks (empty)"]
    other = made(client=HEALTH, policy={**POLICY, "source": "3" * 64})
    assert reasons(other) == ["policy at work: baselines.x:X, source 33333333 (the one asked for)"]


def test_failed_requests_make_it_invalid() -> None:
    one = made({"client": "a", "arrival": 1, "status": "failed", "admitted": NAN, "output_tokens": 0})
    assert reasons(one) == ["failed requests: 1 of 3 (none)"]


def test_rejected_and_starved_requests_are_shown_and_leave_it_valid() -> None:
    starved = {"client": "b", "arrival": 5, "admitted": NAN, "output_tokens": 0, "status": "starved"}
    one = made(rejected("a", 1), starved)
    assert found(one)["failed requests"].measured == "0 of 4, 1 rejected"
    assert found(one)["starved requests"].measured == "1 of 4"
    assert reasons(one) == []


def test_an_engines_own_policy_that_fell_back_is_a_note() -> None:
    one = made(client=HEALTH, policy=POLICY, active={"lpm": 30, "fcfs": 90}, target="sglang:lpm")
    assert found(one)["policy at work"] == Check(
        "policy at work", "fcfs in 75.0% of 120 passes, lpm in 25.0% of 120 passes", "note: lpm in 99%"
    )
    assert reasons(one) == []


def test_of_a_server_that_is_not_ours_little_is_known_and_that_is_said() -> None:
    one = made(client=HEALTH, replies_of_other_length=2)
    assert found(one)["cache at the start"].measured == "not known: the server is not the suite's"
    assert found(one)["policy at work"].measured == "the server's own, not seen"
    assert found(one)["replies of another length"].measured == "2 of 2"
    assert reasons(one) == []


def test_a_stock_policy_without_a_log_was_proven_cold_by_a_probe() -> None:
    stock = {"target": "vllm:fcfs", "source": "2" * 64}
    one = made(client=HEALTH, policy=stock, target="vllm:fcfs")
    assert found(one)["cache at the start"].measured == "a reset made a cached prompt miss"


def test_clients_that_were_never_all_active_are_a_note() -> None:
    frame = requests({"client": "a", "arrival": 0, "finish": 1}, {"client": "b", "arrival": 2, "finish": 3})
    assert (
        found(run(frame))["all clients active"].measured == "never: the clients were never all active at once"
    )
    assert reasons(run(frame)) == []


def test_a_window_in_which_nobody_was_served_is_not_called_none() -> None:
    one = run(requests(starved("a", 0.0), starved("b", 0.0), starved("a", 4.0)))
    assert found(one)["all clients active"].measured == "4 s, and no request was served"


def test_what_was_held_against_it_when_it_was_made_is_the_reason() -> None:
    one = made(invalid=("client late", "2 of 9 requests failed"), client=HEALTH, policy=POLICY)
    assert reasons(one) == ["client late", "2 of 9 requests failed"]
    assert found(one)["judged when made"] == Check(
        "judged when made", "client late; 2 of 9 requests failed", "valid", False
    )


def test_a_run_that_does_not_know_its_limits_is_refused() -> None:
    old = {key: value for key, value in HEALTH.items() if key != "limits"}
    with pytest.raises(
        BadInput, match=r"chat, fcfs, .*: made by an older version of the suite; run it again"
    ):
        checks(made(client=old, policy=POLICY))
