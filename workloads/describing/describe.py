"""What is in a trace: who sends how much, how bursty, how long, and how much a prefix cache would save.

The ideal hit ratio is that of an infinite cache which holds everything sent before, in file order, prompts
and replies alike: tokens of a prompt that agree with the beginning of something before, over all its tokens.
A ratio of *blocks*, as some traces publish theirs, differs a little: a partial last block counts there as
much as a whole one, and last blocks are nearly always new. What finite caches save is `reuse`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from suite.trace import Header, Request
from workloads.describing.columns import NONE, Columns, columns
from workloads.describing.reuse import Curve, Hits, reuse
from workloads.describing.summaries import Summary, Tables, summaries


@dataclass(frozen=True, eq=False)
class Description:
    """A trace described. Clients have numbers; `clients` has those with most requests first.

    `requests` has one row per request: client (a category), arrival (s), think (s, NaN if it waits for no
    other), input_tokens, output_tokens, hit_tokens (ideal), others_tokens (of those, computed first by
    another client). `sessions` has one row per session of a client: requests, depth, width. `sharing` holds
    the prompt tokens that hit: sender, owner (the client that had computed them first), tokens.
    """

    header: Header
    span: float
    """Seconds to the last arrival."""
    clients: tuple[Summary, ...]
    total: Summary
    requests: pd.DataFrame
    sessions: pd.DataFrame
    sharing: pd.DataFrame
    curve: Curve


@dataclass(frozen=True)
class Engine:
    """What a workload may be meant for: a model on a GPU."""

    name: str
    kv_tokens: int
    """The size of its KV pool."""
    rate: float
    """Requests/s of this workload that it serves if all of them wait (see `suite.capacity`)."""


def describe(header: Header, requests: Iterable[Request]) -> Description:
    """Describe a trace, whose requests are read once and in file order.

    Arrivals of requests that wait for others are the earliest possible ones.
    """
    trace = columns(requests)
    hits, curve = reuse(trace)
    frame = _requests(trace, hits)
    sessions = _sessions(trace)
    tables = Tables(frame, sessions, _beginnings(trace), float(trace.arrival.max()))
    clients = summaries(tables, trace.names, trace.weights.tolist(), set(header.misbehaving))
    (total,) = summaries(tables.together(), ["all clients"], [float(trace.weights.sum())], ())
    return Description(
        header=header,
        span=tables.span,
        clients=tuple(sorted(clients, key=lambda client: -client.requests)),
        total=total,
        requests=frame.assign(client=pd.Categorical.from_codes(trace.client, pd.Index(trace.names))),
        sessions=sessions.drop(columns="client"),
        sharing=_sharing(trace, hits),
        curve=curve,
    )


def _requests(trace: Columns, hits: Hits) -> pd.DataFrame:
    rows = len(trace.client)
    foreign = trace.client[hits.request] != hits.owner
    return pd.DataFrame(
        {
            "client": trace.client,
            "arrival": trace.arrival,
            "think": trace.think,
            "input_tokens": trace.input_tokens,
            "output_tokens": trace.output_tokens,
            "hit_tokens": np.bincount(hits.request, hits.tokens, rows).astype(int),
            "others_tokens": np.bincount(hits.request, hits.tokens * foreign, rows).astype(int),
        }
    )


def _sessions(trace: Columns) -> pd.DataFrame:
    """One row per session of a client: client, begin (s), requests, depth, width."""
    inside = trace.session != NONE
    calls = pd.DataFrame(
        {
            "client": trace.client[inside],
            "session": trace.session[inside],
            "generation": trace.generation[inside],
        }
    )
    whose = ["client", "session"]
    widths = calls.groupby([*whose, "generation"]).size()
    by_session = calls.groupby(whose)["generation"]
    sessions = {
        "requests": by_session.size(),
        "depth": by_session.max(),
        "width": widths.groupby(whose).max(),
    }
    return pd.DataFrame(sessions).reset_index("client").reset_index(drop=True)


def _beginnings(trace: Columns) -> pd.DataFrame:
    """When sessions, and requests that belong to none, begin: client, time (s)."""
    frame = pd.DataFrame({"client": trace.client, "session": trace.session, "time": trace.arrival})
    alone = frame["session"] == NONE
    sessions = frame[~alone].groupby(["client", "session"])["time"].min().reset_index()
    return pd.concat([frame[alone], sessions], ignore_index=True)[["client", "time"]]


def _sharing(trace: Columns, hits: Hits) -> pd.DataFrame:
    sender = trace.client[hits.request].astype(int)
    pairs, number = np.unique(sender << 32 | hits.owner, return_inverse=True)
    names = np.array(trace.names, dtype=object)
    return pd.DataFrame(
        {
            "sender": names[pairs >> 32],
            "owner": names[pairs & ((1 << 32) - 1)],
            "tokens": np.bincount(number, hits.tokens, len(pairs)).astype(int),
        }
    )
