"""One policy on three hosts: where they cannot differ, the decision logs are the same to the byte.

The simulator, vLLM and SGLang, the last two with their real schedulers and caches on a virtual clock. Hosts
cannot differ where memory and token budget are ample and either nobody waits for a slot and nobody decodes
(`crowd`), or one request runs at a time (`line`); and where their caches find the same: what prompts share is
whole blocks of vLLM's, and is not begun by two requests at once (in the same step, vLLM's second one hits and
SGLang's does not).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from baselines.decisions import Diverged, Entry, Recorder, replayed
from suite.backends import virtual
from suite.backends.base import KEPT
from suite.backends.simulator import Simulator
from suite.backends.simulator.cluster import alone
from suite.backends.simulator.live import lives
from suite.environments import Environment
from suite.policies import parse
from suite.trace import Header, Request, Segment, Trace, checked

BLOCK = 16
AMPLE: dict[str, Any] = {"model": "llama-3.2-3b", "gpu": "h100", "token_budget": 20_000, "kv_tokens": 100_000}
ENGINES = {"vllm": virtual.VirtualVLLM, "sglang": virtual.VirtualSGLang}
DRIVER = Path(__file__).with_name("in_drivers") / "broken.py"

MINE = '''
"""Longest match first, counted by the weight of who asks; asked anew after every admission."""

from baselines.scheduler import Scheduler


class WeightedLPM(Scheduler):
    name = "weighted-lpm"

    def candidates(self, waiting, now):
        while len(waiting):
            if not (yield max(waiting.by_arrival(), key=lambda one: one.weight * (1 + waiting.matched(one)))):
                return
'''


# -- the set-ups -------------------------------------------------------------------------------------------


def crowd(seed: int) -> tuple[Trace, int]:
    """Waves of requests with one output token each, and a slot for every one of them."""
    rng = random.Random(seed)
    requests: list[Request] = []
    cached: set[tuple[int, ...]] = set()
    for wave in range(6):
        begun: set[tuple[int, ...]] = set()
        for _ in range(rng.randint(4, 12)):
            path = _path(rng)
            missing = {path[:depth] for depth in range(1, len(path) + 1)} - cached
            if not missing & begun:
                begun |= missing
                requests.append(_request(rng, len(requests), 10.0 * wave, path, 1))
        cached |= begun
    return _trace(requests), 64


def line(seed: int) -> tuple[Trace, int]:
    """Requests of many output tokens, and a single slot."""
    rng = random.Random(seed)
    arrivals = sorted(rng.randint(0, 40) / 64 for _ in range(30))
    return _trace([_request(rng, i, at, _path(rng), rng.randint(2, 30)) for i, at in enumerate(arrivals)]), 1


SETUPS: dict[str, Callable[[int], tuple[Trace, int]]] = {"crowd": crowd, "line": line}
SEEDS = range(2)


def _path(rng: random.Random) -> tuple[int, ...]:
    """Which of three parts of a document comes first, second, ..."""
    return tuple(rng.randint(0, 2) for _ in range(rng.randint(0, 3)))


def _request(rng: random.Random, i: int, arrival: float, path: Sequence[int], output: int) -> Request:
    client = rng.choice("abc")
    shared = [Segment(f"part {path[: depth + 1]}", BLOCK * (1 + path[depth])) for depth in range(len(path))]
    tail = Segment(f"tail of {i}", rng.randint(1, 40))
    weight = {"a": 1.0, "b": 2.0, "c": 1.0}[client]
    return Request(str(i), client, arrival, (*shared, tail), output, weight=weight)


def _trace(requests: list[Request]) -> Trace:
    assert sum(request.prompt_tokens for request in requests) < AMPLE["token_budget"]
    return checked(Trace(Header("hosts", 0, "test"), tuple(requests)))


# -- the hosts ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drivers(vllm: Environment, sglang: Environment) -> Iterator[None]:
    """The engines' drivers, with adapters that a job can break."""
    for environment in (vllm, sglang):
        driver = virtual.Driver(environment, [str(DRIVER), environment.engine])
        virtual._drivers[environment.engine, None] = driver
        KEPT.callback(virtual._close, environment.engine, None)
    yield
    KEPT.close()


