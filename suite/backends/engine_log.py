"""An engine's own account of a run, read back; for the format see `suite.backends.host`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from suite.backends.servers import Replicas
from suite.errors import BadInput
from suite.results import SERVICE_COLUMNS

COLUMNS = ("client", "worker", "admitted", "cached", "recomputed", "preemptions", "output", "finished")
"""Of `EngineLog.requests`."""

_Row: TypeAlias = tuple[float, str, str, int, int, int, int]
"""Of `suite.results.SERVICE_COLUMNS`."""


@dataclass(frozen=True)
class EngineLog:
    """The log of one run, as far as it was written. Times are in seconds on the run's clock.

    `policy` is the first line's word about policy and engine, empty if there is none. `service` has
    `suite.results.SERVICE_COLUMNS`. `requests` has `COLUMNS`, one row per request by id: the replica, times
    of first admission and end (NaN where it never happened), tokens cached at admission, tokens recomputed
    and places lost after it, output tokens. `failed` is what the policy raised, if it did. `active` counts
    the admission passes of an engine's own scheduler by the policy that ordered them.
    """

    path: Path
    policy: dict[str, Any]
    service: pd.DataFrame
    requests: pd.DataFrame
    failed: str | None
    active: dict[str, int]


def read(path: Path, start: float = 0.0, worker: str = "replica-0") -> EngineLog:
    """The log in a file, of the replica `worker`. `start` is the engine's clock at time zero of the run.

    A cut last line is left out: the engine was killed, or the disk was full. Raises `BadInput` naming the
    file and the line.
    """
    reading = _Reading(worker)
    for number, line in lines(path):
        try:
            kind, time, *facts = line
            if kind in _KINDS:
                _KINDS[kind](reading, time - start, *facts)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise BadInput(f"{path}:{number}: not a line of a service log: {error}") from None
    return EngineLog(
        path,
        reading.policy,
        pd.DataFrame(reading.rows, columns=list(SERVICE_COLUMNS)),
        _requests(reading.requests),
        reading.failed,
        dict(reading.active),
    )


def together(logs: Sequence[EngineLog]) -> EngineLog:
    """The logs of the replicas that served one run as one log. The policy is the first one's.

    A request that was begun on several, as one was lost, is told of where it got furthest.
    """
    service = pd.concat([log.service for log in logs]).sort_values("time", kind="stable", ignore_index=True)
    requests = pd.concat([log.requests for log in logs])
    furthest = requests.sort_values(["output", "finished"], kind="stable")
    furthest = furthest[~furthest.index.duplicated(keep="last")]
    return EngineLog(
        Path(os.path.commonpath([log.path for log in logs])),
        logs[0].policy,
        service,
        furthest.loc[requests.index.unique()],
        next((log.failed for log in logs if log.failed is not None), None),
        dict(sum((Counter(log.active) for log in logs), Counter[str]())),
    )


def cause(replicas: Replicas) -> str | None:
    """Why servers have ended, if they have: what the policy raised, or how the process ended."""
    return raised(replicas) or replicas.alive()


def raised(replicas: Replicas) -> str | None:
    """What a policy has raised, if one has, and in whose server."""
    for replica in replicas.all:
        replica.refresh()
        if replica.service_log.exists() and (failed := read(replica.service_log).failed):
            return f"the scheduler failed: {failed} (log: {replica.server.log})"
    return None


def by_client(log: EngineLog) -> pd.DataFrame:
    """What each client got: requests admitted, their prompt tokens, those of them cached, output tokens."""
    rows = log.service.assign(
        requests=(log.service["extend"] > 0).astype(int),
        prompt=log.service["extend"].clip(lower=0) + log.service["cached"],
    )
    return rows.groupby("client")[["requests", "prompt", "cached", "output"]].sum()


def missing(log: EngineLog, requests: pd.DataFrame) -> str | None:
    """Why the log is not the whole story of a run, if it is not: a request that finished is not in it.

    `requests` are the client's, see `suite.replay.Replayed`.
    """
    ended = log.requests.index[log.requests["finished"].notna()]
    lacking = requests.loc[(requests["status"] == "finished") & ~requests["id"].isin(ended), "id"]
    if lacking.empty:
        return None
    return (
        f"{log.path}: the service log lacks the end of {len(lacking)} requests that finished, such as "
        f"{lacking.iloc[0]!r} (disk full?)"
    )


def merge(requests: pd.DataFrame, log: EngineLog) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The client's requests with what only the engine knows, and where the two disagree.

    `requests` are as in `suite.replay.Replayed`; worker, admitted, cached_tokens, recomputed_tokens and
    preemptions are the engine's. Client and engine must agree on the cached and output tokens of what
    finished, and on who sent it.
    """
    engine = log.requests.reindex(requests["id"]).set_axis(requests.index)
    merged = requests.assign(
        worker=engine["worker"].where(engine["worker"].notna(), None),
        admitted=engine["admitted"].astype(float),
        cached_tokens=_counts(engine["cached"]),
        recomputed_tokens=_counts(engine["recomputed"]),
        preemptions=_counts(engine["preemptions"]),
    )
    told = requests[(requests["status"] == "finished") & engine["finished"].notna()]
    pairs = (("cached_tokens", "cached"), ("output_tokens", "output"))
    return merged, tuple(_disagreements(told, engine, pairs))


