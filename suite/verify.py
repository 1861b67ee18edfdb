"""Is the simulator right? The same random traces through it and through the engines' own code.

An engine's scheduler and cache run without a model on a virtual clock (`suite.backends.virtual`), under the
same policies and the same cost model. What is compared: every arrival, admission, resumption, preemption and
finish in order, with the cached tokens; the number of steps; recomputed tokens; and all times.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from baselines.decisions import Entry, Recorder
from suite import environments
from suite.backends.base import KEPT
from suite.backends.simulator import Simulator
from suite.backends.simulator.cluster import alone
from suite.backends.simulator.live import lives
from suite.backends.virtual import Virtual, VirtualSGLang, VirtualVLLM
from suite.errors import BadInput, did_you_mean
from suite.policies import SchedulerSpec, parse
from suite.trace import REPLY, Header, Request, Segment, Trace, checked

ENGINES: dict[str, type[Virtual]] = {"vllm": VirtualVLLM, "sglang": VirtualSGLang}
"""The engines that the simulator is compared with."""

SCHEDULERS = ("fcfs", "lpm", "vtc", "vtc:charge=extend", "dlpm:quantum=60")
"""What is compared by default: the quantum is small, so that deficits run out in these short traces."""

HAPPENINGS = ("preempted", "evicted match", "chunked", "shared in step")
"""What must occur among the cases of a scheduler, or they compare too little: a preemption, the eviction of
something that a waiting request matched, a prefill in chunks, two requests of one prefix admitted in one step
(where the second one hits in vLLM, and not in SGLang)."""

BLOCK = 16
_COMPARED = ("arrived", "admitted", "resumed", "preempted", "finished")
_NUMBERS = {
    "arrival": "arrival",
    "admitted": "admitted",
    "first_token": "first_token",
    "finish": "finish",
    "recomputed_tokens": "recomputed",
}
"""What is compared of each request: the column of its frame, and the simulator's name for it."""


@dataclass(frozen=True)
class Case:
    """A trace and an engine small enough that requests get into each other's way.

    `clip` is for SGLang: the most output tokens it reserves for a request.
    """

    trace: Trace
    running: int
    tokens: int
    kv_tokens: int
    clip: int


def random_case(seed: int) -> Case:
    """Small pools and budgets, with room for the decode of all that run."""
    rng = random.Random(seed)
    return Case(
        trace=_random_trace(rng, seed),
        running=rng.randint(2, 6),
        tokens=rng.choice([16, 24, 33, 64, 200]),
        kv_tokens=rng.choice([208, 256, 320, 400, 600]),
        clip=rng.choice([1, 4, 8, 30, 4096]),
    )


def _random_trace(rng: random.Random, seed: int) -> Trace:
    requests: list[Request] = []
    for i in range(rng.randint(10, 30)):
        requests.append(_random_request(rng, str(i), requests))
    return checked(Trace(Header("random", seed, "suite verify"), tuple(requests)))


def _random_request(rng: random.Random, id: str, earlier: list[Request]) -> Request:
    """A prompt of its own, one seen before, or a turn after an earlier reply; arrivals come in bursts."""
    prompt, after = _random_prompt(rng, id), tuple[str, ...]()
    kind = rng.random() if earlier else 1.0
    if kind < 0.4:
        parent = rng.choice(earlier)
        prompt, after = parent.prompt, parent.after
        if kind < 0.25:
            after = (parent.id,)
            prompt = (*parent.prompt, Segment(REPLY + parent.id, parent.output_tokens))
    return Request(
        id,
        client=rng.choice("abc"),
        arrival=rng.randint(0, 9) / 8,
        prompt=_never_wholly_cached(id, prompt),
        output_tokens=rng.choice([1, 2, 7, 16, 33, 80]),
        after=after,
        think=rng.choice([0.0, rng.uniform(0.03, 0.08)]),
    )


def _random_prompt(rng: random.Random, id: str) -> tuple[Segment, ...]:
    document = Segment(f"document {rng.randint(0, 6)}", rng.choice([7, 15, 16, 17, 32, 33, 48, 64, 70]))
    question = rng.choice([f"question {rng.randint(0, 9)}", f"question of {id}"])
    return (document, Segment(question, rng.choice([1, 5, 16, 20, 32, 40])))[: rng.choice([1, 2, 2])]


def _never_wholly_cached(id: str, prompt: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """A prompt of whole blocks gets a last token of its own: vLLM would keep a second copy of its last block.

    That is the one intended difference; see the README.
    """
    if sum(segment.tokens for segment in prompt) % BLOCK:
        return prompt
    return (*prompt, Segment(f"end of {id}", 1))


# -- comparing -------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """What became of an engine's cases under a scheduler: how many, what occurred, where they differ."""

    engine: str
    scheduler: str
    cases: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)

    @property
    def unseen(self) -> list[str]:
        """What should have occurred and did not."""
        return [happening for happening in HAPPENINGS if not self.seen[happening]]


