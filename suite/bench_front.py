"""What the suite's front costs, beside both Rust routers and no router at all, before instant mock workers.

All stand before the same two mock workers and are measured in turn. Requests/s are those of a closed loop;
the added latency is the difference to no router, at half the rate that the front sustains, sent at random
times. Numbers hold for the machine and for what else it did: client, router and workers share its cores, so
that the CPU time a router takes for a request says more of it than requests/s.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.table import Column, Table

from suite import policies
from suite.backends.front.config import WorkerAddress
from suite.backends.peers import Peer
from suite.backends.router import Front
from suite.backends.servers import ask
from suite.bench_load import Loaded, closed, opened, request
from suite.content import Content, spelled
from suite.policies import PeerRouter
from suite.stream import Floats

ROUTERS = ("round-robin", "d2lpm", "sglang-router:round_robin", "vllm-router:round_robin")
NONE = "no router"
REFERENCE = "round-robin"
"""The front at half of whose rate latencies are measured."""
WORKERS = 2
CLIENTS = 8
BODIES = 256
"""Different requests of a kind. Those of a client share the first half of their prompts."""
AT_ONCE = 256
"""Requests that saturate each of them; sglang-router holds the end of a short reply back for 40 ms."""
SECONDS = 3.0
ROUNDS = 3
"""Times that each router is measured, in turn."""


@dataclass(frozen=True)
class Kind:
    """A kind of request: tokens of its prompt and of its reply, which come `interval` seconds apart."""

    prompt: int
    reply: int
    interval: float


KINDS = (Kind(32, 1, 0), Kind(2048, 1, 0), Kind(32, 64, 0.005), Kind(2048, 64, 0.005))


@dataclass(frozen=True)
class Place:
    """Where requests can be sent: a router, or a worker itself. `pid` is the router's process."""

    name: str
    url: str
    pid: int | None


@dataclass(frozen=True)
class Measured:
    """One measurement. `cpu` are the router's CPU seconds a request, `late` how late the worst worker was at
    P99, in seconds."""

    load: Loaded
    cpu: float
    late: float


def front(kinds: Sequence[Kind], say: Callable[[str], None]) -> Table:
    """Measure every router with each kind of request; `say` is told what is being done.

    Raises `BadInput` if a router is not installed, or gives a reply that is none.
    """
    table = _table()
    for kind in kinds:
        for cells in _rows(kind, say):
            table.add_row(*cells)
        table.add_section()
    return table


def _rows(kind: Kind, say: Callable[[str], None]) -> Iterator[list[str]]:
    requests = bodies(kind)
    with tempfile.TemporaryDirectory() as folder, _workers(kind.interval) as workers, ExitStack() as stack:
        places = [stack.enter_context(_started(name, workers, Path(folder))) for name in (NONE, *ROUTERS)]

        def saturated(place: Place) -> Measured:
            say(f"{_named(kind)}: requests/s, {place.name}")
            return _measured(place, workers, lambda: closed(place.url, requests, AT_ONCE, SECONDS))

        most = _in_turn(places, saturated)
        rate = float(np.median([one.load.rate for one in most[REFERENCE]])) / 2
        due = np.cumsum(np.random.default_rng(0).exponential(1 / rate, max(1, int(rate * SECONDS))))

        def paced(place: Place) -> Measured:
            say(f"{_named(kind)}: latency at {rate:.0f}/s, {place.name}")
            return _measured(place, workers, lambda: opened(place.url, requests, list(due)))

        at_half = _in_turn(places, paced)
    for place in places:
        yield list(_cells(kind, place, most[place.name], at_half[place.name], at_half[NONE], rate))


def bodies(kind: Kind) -> list[bytes]:
    """Requests of a kind as they go out. Prompts are text, which every router takes."""
    content = Content(0, 8192)
    return [
        request("/v1/completions", f"client-{number % CLIENTS}", _body(kind, content, number))
        for number in range(BODIES)
    ]


def _body(kind: Kind, content: Content, number: int) -> bytes:
    half = kind.prompt // 2
    shared = content.segment(f"client-{number % CLIENTS}", half).tolist()
    own = content.segment(f"request-{number}", kind.prompt - half).tolist()
    fields = {"model": "mock", "prompt": spelled(shared + own), "max_tokens": kind.reply, "stream": True}
    return json.dumps(fields).encode()


