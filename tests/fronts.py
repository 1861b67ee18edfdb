"""Fronts for tests, and what tests ask of them."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from suite.backends.front.config import Identity, Timeouts, WorkerAddress
from suite.backends.router import Front
from suite.policies import parse_router
from tests.fake_workers import FakeWorker

CALM = Timeouts(health_s=0.05, answer_s=20.0, stall_s=60.0, connect_s=20.0)
"""Others may be at work on this machine: nobody is given up for being slow."""
QUICK = Timeouts(health_s=0.05, answer_s=0.5, stall_s=2.0)
"""For those tests in which a worker hangs."""


@contextmanager
def fronted(
    folder: Path,
    count: int = 2,
    router: str = "round-robin",
    *,
    engine: Any = "vllm",
    identity: Identity = Identity(),  # noqa: B008
    timeouts: Timeouts = CALM,
) -> Iterator[tuple[Front, Sequence[FakeWorker]]]:
    """A front before so many stand-ins."""
    with ExitStack() as stack:
        workers = [stack.enter_context(FakeWorker()) for _ in range(count)]
        yield (
            stack.enter_context(
                front(folder, [one.url for one in workers], router, engine, identity, timeouts)
            ),
            workers,
        )


def front(
    folder: Path,
    urls: Sequence[str],
    router: str = "round-robin",
    engine: Any = "vllm",
    identity: Identity = Identity(),  # noqa: B008
    timeouts: Timeouts = CALM,
) -> Front:
    """A front before servers, which are called replica-0, replica-1, ..."""
    addresses = [WorkerAddress(name=f"replica-{i}", url=url) for i, url in enumerate(urls)]
    return Front.start(
        parse_router(router),
        addresses,
        engine=engine,
        block_tokens=16,
        logs=folder,
        identity=identity,
        timeouts=timeouts,
    )


class Call:
    """A request on its way, whose reply is read as it comes."""

    def __init__(
        self, url: str, body: Any, headers: dict[str, str] | None = None, path: str = "/v1/completions"
    ):
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.response: http.client.HTTPResponse | None = None
        self._connection.request("POST", path, data, headers or {})

    def begin(self) -> int:
        """Wait for the head of the reply; returns its status."""
        self.response = self._connection.getresponse()
        return self.response.status

    def some(self) -> bytes:
        """What comes next."""
        assert self.response
        return self.response.read1()

    def rest(self) -> str:
        """All that is left."""
        assert self.response
        text = self.response.read().decode()
        self.hang_up()
        return text

    def hang_up(self) -> None:
        """Leave, whatever may still come."""
        if self.response:
            self.response.close()
        self._connection.close()


def said(
    url: str, body: Any, headers: dict[str, str] | None = None, path: str = "/v1/completions"
) -> tuple[int, str]:
    """Status and text of a reply."""
    call = Call(url, body, headers, path)
    return call.begin(), call.rest()


def wanting(tokens: int = 3, **more: Any) -> dict[str, Any]:
    """A streamed request of 32 prompt tokens."""
    return {"prompt": list(range(32)), "max_tokens": tokens, "stream": True, **more}


def worker_counts(front: Front, name: str = "replica-0") -> dict[str, Any]:
    found: dict[str, Any] = front.state()["word"]["workers"][name]
    return found


def in_flight(front: Front) -> int:
    return sum(counts["in_flight"] for counts in front.state()["word"]["workers"].values())


def charged(front: Front) -> dict[str, float]:
    """What D2LPM has charged, by worker."""
    accounts = front.state()["router"]["accounts"]
    return {worker: sum(one["charged"] for one in clients.values()) for worker, clients in accounts.items()}
