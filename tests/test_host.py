"""The policy inside an engine: what it is told, what is charged, what is logged, whatever happens."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from baselines.decisions import replayed
from baselines.fcfs import FCFS
from baselines.scheduler import Request
from suite import trace
from suite.backends.host import (
    TIMING_STEPS,
    Host,
    LogFile,
    Served,
    Stopwatch,
    load,
    source_digest,
)
from suite.backends.said import LONGEST_NAME, PRIORITIES, WEIGHTS


class Known:
    """Matches that are what the test says."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}
        self.told: dict[Request, int] = {}
        self.looks = 0

    def follow(self, request: Request) -> int:
        return self.told.setdefault(request, self.tokens.get(request.id, 0))

    def unfollow(self, request: Request) -> None:
        del self.told[request]

    def refresh(self, changed: Callable[[Request, int], object]) -> None:
        self.looks += 1
        for request, told in self.told.items():
            if (tokens := self.tokens.get(request.id, 0)) != told:
                self.told[request] = tokens
                changed(request, tokens)


class Clock:
    """Goes on by a second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def started(folder: Path, target: str = "baselines.fcfs:FCFS", **parameters: Any) -> Host:
    configuration = {"scheduler": {"target": target, "parameters": parameters}, "logs": str(folder)}
    host = Host(configuration, Known(), Clock())
    host.begin({"engine": "none"})
    return host


def arrive(host: Host, id: str, client: str = "a", prompt: int = 100) -> Served:
    return host.arrived(object(), id, client, prompt, 1.0, 0)


def log(folder: Path, kind: str = "service", run: int = 0) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / f"{kind}-{run}.jsonl").read_text().splitlines()]


def test_the_service_log_tells_the_whole_story_of_a_request(tmp_path: Path) -> None:
    host = started(tmp_path)
    first, second = arrive(host, "r0", "a"), arrive(host, "r1", "b")
    offers = host.candidates()
    assert next(offers) is first
    host.started(first, cached=32)
    assert offers.send(True) is second
    host.started(second, cached=0)
    offers.close()
    host.generated({first: 1, second: 2})
    host.preempted(second, computed=101)
    host.started(second, cached=96)
    host.finished(first, "stop", 100)
    host.finished(second, "abort", 97)
    host.close()
    policy, *lines = log(tmp_path)
    assert [line[1] for line in (policy, *lines)] == sorted(line[1] for line in (policy, *lines))
    assert [[kind, *facts] for kind, _, *facts in lines] == [
        ["admitted", "r0", "a", 68, 32],
        ["admitted", "r1", "b", 100, 0],
        ["generated", {"a": 1, "b": 2}],
        ["preempted", "r1"],
        ["resumed", "r1", "b", 5, 96],
        ["finished", "r0", "a", "stop", 1, 0],
        ["spared", "r1", "b", 4],
        ["finished", "r1", "b", "abort", 2, 0],
    ]
    facts = policy[2]
    assert (facts["name"], facts["target"], facts["engine"]) == ("fcfs", "baselines.fcfs:FCFS", "none")
    assert facts["source"] == source_digest(FCFS)


@pytest.mark.parametrize(
    ("cached", "at_preemption", "cached_again", "at_end", "uncomputed"),
    [(0, None, None, 0, 100), (32, None, None, 80, 20), (32, 48, 16, 30, 52), (0, 64, 80, 90, 10)],
)
def test_an_abort_in_the_prefill_gives_back_what_was_never_computed(
    tmp_path: Path,
    cached: int,
    at_preemption: int | None,
    cached_again: int | None,
    at_end: int,
    uncomputed: int,
) -> None:
    host = started(tmp_path)
    request = arrive(host, "r0")
    host.started(request, cached)
    if at_preemption is not None and cached_again is not None:
        host.preempted(request, at_preemption)
        host.started(request, cached_again)
    host.finished(request, "abort", at_end)
    host.close()
    assert log(tmp_path)[-1][2:] == ["r0", "a", "abort", 0, uncomputed]


def test_an_abort_before_the_start_gives_nothing_back_and_leaves_nothing_waiting(tmp_path: Path) -> None:
    host = started(tmp_path)
    waiting, aside = arrive(host, "r0"), arrive(host, "r1")
    host.set_aside(aside)
    host.finished(waiting, "abort", 0)
    host.finished(aside, "abort", 0)
    assert not len(host.waiting)
    assert not host.aside
    host.close()
    assert [line[2:] for line in log(tmp_path)[1:]] == [
        ["r0", "a", "abort", 0, 0],
        ["r1", "a", "abort", 0, 0],
    ]


def test_what_is_set_aside_is_not_offered_until_it_is_back(tmp_path: Path) -> None:
    host = started(tmp_path)
    requests = [arrive(host, f"r{i}") for i in range(3)]
    host.set_aside(requests[0])
    host.set_aside(requests[1])
    assert next(host.candidates()) is requests[2]
    host.put_back(requests[1])
    assert next(host.candidates()) is requests[1]
    host.started(requests[0], 0)  # the engine may start on its own what it had set aside
    assert not host.aside
    host.close()
    decisions = log(tmp_path, "decisions")
    assert replayed(decisions, FCFS()) == decisions
    kinds = [kind for kind, *_ in decisions if kind in ("aside", "back", "admitted")]
    assert kinds == ["aside", "aside", "back", "admitted"]


def test_a_policy_decides_on_fresh_matches_within_a_step(tmp_path: Path) -> None:
    host = started(tmp_path, "baselines.lpm:LPM")
    matches: Any = host._matches
    requests = [arrive(host, f"r{i}") for i in range(3)]
    matches.tokens = {"r2": 16}
    offers = host.candidates()
    assert next(offers) is requests[2]
    offers.close()
    matches.tokens = {"r1": 48}
    looks = matches.looks
    assert next(host.candidates()) is requests[1]
    assert matches.looks == looks + 1
    host.close()


def test_each_run_has_a_fresh_policy_and_logs_of_its_own(tmp_path: Path) -> None:
    host = started(tmp_path, "baselines.vtc:VTC")
    for run in range(2):
        request = arrive(host, f"r{run}")
        assert request.sequence == 0
        host.started(request, 0)
        host.finished(request, "stop", 100)
        counters = host._policy._policy.counters  # type: ignore[attr-defined]
        assert counters == {"a": 100.0}
        host.begin({"engine": "none"})
    host.close()
    assert [log(tmp_path, run=run)[1][2] for run in range(2)] == ["r0", "r1"]
    assert len(log(tmp_path, run=2)) == 1


BROKEN = """
from baselines.fcfs import FCFS
from baselines.scheduler import Request