def on_an_engine(
    engine: str, case: tuple[Trace, int], policy: str, folder: Path, broken: str | None = None
) -> list[Entry]:
    """The decision log of real code."""
    trace, slots = case
    logs = folder / engine
    logs.mkdir(parents=True)
    if broken:
        (logs / "broken").write_text(broken)
    ENGINES[engine](**AMPLE, max_running=slots).run(trace, parse(policy), logs, quiet)
    return [json.loads(line) for line in (logs / "decisions-0.jsonl").read_text().splitlines()]


def simulated(flavour: str, case: tuple[Trace, int], policy: str) -> list[Entry]:
    """The decision log of the simulator."""
    log: list[Entry] = []
    trace, slots = case
    settings: dict[str, Any] = {**AMPLE, "max_running": slots, "engine": flavour}
    engine = Simulator(**settings).engine_for(Recorder(parse(policy).build(), log.append))
    alone(lives(trace), engine).run(quiet)
    return log


def quiet(share: float, note: str = "") -> None:
    """Progress that nobody watches."""


def bytes_of(log: list[Entry]) -> bytes:
    """The log as it stands in a file, tokens generated in direct succession told at once.

    A host may tell of a whole stretch of decoding in one entry; how it cuts it is its own rhythm.
    """
    told: list[Entry] = []
    tokens: Counter[str] = Counter()
    generated: dict[str, int] = {}
    for entry in log:
        if entry[0] == "generated":
            generated = entry[1] if len(entry) > 1 else generated
            tokens.update(generated)
            continue
        if tokens:
            told.append(["generated", dict(tokens)])
            tokens.clear()
        told.append(entry)
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in told)


def gives_back(log: list[Entry], policy: str) -> bool:
    """Whether a fresh policy gives the log back when it is told what the log holds."""
    try:
        return replayed(log, parse(policy).build()) == log
    except Diverged:
        return False


# -- what they must have in common -------------------------------------------------------------------------


@pytest.fixture
def policy(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A policy of ours by its name, or a user's by its file."""
    if request.param != "mine":
        return str(request.param)
    (tmp_path / "mine.py").write_text(MINE)
    return f"{tmp_path / 'mine.py'}:WeightedLPM"


POLICIES = ("fcfs", "lpm", "vtc", "vtc:charge=extend", "dlpm:quantum=60", "mine")


@pytest.mark.parametrize("policy", POLICIES, indirect=True)
@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_host_decides_alike(drivers: None, seed: int, setup: str, policy: str, tmp_path: Path) -> None:
    case = SETUPS[setup](seed)
    logs = {engine: on_an_engine(engine, case, policy, tmp_path) for engine in ENGINES}
    logs |= {f"simulated {flavour}": simulated(flavour, case, policy) for flavour in ENGINES}
    for host, log in logs.items():
        assert gives_back(log, policy), host
        assert bytes_of(log) == bytes_of(logs["vllm"]), host
    cached = dict(entry[1:] for entry in logs["vllm"] if entry[0] == "admitted")
    assert sorted(cached) == list(range(len(case[0].requests)))
    assert (list(cached) == sorted(cached)) == (policy == "fcfs"), "they compare too little"
    assert sum(tokens > 0 for tokens in cached.values()) > 5, "they compare too little"


BREAKAGES = {
    "resumes_without_a_slot": "fcfs",
    "tells_of_admissions_late": "dlpm:quantum=60",
    "reports_stale_matches": "lpm",
    "forgets_the_cache": "fcfs",
    "counts_twice": "vtc",
}
"""A way in which an adapter may be broken, and a policy that shows it."""


@pytest.mark.parametrize("broken", BREAKAGES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_broken_adapter_is_caught(drivers: None, engine: str, broken: str, tmp_path: Path) -> None:
    case, policy = line(0), BREAKAGES[broken]
    log = on_an_engine(engine, case, policy, tmp_path, broken)
    assert bytes_of(log) != bytes_of(simulated(engine, case, policy)) or not gives_back(log, policy)
