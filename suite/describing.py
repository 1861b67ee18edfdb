"""A workload described, and held against the engine it may be meant for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from suite.backends.kinds import backend_of
from suite.backends.simulator import Simulator
from suite.capacity import MOST_SERVED, capacity
from suite.trace import Header, Request, Trace, stream
from workloads.describing.describe import Description, Engine, describe
from workloads.finished import Finished
from workloads.spec import load


def described(
    source: str, seed: int, settings: Mapping[str, Any], backend: Mapping[str, str]
) -> tuple[Description, Engine | None]:
    """Describe a spec or a finished trace, which is read in little memory.

    `backend` holds settings of the simulator (`model`, `gpu`); without any there is no engine. Raises
    `BadInput`.
    """
    simulator = backend_of({"kind": "simulator", **backend}) if backend else None
    header, requests = _opened(source, seed, settings)
    if not isinstance(simulator, Simulator):
        return describe(header, requests), None
    first = tuple(islice(requests, MOST_SERVED))
    description = describe(header, chain(first, requests))
    most = capacity(Trace(header, first), backend)
    name = f"{simulator.model} on {simulator.gpu}"
    return description, Engine(name, simulator.pool_tokens(), most.rate)


def _opened(source: str, seed: int, settings: Mapping[str, Any]) -> tuple[Header, Iterator[Request]]:
    workload = load(source, settings)
    if isinstance(workload, Finished) and workload.shape is None:
        return stream(Path(workload.file))
    trace = workload.generate(seed)
    return trace.header, iter(trace.requests)
