"""The decision log: written by the host's happenings, given back by a fresh policy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest
from test_simulator_reference import simulated

from baselines.decisions import Diverged, Entry, Recorder, replayed
from baselines.dlpm import DLPM
from baselines.fcfs import FCFS
from baselines.lpm import LPM, LPMWithFallback
from baselines.preble_groups import PrebleGroups
from baselines.scheduler import Candidates, Request, Scheduler, Waiting
from baselines.vtc import VTC
from suite.verify import random_case

POLICIES: dict[str, Callable[[], Scheduler]] = {
    "fcfs": FCFS,
    "lpm": LPM,
    "lpm-fallback": lambda: LPMWithFallback(threshold=3),
    "vtc": VTC,
    "vtc-extend": lambda: VTC(charge="extend"),
    "dlpm": lambda: DLPM(quantum=60),
    "preble-groups": PrebleGroups,
}
KINDS = ("arrived", "admitted", "resumed", "generated", "preempted", "finished", "decide", "offer", "refused")


class Matched(Scheduler):
    """Most matched tokens first, by asking for each match, and over again after each admission."""

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        while len(waiting) and (yield max(waiting.by_arrival(), key=waiting.matched)):
            pass


def logged(policy: Scheduler, seed: int) -> list[Entry]:
    """The log of a random run in the simulator, as it would stand in a file."""
    log: list[Entry] = []
    case = random_case(seed)
    simulated(case, "vllm" if seed % 2 else "sglang", Recorder(policy, log.append))
    return [json.loads(json.dumps(entry)) for entry in log]


@pytest.mark.parametrize("name", [*POLICIES, "matched"])
def test_a_fresh_policy_gives_the_log_back(name: str) -> None:
    build = POLICIES.get(name, Matched)
    seen: Counter[str] = Counter()
    for seed in range(12):
        log = logged(build(), seed)
        assert replayed(log, build()) == log
        seen.update(kind for kind, *_ in log)
    asks = dict.fromkeys(("matched", "preble-groups"), "matched")
    asks |= dict.fromkeys(("lpm", "lpm-fallback", "dlpm"), "longest")
    kinds = {*KINDS, *([asks[name]] if name in asks else [])}
    assert not {kind for kind in kinds if not seen[kind]}, "some entries were never compared"


def test_recording_changes_nothing() -> None:
    for seed in range(6):
        runs = []
        for policy in (DLPM(quantum=60), Recorder(DLPM(quantum=60), lambda entry: None)):
            _, engine = simulated(random_case(seed), "vllm", policy)
            runs.append((engine.steps, engine.now, engine.journal.rows))
        assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("mine", "other"), [("lpm", "fcfs"), ("dlpm", "lpm"), ("vtc", "fcfs"), ("vtc", "dlpm")]
)
def test_another_policy_does_not(mine: str, other: str) -> None:
    def same(seed: int) -> bool:
        log = logged(POLICIES[mine](), seed)
        try:
            return replayed(log, POLICIES[other]()) == log
        except Diverged:
            return False

    assert not all(same(seed) for seed in range(4))


def test_a_batch_that_stays_the_same_is_written_once() -> None:
    log: list[Entry] = []
    recorder = Recorder(FCFS(), log.append)
    a, b = Request("a", "x", 0, 0.0, 5), Request("b", "y", 1, 0.0, 5)
    for tokens in ({a: 1}, {a: 1}, {a: 1, b: 1}, {b: 1, a: 1}, {a: 1}):
        recorder.generated(tokens, 0.0)
    assert log == [
        ["generated", {"0": 1}],
        ["generated"],
        ["generated", {"0": 1, "1": 1}],
        ["generated"],
        ["generated", {"0": 1}],
    ]


def test_an_abort_from_the_queue_is_told() -> None:
    log: list[Entry] = []
    recorder = Recorder(VTC(), log.append)
    request = Request("a", "x", 0, 0.0, 5)
    recorder.arrived(request, 0.0)
    recorder.finished(request, "abort", 0, 0, 1.0)
    assert (
        replayed(log, VTC()) == log == [["arrived", 0, "a", "x", 5, 1.0, 0], ["finished", 0, "abort", 0, 0]]
    )