class Broken(FCFS):
    def __init__(self, *, at: str) -> None:
        self.at = at

    def arrived(self, request, now):
        1 / (self.at != "arrived")

    def candidates(self, waiting, now):
        1 / (self.at != "candidates")
        yield from super().candidates(waiting, now)
        yield Request("r9", "a", 9, 0.0, 100)
"""


@pytest.mark.parametrize(
    ("at", "line", "message"),
    [
        ("arrived", 10, "ZeroDivisionError"),
        ("candidates", 13, "ZeroDivisionError"),
        ("end", None, "which is not a waiting request"),
    ],
)
def test_what_a_policy_raises_stands_in_the_log_and_goes_on(
    tmp_path: Path, at: str, line: int | None, message: str
) -> None:
    file = tmp_path / "broken.py"
    file.write_text(BROKEN)
    host = started(tmp_path, f"{file}:Broken", at=at)
    with pytest.raises((ZeroDivisionError, ValueError)):
        drive(host, arrive(host, "r0"))
    kind, _, told = log(tmp_path)[-1]
    assert kind == "failed"
    assert message in told
    assert line is None or told.startswith(f"{file}:{line}: ")


def drive(host: Host, request: Served) -> None:
    offers = host.candidates()
    assert next(offers) is request
    host.started(request, 0)
    offers.send(True)


def test_of_a_policy_of_the_engine_the_same_is_logged_and_what_was_really_active(tmp_path: Path) -> None:
    host = Host({"scheduler": {"stock": "lpm"}, "logs": str(tmp_path)}, Known(), Clock())
    host.begin({"engine": "sglang"})
    request = arrive(host, "r0")
    host.passed("fcfs", 130)
    host.started(request, cached=32)
    host.finished(request, "stop", 100)
    host.close()
    policy, *lines = log(tmp_path)
    named = {"target": "sglang:lpm", "name": "lpm", "parameters": {}, "source": "", "engine": "sglang"}
    assert policy[2] == named
    assert [[kind, *facts] for kind, _, *facts in lines] == [
        ["active", "fcfs", 130],
        ["admitted", "r0", "a", 68, 32],
        ["finished", "r0", "a", "stop", 0, 0],
    ]
    assert [kind for kind, *_ in log(tmp_path, "decisions")] == ["arrived", "admitted", "finished"]


def test_a_full_disk_costs_the_log_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    file = LogFile(Path("/dev/full"))
    for n in range(1000):
        file.write(["line", n])
    file.close()
    assert "/dev/full: cannot be written" in capfd.readouterr().err
    assert file._lines.empty()


def test_lines_are_written_in_order_while_the_log_is_open(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log.jsonl")
    for n in range(5000):
        file.write([n, "\ud800"])
    file.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [[n, "\ud800"] for n in range(5000)]


@pytest.mark.parametrize("seed", range(8))
def test_random_lives_are_conserved_and_replay(tmp_path: Path, seed: int) -> None:
    """Requests through all states in any order: charges add up, and the decision log replays."""
    rng = random.Random(seed)
    target = ("baselines.dlpm:DLPM", "baselines.vtc:VTC", "baselines.lpm:LPM")[seed % 3]
    host = started(tmp_path, target)
    matches: Any = host._matches
    running: list[Served] = []
    expected: Counter[str] = Counter()
    for n in range(300):
        matches.tokens[f"r{rng.randrange(n + 1)}"] = 16 * rng.randrange(6)
        for request in happening(host, rng, running, n):
            expected[request.client] += request.output_tokens
    assert any(entry[0] == "preempted" for entry in flushed(host, tmp_path))
    decisions = log(tmp_path, "decisions")
    assert replayed(decisions, load(target)()) == decisions
    finished: Counter[str] = Counter()
    for kind, _, *facts in log(tmp_path):
        if kind == "finished":
            finished[facts[1]] += facts[3]
    assert finished == expected
    assert +finished


def happening(host: Host, rng: random.Random, running: list[Served], n: int) -> Iterator[Served]:
    """Something happens; yields the request that has left, if one has."""
    what = rng.choice(("arrive", "arrive", "step", "step", "generate", "generate", "preempt", "leave"))
    if what == "arrive":
        arrive(host, f"r{n}", rng.choice("abc"), rng.randrange(96, 200))
    elif what == "step" and len(host.waiting):
        step(host, rng, running)
    elif what == "generate" and running:
        host.generated({request: rng.choice((1, 1, 3)) for request in running})
    elif what == "preempt" and running:
        request = running.pop(rng.randrange(len(running)))
        host.preempted(request, rng.randrange(100))
    elif what == "leave" and running:
        request = running.pop(rng.randrange(len(running)))
        host.finished(request, rng.choice(("stop", "abort")), rng.randrange(200))
        yield request


def step(host: Host, rng: random.Random, running: list[Served]) -> None:
    offers = host.candidates()
    offer = next(offers, None)
    for _ in range(rng.randrange(3)):
        if offer is None:
            break
        tokens = host._matches.told.get(offer, 0)  # type: ignore[attr-defined]
        host.started(offer, tokens)
        running.append(offer)
        offer = next_offer(offers)
    offers.close()


def next_offer(offers: Any) -> Any:
    try:
        return offers.send(True)
    except StopIteration:
        return None


def flushed(host: Host, folder: Path) -> list[list[Any]]:
    host.close()
    return log(folder)


def test_the_stopwatch_counts_steps_offers_and_what_is_nested_once(tmp_path: Path) -> None:
    host = started(tmp_path)

    class Engine:
        def schedule(self) -> None:
            if len(host.waiting):
                next(host.candidates())

        def update(self) -> None:
            self.inner()

        def inner(self) -> None:
            self.innermost()

        def innermost(self) -> None:
            sum(range(200))

    engine: Any = Engine()
    watch = Stopwatch(host)
    watch.step(engine, "schedule", "update")
    watch.decisions(engine, "innermost", "inner")
    arrive(host, "r0")
    for _ in range(TIMING_STEPS + 7):
        engine.schedule()
        engine.update()
    watch.write()
    watch.write()
    host.close()
    timings = [line[2] for line in log(tmp_path) if line[0] == "timing"]
    assert [facts["steps"] for facts in timings] == [TIMING_STEPS, 7]
    assert [facts["offers"] for facts in timings] == [TIMING_STEPS, 7]
    assert all(facts["deciding_ns"] > 0 for facts in timings)


def test_what_a_trace_may_say_an_engine_keeps() -> None:
    """No name of a trace is cut, and no weight or priority is changed, on its way to the policy."""
    facts: dict[str, Any] = {"arrival": 0.0, "prompt": [["p", 1]], "output_tokens": 1}
    adapter = TypeAdapter(trace.Request)

    def takes(name: int, weight: float, priority: int) -> bool:
        said = {"id": "i" * name, "client": "c" * name, "weight": weight, "priority": priority}
        try:
            adapter.validate_json(json.dumps(facts | said))
        except ValidationError:
            return False
        return True

    for weight, priority in zip(WEIGHTS, PRIORITIES, strict=True):
        assert takes(LONGEST_NAME, weight, priority)
    assert not takes(LONGEST_NAME + 1, 1.0, 0)
    for i, beyond in enumerate((0.9, 1.1)):
        assert not takes(1, WEIGHTS[i] * beyond, 0)
        assert not takes(1, 1.0, PRIORITIES[i] + (-1, 1)[i])


def test_policies_are_loaded_from_modules_and_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from baselines.fcfs import FCFS\nclass Mine(FCFS):\n    name = 'mine'\n")
    before = set(sys.modules)
    cls = load(f"{file}:Mine")
    for added in set(sys.modules) - before:
        del sys.modules[added]
    assert (cls.name, load("baselines.fcfs:FCFS")) == ("mine", FCFS)
