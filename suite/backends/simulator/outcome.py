"""What a simulated cluster leaves: its requests and journals as the frames of `suite.results`."""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from typing import Any

import pandas as pd

from suite.backends.base import Outcome
from suite.backends.simulator.cluster import Cluster, Replica
from suite.backends.simulator.engine import Engine
from suite.backends.simulator.streams import chunks
from suite.results import REQUEST_COLUMNS, SERVICE_COLUMNS
from suite.trace import Trace


def outcome(trace: Trace, cluster: Cluster) -> Outcome:
    """The outcome of a cluster that has run, the requests in the order of the trace."""
    engines = [engine for replica in cluster.replicas.values() for engine in replica.engines]
    word = _word(cluster, engines)
    if cluster.dispatch:
        word |= {"replicas": len(cluster.replicas), "workers": _workers(cluster)}
        word["eviction_reports"] = cluster.dispatch.hears
    return Outcome(_requests(trace, cluster), _service(cluster), word, chunks(cluster.requests, engines))


def _requests(trace: Trace, cluster: Cluster) -> pd.DataFrame:
    rows = [
        (
            live.id, live.client, live.worker, request.session, live.sent, live.admitted, live.first_token,
            live.finish, live.prompt_tokens, live.generated, live.cached, live.recomputed, live.preemptions,
            live.weight, live.status, 0.0, live.error,
        )
        for request, live in zip(trace.requests, cluster.requests, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(REQUEST_COLUMNS))


def _service(cluster: Cluster) -> pd.DataFrame:
    """The journals of all replicas in order of time, at one time in the order of the replicas."""
    rows = [
        (*row[:2], name, *row[2:])
        for name, replica in cluster.replicas.items()
        for engine in replica.engines
        for row in engine.journal.rows
    ]
    return pd.DataFrame(sorted(rows, key=itemgetter(0)), columns=list(SERVICE_COLUMNS))


def _word(cluster: Cluster, engines: list[Engine]) -> dict[str, Any]:
    """Sums over all engines, but for the size of one KV pool."""
    pool = engines[0].pool
    return {
        "kv_tokens": pool.capacity * pool.block,
        "block_tokens": pool.block,
        "steps": sum(engine.steps for engine in engines),
        "decisions": sum(engine.decisions for engine in engines),
        "starved": sum(live.status == "starved" for live in cluster.requests),
        "evicted_tokens": sum(engine.pool.evicted * engine.pool.block for engine in engines),
        "virtual_seconds": max(engine.now for engine in engines),
    }


def _workers(cluster: Cluster) -> dict[str, dict[str, int]]:
    """By name of the worker: the requests that came to it in the end, and how often it was lost."""
    served = Counter(live.worker for live in cluster.requests)
    return {
        name: {"requests": served[name], "losses": _losses(replica)}
        for name, replica in cluster.replicas.items()
    }


def _losses(replica: Replica) -> int:
    return len(replica.engines) - (replica.engine is not None)
