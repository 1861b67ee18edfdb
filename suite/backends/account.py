"""What client and engines say of a run, put together into its outcome."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from suite.backends import endpoint, engine_log
from suite.backends.base import Outcome
from suite.backends.engine_log import EngineLog
from suite.backends.launch import Launch, home
from suite.backends.servers import Replicas, replica_name, wait_for
from suite.replay import Replayed
from suite.results import REQUEST_COLUMNS
from suite.trace import Trace

LOG_PATIENCE = 5.0
"""Seconds the engine may take to write down the end of requests that the client saw end."""
_SERVED = ["extend", "cached", "output"]


def kept(replicas: Replicas, logs: Path, replayed: Replayed) -> EngineLog:
    """The engines' own account of a run, moved into the run's folder and, if possible, complete."""
    homes = [home(logs, number, len(replicas.all)) for number in range(len(replicas.all))]
    paths = {one.name: one.keep(folder) for one, folder in zip(replicas.all, homes, strict=True)}

    def read() -> EngineLog:
        for one in replicas.all:
            one.refresh()
        logs = (engine_log.read(path, replayed.start, name) for name, path in paths.items())
        return engine_log.together(list(logs))

    wait_for(lambda: engine_log.missing(read(), replayed.requests) is None, LOG_PATIENCE)
    return read()


def outcome(
    trace: Trace, launch: Launch, replayed: Replayed, log: EngineLog | None, word: dict[str, Any]
) -> Outcome:
    """What the run gave, by the engines' account where there is one; `word` is what is known of them."""
    seen = endpoint.outcome(replayed, word | _text_prompts(trace, launch, replayed))
    if log is None:
        return seen if launch.scheduler.router else _of_one(seen)
    requests, disagreements = engine_log.merge(replayed.requests, log)
    return replace(
        seen,
        requests=requests[list(REQUEST_COLUMNS)],
        service=log.service,
        engine={**seen.engine, **dict(_facts(log, launch, word)), "service_log": "engine"},
        invalid=(*seen.invalid, *disagreements, *filter(None, [engine_log.missing(log, requests)])),
    )


def _of_one(seen: Outcome) -> Outcome:
    """The outcome of the one replica there was, whose inside is not seen."""
    only = {"worker": replica_name(0)}
    return replace(seen, requests=seen.requests.assign(**only), service=seen.service.assign(**only))


def _text_prompts(trace: Trace, launch: Launch, replayed: Replayed) -> dict[str, Any]:
    """Where prompts went out as text: how many tokens the trace has in what finished, and the engine saw."""
    if launch.target("").prompts == "tokens":
        return {}
    finished = replayed.requests["status"] == "finished"
    asked = pd.Series([request.prompt_tokens for request in trace.requests])[finished].sum()
    seen = replayed.requests.loc[finished, "prompt_tokens"].sum()
    return {"text_prompts": {"trace_tokens": int(asked), "engine_tokens": int(seen)}}


def _facts(log: EngineLog, launch: Launch, word: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the logs tell of the engines as a whole, and of each replica beside what the router has told."""
    if log.active:
        yield "active", log.active
    if launch.scheduler.router:
        told = word.get("workers", {})
        served = _by_worker(log, launch.replicas)
        yield "workers", {name: {**told.get(name, {}), **row} for name, row in served.items()}


def _by_worker(log: EngineLog, replicas: int) -> dict[str, dict[str, int]]:
    """What each replica served: requests admitted, extend tokens, cached ones, output tokens."""
    names = [replica_name(number) for number in range(replicas)]
    table = log.service.groupby("worker")[_SERVED].sum().reindex(names, fill_value=0)
    table.insert(0, "requests", log.requests["worker"].value_counts().reindex(names, fill_value=0))
    return {str(name): {key: int(row[key]) for key in row.index} for name, row in table.iterrows()}
