"""Measure what the steps of a real engine cost, for the coefficients from which the simulator computes them.

A grid of requests is replayed against the engine: prefills of many lengths, cold and after a cached prefix,
decoding batches of many sizes and contexts, and both in one step. The engine logs the work of each step; see
`suite.fit` for what is made of it. Client and API server share the machine with the engine while it is
measured, as they do in a run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from suite import fit, policies
from suite.backends import engine_log
from suite.backends.base import Progress
from suite.backends.engine import EngineBackend
from suite.backends.engines import named
from suite.backends.launch import Launch
from suite.backends.servers import Replicas, wait_for
from suite.content import Content
from suite.errors import BadInput
from suite.files import probe, write_atomically
from suite.replay import replay
from suite.trace import Header, Request, Segment, Trace, checked
from suite.validation import validated

ROUNDS = 3
"""How often the grid is measured; what disturbs the machine for a while disturbs one round."""
SIZES = 7
"""Prefill lengths and batch sizes of the grid, spaced geometrically; every second one is held out."""
DECODE_STEPS = 32
"""Output tokens of the requests in a decoding batch."""
JOIN_STEPS = 8
"""Steps for which a batch decodes for each prompt that is to join it, which takes the client a while."""
MOST_TOKENS = {"cpu": 8192, "cuda": 131072}
"""Tokens of KV cache that the grid fills at a time, or four steps' worth; it bounds the time it takes."""
POOL_SHARE = 0.8
"""Of the KV pool at most, so that nothing is preempted."""
LOG_PATIENCE = 10.0
"""Seconds the engine may take to write down the end of the last request."""

_PREFIX = "prefix"


def calibrate(
    kind: str, settings: Mapping[str, Any], out: Path, logs: Path, progress: Progress, rounds: int = ROUNDS
) -> fit.Fit:
    """Measure a backend and write its coefficients, with their error, to the YAML file `out`.

    `settings` are those of an experiment's `backend` section. The engine's logs go to the folder `logs`.
    Raises `BadInput` for settings that cannot work, and if the engine broke off.
    """
    backend = validated(named(kind), settings)
    if backend.replicas > 1:
        raise BadInput("replicas: one is measured and the others are like it; set replicas=1")
    probe(out.parent)
    with backend.serving(policies.parse("fcfs"), logs, progress, details=("steps",)) as (launch, replicas):
        limits = _limits(backend, launch, replicas)
        trace, held_out = grid(limits, rounds)
        log = _measured(backend, launch, replicas, trace, progress)
        found = fit.fitted(fit.steps((line for _, line in engine_log.lines(log)), held_out))
    text = fit.as_yaml(found, _about(backend, launch, limits))
    write_atomically(out, lambda draft: draft.write_text(text, encoding="utf-8"))
    return found


def _measured(
    backend: EngineBackend, launch: Launch, replicas: Replicas, trace: Trace, progress: Progress
) -> Path:
    """Replay the grid and return the engine's log of it."""
    [replica] = replicas.all
    model = launch.model
    replayed = replay(
        trace,
        Content.of(trace, model.vocabulary, model.first_token),
        launch.target(replica.url),
        progress=progress,
        timeout_s=backend.timeout_s,
        alive=replicas.alive,
    ).requests
    failed = replayed[replayed["status"] != "finished"]
    if not failed.empty:
        raise BadInput(f"{launch.name} broke off: {failed['error'].iloc[0]} (log: {replica.server.log})")

    def missing() -> str | None:
        return engine_log.missing(engine_log.read(replica.service_log), replayed)

    if not wait_for(lambda: missing() is None, LOG_PATIENCE):
        raise BadInput(f"{missing()}; free the disk and calibrate again")
    return replica.service_log


def _about(backend: EngineBackend, launch: Launch, limits: Limits) -> list[str]:
    """What was measured, without the names of hosts and folders."""
    model, version = launch.model, launch.environment.version
    name = Path(model.name).name if model.is_local else model.name
    return [
        f"Seconds that a step of {launch.engine} {version} takes, fitted by `suite calibrate`;",
        "for the simulator: backend: {kind: simulator, cost: THIS FILE}",
        f"model {name}, device {backend.device}, tensor_parallel {backend.tensor_parallel}, "
        f"{os.cpu_count()} CPU cores, {datetime.now(UTC):%Y-%m-%d}",
        f"max_running {limits.running}, token_budget {limits.budget}, kv_tokens {limits.pool}, "
        f"block_tokens {backend.block}",
    ]