def _in_turn(places: Sequence[Place], measure: Callable[[Place], Measured]) -> dict[str, list[Measured]]:
    """Each place measured `ROUNDS` times, there and back, so that no drift favours one."""
    found: dict[str, list[Measured]] = {place.name: [] for place in places}
    for number in range(ROUNDS):
        for place in places if number % 2 == 0 else reversed(places):
            found[place.name].append(measure(place))
    return found


def _measured(place: Place, workers: Sequence[WorkerAddress], load: Callable[[], Loaded]) -> Measured:
    for worker in workers:
        ask(f"{worker.url}/report")  # from here on it counts anew
    before = _cpu(place)
    found = load()
    used = _cpu(place) - before
    late = max(ask(f"{worker.url}/report")["late_p99_s"] for worker in workers)
    return Measured(found, used / len(found.whole), late)


def _cpu(place: Place) -> float:
    """CPU seconds that the router has used."""
    if place.pid is None:
        return 0.0
    times = psutil.Process(place.pid).cpu_times()
    return float(times.user + times.system)


# -- workers and routers -----------------------------------------------------------------------------------


@contextmanager
def _workers(interval: float) -> Iterator[list[WorkerAddress]]:
    """Mock workers, each a process."""
    command = [sys.executable, "-m", "suite.mock_server", str(interval)]
    with ExitStack() as stack:
        found = []
        for number in range(WORKERS):
            process = stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            found.append(WorkerAddress(name=f"replica-{number}", url=url))
        yield found


@contextmanager
def _started(name: str, workers: Sequence[WorkerAddress], folder: Path) -> Iterator[Place]:
    """A router that is up; no router is the first worker itself."""
    if name == NONE:
        yield Place(NONE, workers[0].url, None)
        return
    router = policies.parse_router(name)
    logs = folder / name.replace(":", "-")
    started = (
        Peer.start(router, workers, logs=logs)
        if isinstance(router, PeerRouter)
        else Front.start(router, workers, engine="vllm", block_tokens=16, logs=logs)
    )
    with started:
        yield Place(name, started.url, _listener(started.url))


def _listener(url: str) -> int:
    """The process that listens at an address."""
    port = int(url.rpartition(":")[2])
    return next(
        int(connection.pid or 0)
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", 0) == port
    )


# -- the table ---------------------------------------------------------------------------------------------


def _table() -> Table:
    columns = (
        "requests/s", "router's CPU, us a request", "at rate/s", "first byte p50 / p99 ms, added",
        "whole p50 / p99 ms, added", "client late p99 ms", "workers late p99 ms",
    )  # fmt: skip
    return Table(
        "prompt", "reply", "router", *(Column(name, justify="right") for name in columns),
        title=f"Routers before {WORKERS} mock workers, {ROUNDS} x {SECONDS:g} s each, in turn",
        caption=f"Requests/s: median over rounds of a closed loop, {AT_ONCE} at once. Latencies: what a "
        "router adds to no router, whose own stand in its row, at half the rate that round-robin sustains, "
        "at random times. Late: how long after it was due the client sent, and how long a worker was away "
        "from its socket or its timer.",
    )  # fmt: skip


def _cells(
    kind: Kind,
    place: Place,
    most: Sequence[Measured],
    at_half: Sequence[Measured],
    without: Sequence[Measured],
    rate: float,
) -> Iterator[str]:
    yield f"{kind.prompt:,}"
    yield f"{kind.reply}"
    yield place.name
    yield f"{np.median([one.load.rate for one in most]):,.0f}"
    yield "" if place.pid is None else f"{1e6 * float(np.median([one.cpu for one in most])):,.0f}"
    yield f"{rate:,.0f}"
    for part in ("first", "whole"):
        own, base = (_percentiles(runs, part) for runs in (at_half, without))
        added = own if place.pid is None else own - base
        yield " / ".join(f"{1e3 * value:.2f}" for value in added)
    yield f"{1e3 * max(float(np.percentile(one.load.lag, 99)) for one in at_half):.1f}"
    yield f"{1e3 * max(one.late for one in at_half):.1f}"


def _percentiles(runs: Sequence[Measured], part: str) -> Floats:
    """P50 and P99 of all requests of all rounds, in seconds."""
    seen = np.concatenate([getattr(one.load, part) for one in runs])
    return np.asarray(np.percentile(seen, [50, 99]))


def _named(kind: Kind) -> str:
    return f"prompts of {kind.prompt:,}, replies of {kind.reply} tokens"
