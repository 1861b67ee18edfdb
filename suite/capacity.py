"""How fast the simulator serves a trace at most: what a load is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from suite.backends.kinds import backend_of
from suite.backends.simulator import Simulator
from suite.errors import BadInput
from suite.policies import parse
from suite.trace import Request, Trace

MOST_SERVED = 20_000
"""Requests of a trace that its capacity is measured on: the first ones."""


class Capacity(NamedTuple):
    """What an engine makes of a trace whose requests all wait at the door."""

    requests: int
    """How many were put to it."""
    seconds: float
    """Simulated, until the last of them was served."""
    rate: float
    """Requests/s: the quotient of the two."""
    hit_ratio: float
    """Prompt tokens found in its prefix cache, over all prompt tokens of those it served."""


def capacity(trace: Trace, backend: Mapping[str, Any]) -> Capacity:
    """Measure a trace on a simulator with these settings ({} are its defaults), in order of arrival (FCFS).

    Of the first `MOST_SERVED` requests each is sent at time 0 or, if it comes after others, the moment the
    last of them is served. Such a crowd leaves little in the cache, so a scheduler that minds prefixes can
    serve more. Raises `BadInput` for settings of no simulator and for a trace of which nothing fits it.
    """
    simulator = backend_of({"kind": "simulator", **backend})
    if not isinstance(simulator, Simulator):
        raise BadInput("kind: a capacity is measured on the simulator; write `kind: simulator`, or drop it")
    flood = replace(trace, requests=tuple(map(_at_once, trace.requests[:MOST_SERVED])))
    frame = simulator.run(flood, parse("fcfs"), Path(), lambda share, note="": None).requests
    served = frame[frame["status"] == "finished"]
    if served.empty:
        raise BadInput("no request of the trace fits its KV pool; take a larger GPU, or more kv_tokens")
    seconds = float(served["finish"].max())
    hits = float(served["cached_tokens"].sum() / served["prompt_tokens"].sum())
    return Capacity(len(frame), seconds, len(frame) / seconds, hits)


def offered(trace: Trace) -> float:
    """Requests/s that a trace asks for: all of them over the seconds to its last arrival.

    Infinite if all arrive at time 0. Over the rate of `capacity` it is the load.
    """
    span = max(request.arrival for request in trace.requests)
    return len(trace.requests) / span if span else float("inf")


def _at_once(request: Request) -> Request:
    return replace(request, arrival=0.0, think=0.0)