# -- the grid ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What an engine can do at once: tokens in a step, requests, tokens in the KV pool and in a request.

    `most` are the tokens that the grid may fill. Raises `BadInput` if no prompt can take two full steps.
    """

    budget: int
    running: int
    pool: int
    length: int
    most: int

    def __post_init__(self) -> None:
        needed = max(2 * self.budget, 3 * DECODE_STEPS)
        if self.prompt < needed:
            raise BadInput(
                f"token_budget: with {self.budget}, prompts of {needed} tokens are needed and {self.prompt} "
                f"fit; make it smaller, or kv_tokens and max_length larger"
            )

    @property
    def prompt(self) -> int:
        """Tokens of the longest prompt."""
        return min(self.most, self.length) - DECODE_STEPS

    def contexts(self, batch: int) -> tuple[int, int]:
        """Tokens of the prompts of a decoding batch, short and long."""
        longest = min(self.prompt, self.most // batch - DECODE_STEPS, 4 * self.budget)
        return max(longest // 16, 1), longest


def _limits(backend: EngineBackend, launch: Launch, replicas: Replicas) -> Limits:
    budget, running, pool = launch.sizes(replicas.all[0])
    most = min(int(POOL_SHARE * pool), max(MOST_TOKENS[backend.device], 4 * budget))
    return Limits(budget, running, pool, backend.length(launch.model, pool), most)


class Prompt(NamedTuple):
    """A fresh prompt, after `cached` tokens that many share, and the output tokens that it asks for."""

    tokens: int
    output: int = 1
    cached: int = 0


@dataclass(frozen=True)
class Group:
    """Prompts that the engine gets while it has no others: `batch` at once, and `joining` one by one."""

    batch: tuple[Prompt, ...]
    joining: tuple[Prompt, ...] = ()


def grid(limits: Limits, rounds: int) -> tuple[Trace, frozenset[str]]:
    """The requests to measure, group after group, and the ids of those that the fit must not see.

    Each request is its own client's, so that the engine's log tells them apart.
    """
    requests: list[Request] = []
    held_out: set[str] = set()
    last: tuple[str, ...] = ()
    for number in range(rounds):
        for unseen in (False, True):
            for index, group in enumerate(_groups(limits, unseen)):
                made = list(_requests(group, f"{number}-{'held-out' if unseen else 'fitted'}-{index}", last))
                last = tuple(request.id for request in made)
                requests += made
                held_out.update(last if unseen else ())
    return checked(Trace(Header("calibration", 0, __name__), tuple(requests))), frozenset(held_out)


def _requests(group: Group, name: str, after: tuple[str, ...]) -> Iterator[Request]:
    """The requests of a group, sent after those of the one before have finished."""
    for number, prompt in enumerate((*group.batch, *group.joining)):
        id = f"{name}-{number}"
        cached = (Segment(_PREFIX, prompt.cached),) if prompt.cached else ()
        yield Request(id, id, 0.0, (*cached, Segment(id, prompt.tokens)), prompt.output, after=after)
        if number >= len(group.batch):
            after = (id,)


def _groups(limits: Limits, unseen: bool) -> Iterator[Group]:
    """One half of the grid. The longest prompt stands in the half that is fitted."""
    lengths = _half(max(limits.budget // 32, 1), limits.budget, unseen)
    batches = _half(1, min(limits.running, limits.most // (4 * DECODE_STEPS)), unseen)
    if not unseen:
        yield Group((Prompt(min(8 * limits.budget, limits.prompt)),))
    for length in lengths:
        yield Group((Prompt(limits.budget + length),))  # its first step begins after idleness
    for batch in batches:
        for context in limits.contexts(batch):
            yield Group((Prompt(context, DECODE_STEPS),) * batch)
        if lengths and batch < limits.running:
            yield _mixed(limits, batch, lengths)


def _mixed(limits: Limits, batch: int, lengths: Sequence[int]) -> Group:
    """A decoding batch that prompts of these lengths join, first cold and then after a cached prefix."""
    joining = tuple(Prompt(length, cached=prefix) for prefix in (0, limits.budget) for length in lengths)
    context, _ = limits.contexts(batch)
    return Group((Prompt(context, JOIN_STEPS * len(joining)),) * batch, joining)


def _half(low: int, high: int, unseen: bool) -> list[int]:
    """Every second of at most `SIZES` numbers from low to high; both ends are in the half that is fitted."""
    sizes = sorted(set(np.geomspace(low, high, SIZES).round().astype(int).tolist()))
    held_out = sizes[1:-1:2]
    return held_out if unseen else [size for size in sizes if size not in held_out]
