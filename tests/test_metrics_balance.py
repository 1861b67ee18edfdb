"""How the work was spread over replicas, and what losing one does to a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from synthetic_runs import requests, run

from suite.metrics.balance import by_replica, imbalance
from suite.metrics.service import Weights
from suite.metrics.summary import summarise
from suite.metrics.validity import checks, reasons
from suite.results import Run


def served(worker: str | None, prompt: int, output: int = 1, cached: int = 0, **more: Any) -> dict[str, Any]:
    """A request that a replica served."""
    return {
        "client": "a", "arrival": 0.0, "admitted": 1.0, "finish": 2.0, "worker": worker,
        "prompt_tokens": prompt, "output_tokens": output, "cached_tokens": cached, **more,
    }  # fmt: skip


def routed(
    *rows: dict[str, Any], replicas: int = 3, backend: dict[str, Any] | None = None, **engine: Any
) -> Run:
    """A run over so many replicas."""
    workers = {f"replica-{i}": {"requests": 0, "losses": 0} for i in range(replicas)}
    one = run(requests(*rows))
    word = {"replicas": replicas, "workers": workers, **engine}
    settings = {**one.manifest.backend, "replicas": replicas, **(backend or {})}
    return replace(one, manifest=replace(one.manifest, engine=word, backend=settings))


def test_a_replica_gives_what_it_computed_and_an_idle_one_nothing():
    one = routed(served("replica-1", 100, 10, cached=40), served("replica-0", 30, 5), served("replica-1", 10))
    assert by_replica(one).to_dict() == {"replica-0": 40.0, "replica-1": 60 + 20 + 10 + 2, "replica-2": 0.0}
    assert by_replica(one, Weights(2, 3)).to_dict() == {"replica-0": 75, "replica-1": 173, "replica-2": 0}
    assert imbalance(one) == pytest.approx(92 / (132 / 3))
    assert summarise(one)["imbalance"] == imbalance(one)


def test_replicas_are_in_the_order_of_their_numbers():
    names = list(by_replica(routed(served("replica-10", 8), replicas=11)).index)
    assert names == [f"replica-{i}" for i in range(11)]


def test_imbalance_is_one_where_all_do_alike_and_d_where_one_does_all():
    alike = routed(*(served(f"replica-{i}", 50) for i in range(3)))
    assert imbalance(alike) == 1.0
    assert imbalance(routed(served("replica-2", 50))) == 3.0


@pytest.mark.parametrize(
    "one",
    [
        run(requests(served("replica-0", 50))),
        run(requests(served(None, 50), served(None, 60))),
        routed(
            {"client": "a", "arrival": 0.0, "admitted": float("nan"), "output_tokens": 0, "status": "starved"}
        ),
    ],
    ids=["one replica", "not known", "nothing served"],
)
def test_without_several_that_worked_there_is_no_imbalance(one: Run):
    assert imbalance(one) is None


# -- validity --------------------------------------------------------------------------------------------


def replicas_check(one: Run) -> tuple[str, bool]:
    (found,) = [check for check in checks(one) if check.name == "replicas"]
    return found.measured, found.ok


def losing(*, asked: bool, retries: int = 0) -> Run:
    lost = {
        "client": "a",
        "arrival": 1.0,
        "status": "failed",
        "error": "replica-1 was lost",
        "worker": "replica-1",
    }
    workers = {"replica-0": {"requests": 1, "losses": 0}, "replica-1": {"requests": 1, "losses": 1}}
    losses = [{"replica": 1, "at": 2.0, "back": None}] if asked else []
    rows = (served("replica-0", 10), lost)
    word = {"workers": workers, **({"retries": retries} if retries else {})}
    return routed(*rows, replicas=2, backend={"losses": losses}, **word)


def test_replicas_that_stayed_are_counted():
    assert replicas_check(run(requests(served("replica-0", 10)))) == ("1", True)
    assert replicas_check(routed(served("replica-0", 10))) == ("3", True)


def test_a_replica_lost_unasked_makes_the_run_invalid_and_one_that_was_to_be_lost_does_not():
    assert replicas_check(losing(asked=False)) == ("2, 1 lost", False)
    assert [reason.partition(":")[0] for reason in reasons(losing(asked=False))] == [
        "replicas",
        "failed requests",
    ]
    assert replicas_check(losing(asked=True)) == ("2, 1 lost, as asked", True)
    assert reasons(losing(asked=True)) == []


def test_another_error_is_not_excused_by_a_loss():
    one = losing(asked=True)
    table = one.requests.assign(error=pd.Series([None, "HTTP 500"]))
    assert [reason.partition(":")[0] for reason in reasons(replace(one, requests=table))] == [
        "failed requests"
    ]


def test_requests_sent_twice_make_it_invalid():
    assert replicas_check(losing(asked=True, retries=2)) == ("2, 1 lost, as asked, 2 retries", False)