def _counts(column: pd.Series[Any]) -> pd.Series[Any]:
    return column.fillna(0).astype("int64")


def _disagreements(
    told: pd.DataFrame, engine: pd.DataFrame, pairs: Iterable[tuple[str, str]]
) -> Iterator[str]:
    strangers = told[told["client"] != engine.loc[told.index, "client"]]
    if not strangers.empty:
        first = strangers.iloc[0]
        yield (
            f"client and engine disagree on who sent {len(strangers)} requests: {first['id']!r} is of "
            f"{first['client']!r} here and of {engine.loc[strangers.index[0], 'client']!r} in the service log"
        )
    for ours, theirs in pairs:
        differ = told[told[ours] != engine.loc[told.index, theirs]]
        if not differ.empty:
            first = differ.iloc[0]
            yield (
                f"client and engine disagree on {ours} of {len(differ)} requests: {first['id']!r} has "
                f"{first[ours]:g} here and {engine.loc[differ.index[0], theirs]:g} in the service log"
            )


# -- lines -----------------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """A request, as far as it has been read. Fields as in `COLUMNS`."""

    client: str
    worker: str
    admitted: float = nan
    cached: int = 0
    recomputed: int = 0
    preemptions: int = 0
    output: int = 0
    finished: float = nan


@dataclass
class _Reading:
    """What has been read so far."""

    worker: str
    policy: dict[str, Any] = field(default_factory=dict)
    rows: list[_Row] = field(default_factory=list)
    requests: dict[str, _Seen] = field(default_factory=dict)
    failed: str | None = None
    active: Counter[str] = field(default_factory=Counter)


def _policy(reading: _Reading, time: float, facts: dict[str, Any]) -> None:
    reading.policy = dict(facts)


def _admitted(reading: _Reading, time: float, id: str, client: str, extend: int, cached: int) -> None:
    reading.requests[id] = _Seen(client, reading.worker, time, cached)
    reading.rows.append((time, client, reading.worker, extend, cached, 0, 0))


def _resumed(reading: _Reading, time: float, id: str, client: str, recomputed: int, cached: int) -> None:
    reading.requests[id].recomputed += recomputed
    reading.rows.append((time, client, reading.worker, 0, 0, recomputed, 0))


def _spared(reading: _Reading, time: float, id: str, client: str, tokens: int) -> None:
    _resumed(reading, time, id, client, -tokens, 0)


def _generated(reading: _Reading, time: float, by_client: Mapping[str, int]) -> None:
    reading.rows += [(time, client, reading.worker, 0, 0, 0, tokens) for client, tokens in by_client.items()]


def _preempted(reading: _Reading, time: float, id: str) -> None:
    reading.requests[id].preemptions += 1


def _finished(
    reading: _Reading, time: float, id: str, client: str, reason: str, output: int, uncomputed: int
) -> None:
    request = reading.requests.setdefault(id, _Seen(client, reading.worker))
    request.output, request.finished = output, time
    if uncomputed:
        reading.rows.append((time, client, reading.worker, -uncomputed, 0, 0, 0))


def _failed(reading: _Reading, time: float, message: str) -> None:
    reading.failed = message


def _active(reading: _Reading, time: float, policy: str, waiting: int) -> None:
    reading.active[policy] += 1


_KINDS: dict[str, Callable[..., None]] = {
    "policy": _policy,
    "admitted": _admitted,
    "resumed": _resumed,
    "spared": _spared,
    "generated": _generated,
    "preempted": _preempted,
    "finished": _finished,
    "failed": _failed,
    "active": _active,
}
"""Lines of other kinds (steps, timings) are for others."""


def lines(path: Path) -> Iterator[tuple[int, list[Any]]]:
    """The whole lines of a service log, each with its number. Raises `BadInput` as `read` does."""
    try:
        texts = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    for number, text in enumerate(texts, start=1):
        try:
            yield number, json.loads(text)
        except ValueError as error:
            raise BadInput(f"{path}:{number}: not a line of a service log: {error}") from None


def _requests(seen: Mapping[str, _Seen]) -> pd.DataFrame:
    rows = [[getattr(request, column) for column in COLUMNS] for request in seen.values()]
    return pd.DataFrame(rows, index=pd.Index(list(seen), name="id"), columns=list(COLUMNS))
