"""The engine's log of a run, read back: as the host wrote it, cut short, merged with the client's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from baselines.scheduler import Request
from suite.backends import engine_log
from suite.backends.engine_log import EngineLog
from suite.backends.host import Host
from suite.errors import BadInput
from suite.results import SERVICE_COLUMNS

START = 100.0


@dataclass
class Clock:
    now: float = START

    def __call__(self) -> float:
        self.now += 1
        return self.now


class NoMatches:
    """No request has a prefix in the cache."""

    def follow(self, request: Request) -> int:
        return 0

    def unfollow(self, request: Request) -> None:
        pass

    def refresh(self, changed: Callable[[Request, int], object]) -> None:
        pass


@dataclass
class Session:
    """A host that serves three requests: one is preempted, one is aborted in the middle of its prefill."""

    folder: Path
    clock: Clock = field(default_factory=Clock)

    def run(self) -> Path:
        configuration = {
            "scheduler": {"target": "baselines.fcfs:FCFS", "parameters": {}},
            "logs": str(self.folder),
        }
        host = Host(configuration, NoMatches(), self.clock)
        host.begin({"cached_blocks": 0})
        one, two, three = (host.arrived(None, f"r{i}", client, 100, 1.0, 0) for i, client in enumerate("aba"))
        for request, cached in ((one, 0), (two, 64), (three, 32)):
            host.started(request, cached)
        host.generated({one: 2, two: 1})
        host.preempted(two, 101)
        host.started(two, 96)
        host.finished(three, "abort", 60)
        host.generated({one: 1, two: 1})
        host.finished(one, "length", 103)
        host.finished(two, "length", 102)
        host.close()
        return self.folder / "service-0.jsonl"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Session(tmp_path / "logs").run()


def replayed(**changes: list[Any]) -> pd.DataFrame:
    """What the client saw of the session."""
    columns = {
        "id": ["r0", "r1", "r2", "r3"],
        "client": ["a", "b", "a", "b"],
        "cached_tokens": [0, 64, 0, 0],
        "output_tokens": [3, 2, 0, 0],
        "status": ["finished", "finished", "failed", "rejected"],
    }
    return pd.DataFrame({**columns, **changes})


def test_the_service_log_has_each_token_once(path: Path):
    log = engine_log.read(path, START)
    assert tuple(log.service.columns) == SERVICE_COLUMNS
    sums = log.service.groupby("client")[["extend", "cached", "recomputed", "output"]].sum()
    assert sums.loc["a"].tolist() == [100 + (100 - 32 - 40), 32, 0, 3], "r2 lacks 40"
    assert sums.loc["b"].tolist() == [36, 64, 5, 2]
    assert log.service["time"].is_monotonic_increasing
    assert log.service["time"].iloc[0] == 5, "on the run's clock: the policy and 3 arrivals came before"


def test_each_request_is_told_of(path: Path):
    requests = engine_log.read(path, START).requests
    assert requests.index.tolist() == ["r0", "r1", "r2"]
    assert requests["client"].tolist() == ["a", "b", "a"]
    assert requests["cached"].tolist() == [0, 64, 32]
    assert requests["recomputed"].tolist() == [0, 5, 0]
    assert requests["preemptions"].tolist() == [0, 1, 0]
    assert requests["output"].tolist() == [3, 2, 0]
    assert (requests["finished"] > requests["admitted"]).all()


def test_the_policy_in_force_is_told(path: Path):
    policy = engine_log.read(path, START).policy
    assert (policy["target"], policy["name"], policy["cached_blocks"]) == ("baselines.fcfs:FCFS", "fcfs", 0)


@pytest.mark.parametrize("cut", [1, 7])
def test_a_cut_last_line_is_left_out(path: Path, cut: int):
    path.write_bytes(path.read_bytes()[:-cut])
    requests = engine_log.read(path, START).requests
    assert requests["finished"].notna().tolist() == [True, False, True]


def test_a_log_without_a_line_is_empty(tmp_path: Path):
    path = tmp_path / "log"
    path.write_text('["pol')
    log = engine_log.read(path, START)
    assert (log.policy, len(log.service), len(log.requests), log.failed) == ({}, 0, 0, None)


def test_what_was_not_computed_again_after_all_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "service-0.jsonl"
    entries = (
        ["admitted", 0.0, "r0", "a", 100, 0],
        ["preempted", 1.0, "r0"],
        ["resumed", 2.0, "r0", "a", 90, 10],
        ["spared", 3.0, "r0", "a", 40],
        ["preempted", 3.0, "r0"],
    )
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    log = engine_log.read(path, 0.0)
    assert log.requests.loc["r0", ["recomputed", "preemptions"]].tolist() == [50, 2]
    assert log.service["recomputed"].tolist() == [0, 90, -40]


@pytest.mark.parametrize(
    "line", ["nonsense", '{"a": 1}', '["admitted", 1]', '["resumed", 1, "none", "a", 5, 3]', '["preempted"]']
)
def test_a_damaged_line_is_refused(path: Path, line: str):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], line, *lines[3:], ""]))
    with pytest.raises(BadInput, match=r"service-0.jsonl:4: not a line of a service log: "):
        engine_log.read(path, START)


def test_lines_for_others_are_passed_over(path: Path):
    lines = path.read_text().splitlines()
    before = engine_log.read(path, START)
    path.write_text("\n".join([*lines, '["step", 120, 1, 2, 3, 4]', ""]))
    assert engine_log.read(path, START).service.equals(before.service)


def test_a_policy_that_raised_is_told(path: Path):
    path.write_text(path.read_text() + json.dumps(["failed", 130, "my.py:3: KeyError: 'x'"]) + "\n")
    assert engine_log.read(path, START).failed == "my.py:3: KeyError: 'x'"


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(BadInput, match="none: cannot be read: No such file"):
        engine_log.read(tmp_path / "none", START)


def test_replicas_are_read_as_one(path: Path, tmp_path: Path):
    other = Session(tmp_path / "other", Clock(START + 0.5)).run()
    other.write_text(other.read_text().replace('"r', '"s'))
    logs = [engine_log.read(file, START) for file in (path, other)]
    both = engine_log.together(logs)
    assert both.requests.index.tolist() == ["r0", "r1", "r2", "s0", "s1", "s2"]
    assert both.service["time"].is_monotonic_increasing
    assert both.service["output"].sum() == 2 * logs[0].service["output"].sum()
    assert both.path == tmp_path
    assert engine_log.together(logs[:1]).path == path


def test_a_request_that_was_begun_twice_is_told_of_where_it_got_furthest(path: Path, tmp_path: Path):
    """r1 was lost with the first replica before its first token."""
    whole = engine_log.read(path, START, "replica-1")
    lost = tmp_path / "lost.jsonl"
    lost.write_text(json.dumps(["admitted", START, "r1", "b", 64, 0]) + "\n")
    both = engine_log.together([engine_log.read(lost, START, "replica-0"), whole])
    assert both.requests.index.tolist() == ["r1", "r0", "r2"]
    assert both.requests["worker"].tolist() == ["replica-1"] * 3
    assert both.requests.loc["r1", "output"] == whole.requests.loc["r1", "output"] > 0
    assert both.service["worker"].value_counts()["replica-0"] == 1, "its service was given all the same"


def merged(path: Path, requests: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    return engine_log.merge(requests, engine_log.read(path, START))


def test_merging_takes_from_the_engine_what_only_it_knows(path: Path):
    frame, problems = merged(path, replayed())
    assert problems == ()
    assert frame["preemptions"].tolist() == [0, 1, 0, 0]
    assert frame["recomputed_tokens"].tolist() == [0, 5, 0, 0]
    assert frame["cached_tokens"].tolist() == [0, 64, 32, 0]
    assert [isnan(time) for time in frame["admitted"]] == [False, False, False, True]
    assert frame["output_tokens"].tolist() == [3, 2, 0, 0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cached_tokens": [0, 32, 0, 0]}, "on cached_tokens of 1 requests: 'r1' has 32 here and 64 in the"),
        ({"client": ["x", "b", "a", "b"]}, "on who sent 1 requests: 'r0' is of 'x' here and of "),
        ({"output_tokens": [3, 1, 0, 0]}, "on output_tokens of 1 requests: 'r1' has 1 here and 2 in the"),
    ],
)
def test_client_and_engine_must_agree(path: Path, changes: dict[str, list[Any]], told: str):
    _, problems = merged(path, replayed(**changes))
    assert len(problems) == 1
    assert told in problems[0]


def test_what_failed_need_not_agree(path: Path):
    status = ["finished", "failed", "failed", "rejected"]
    assert merged(path, replayed(output_tokens=[3, 1, 0, 0], status=status))[1] == ()


@pytest.mark.parametrize(
    ("shorten", "lacking"),
    [(lambda log: log, None), (lambda log: log[:-2], "'r1'"), (lambda log: b"", "'r0'")],
)
def test_a_log_that_lacks_the_end_of_a_request_is_told(
    path: Path, shorten: Callable[[bytes], bytes], lacking: str | None
):
    path.write_bytes(shorten(path.read_bytes()))
    log: EngineLog = engine_log.read(path, START)
    told = engine_log.missing(log, replayed())
    if lacking is None:
        assert told is None
    else:
        assert told is not None
        assert told.startswith(f"{path}: the service log lacks the end of ")
        assert lacking in told
        assert "disk full?" in told


def test_what_an_engines_own_scheduler_went_by_is_counted(tmp_path: Path):
    logs = []
    for number, active in enumerate((["lpm", "lpm", "fcfs"], ["fcfs"])):
        path = tmp_path / f"{number}.jsonl"
        lines = [["policy", 1, {}], *(["active", 2, name, 7] for name in active)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        logs.append(engine_log.read(path, 0.0))
    assert [log.active for log in logs] == [{"lpm": 2, "fcfs": 1}, {"fcfs": 1}]
    assert engine_log.together(logs).active == {"lpm": 2, "fcfs": 2}