def installed() -> list[str]:
    """The engines that it can be compared with here. Raises `BadInput` if there is none."""
    there = {environment.engine for environment in environments.installed() if environment.device == "cpu"}
    if not there.intersection(ENGINES):
        commands = " or ".join(environments.install_command(engine, "cpu") for engine in ENGINES)
        raise BadInput(f"no engine is installed to compare the simulator with; run: {commands}")
    return [engine for engine in ENGINES if engine in there]


def simulator(
    engines: Sequence[str],
    schedulers: Sequence[str],
    seeds: Sequence[int],
    progress: Callable[[float], object],
) -> list[Comparison]:
    """Compare the simulated engines with the engines' own code. Raises `BadInput` if one is not installed."""
    for engine in engines:
        if engine not in ENGINES:
            raise BadInput(f"unknown engine {engine!r}; {did_you_mean(engine, ENGINES)}")
    found = []
    cells = list(itertools.product(engines, (parse(name) for name in schedulers)))
    with KEPT:
        for i, (engine, spec) in enumerate(cells):
            comparison = Comparison(engine, spec.label)
            for j, seed in enumerate(seeds):
                _compare(spec, seed, comparison)
                progress((i * len(seeds) + j + 1) / (len(cells) * len(seeds)))
            found.append(comparison)
    return found


def _compare(spec: SchedulerSpec, seed: int, comparison: Comparison) -> None:
    case = random_case(seed)
    settings: dict[str, Any] = {
        "model": "llama-3.2-3b", "gpu": "h100", "max_running": case.running, "token_budget": case.tokens,
        "kv_tokens": case.kv_tokens, "clip_tokens": case.clip,
    }  # fmt: skip
    expected, seen = _real(ENGINES[comparison.engine](**settings), case.trace, spec)
    settings["engine"] = comparison.engine
    simulated = _simulated(Simulator(**settings), case.trace, spec)
    difference = expected.difference(simulated)
    comparison.cases += 1
    comparison.seen += seen
    if difference is not None:
        comparison.differences.append(f"seed {seed}: {difference}")


@dataclass(frozen=True)
class _Course:
    """How a run went: events in order, `_NUMBERS` by request, steps."""

    events: list[Entry]
    numbers: pd.DataFrame
    steps: int

    def difference(self, simulated: _Course) -> str | None:
        """The first thing that the simulator does otherwise."""
        for i, (real, ours) in enumerate(zip(self.events, simulated.events, strict=False)):
            if real != ours:
                return f"event {i}: the engine has {real}, the simulator {ours}"
        if len(self.events) != len(simulated.events):
            return f"the engine has {len(self.events)} events, the simulator {len(simulated.events)}"
        if self.steps != simulated.steps:
            return f"the engine takes {self.steps} steps, the simulator {simulated.steps}"
        for name in _NUMBERS:
            pairs = np.column_stack([self.numbers[name], simulated.numbers[name]])
            for i, (real, ours) in enumerate(pairs):
                if not np.isclose(real, ours, rtol=1e-9, atol=0, equal_nan=True):
                    return f"{name} of request {i}: the engine has {real:g}, the simulator {ours:g}"
        return None


def _real(backend: Virtual, trace: Trace, spec: SchedulerSpec) -> tuple[_Course, Counter[str]]:
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        outcome = backend.run(trace, spec, logs, _quiet)
        log = [json.loads(line) for line in (logs / "decisions-0.jsonl").read_text().splitlines()]
    course = _Course(_events(log), outcome.requests[list(_NUMBERS)], outcome.engine["steps"])
    return course, Counter(outcome.engine["seen"])


def _simulated(backend: Simulator, trace: Trace, spec: SchedulerSpec) -> _Course:
    log: list[Entry] = []
    requests, engine = lives(trace), backend.engine_for(Recorder(spec.build(), log.append))
    alone(requests, engine).run(_quiet)
    numbers = [[getattr(live, name) for name in _NUMBERS.values()] for live in requests]
    return _Course(_events(log), pd.DataFrame(numbers, columns=list(_NUMBERS)), engine.steps)


def _quiet(share: float, note: str = "") -> None:
    """Progress that nobody watches."""


def _events(log: list[Entry]) -> list[Entry]:
    """What happened; what was offered and generated in between is the host's own rhythm."""
    return [entry for entry in log if entry[0] in _COMPARED]


# -- showing ---------------------------------------------------------------------------------------------


def table(comparisons: Sequence[Comparison]) -> Table:
    """One row per engine and scheduler: cases, how many are identical, what occurred in them."""
    shown = Table("engine", "scheduler", "cases", "identical", *HAPPENINGS, title_justify="left")
    for found in comparisons:
        identical = found.cases - len(found.differences)
        counts = (f"{found.seen[happening]:,}" for happening in HAPPENINGS)
        shown.add_row(found.engine, Text(found.scheduler), str(found.cases), str(identical), *counts)
    return shown
