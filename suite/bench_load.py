"""A load of completions for benches of what passes them on: raw HTTP/1.1, many connections, one event loop.

Bodies are made before; a reply is stamped when its first bytes come and when [DONE] has come, and is looked
into no further. A closed loop keeps a number of requests under way; an open loop sends at given times.
"""

from __future__ import annotations

import asyncio
import gc
import time
from array import array
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import uvloop

from suite.errors import BadInput
from suite.stream import Floats

PATIENCE = 30.0
"""Seconds that what is under way at the end may take."""
_WELL = b"HTTP/1.1 200"
_DONE = b"[DONE]"
"""Ends a reply for whoever reads it; ..."""
_LAST = b"0\r\n\r\n"
"""... the last chunk, which may come later, ends it for the connection. There are no trailers."""
_TAIL = 32
"""Bytes at the end of what has come that hold both."""


@dataclass(frozen=True)
class Loaded:
    """What became of a load. Arrays have one entry for each reply, in seconds.

    `lag` is how much later than due a request was sent, `first` and `whole` how long after it was sent the
    first byte and [DONE] came. `rate` is replies/s from the beginning to the last reply.
    """

    lag: Floats
    first: Floats
    whole: Floats
    rate: float


def closed(url: str, requests: Sequence[bytes], at_once: int, seconds: float) -> Loaded:
    """Keep `at_once` requests under way for so many seconds.

    Raises `BadInput` for a reply that is not 200, is cut or does not end.
    """
    return _run(_Load(url, requests).closed(at_once, seconds))


def opened(url: str, requests: Sequence[bytes], due: Sequence[float]) -> Loaded:
    """Send a request at each of the times, seconds from the start. Raises `BadInput` as `closed` does."""
    return _run(_Load(url, requests).opened(due))


def request(path: str, client: str, body: bytes) -> bytes:
    """A request as it goes out."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"X-Client-Id: {client}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _run(load: Coroutine[Any, Any, Loaded]) -> Loaded:
    gc.collect()
    gc.disable()  # a collection would show in the latencies
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(load)
    finally:
        gc.enable()


@dataclass
class _Load:
    """A load under way."""

    url: str
    requests: Sequence[bytes]
    lag: array[float] = field(default_factory=lambda: array("d"))
    first: array[float] = field(default_factory=lambda: array("d"))
    whole: array[float] = field(default_factory=lambda: array("d"))

    def __post_init__(self) -> None:
        self._next = cycle(self.requests)
        self._free: list[_Connection] = []
        self._all: list[_Connection] = []

    async def closed(self, at_once: int, seconds: float) -> Loaded:
        """See the function."""
        began = time.monotonic()
        return await self._ended(began, [self._loop(began + seconds) for _ in range(at_once)])

    async def opened(self, due: Sequence[float]) -> Loaded:
        """See the function."""
        began, under_way = time.monotonic(), []
        for at in due:
            while (left := began + at - time.monotonic()) > 0:  # the loop's timers may be early
                await asyncio.sleep(left)
            under_way.append(asyncio.create_task(self._one(began + at)))
        return await self._ended(began, under_way)

    async def _loop(self, until: float) -> None:
        while (now := time.monotonic()) < until:
            await self._one(now)

    async def _one(self, due: float) -> None:
        """Send a request and await its end."""
        connection = self._free.pop() if self._free else await self._connected()
        self.lag.append(time.monotonic() - due)
        try:
            async with asyncio.timeout(PATIENCE):
                first, whole = await connection.sent(next(self._next))
        except TimeoutError:
            raise BadInput(f"{self.url}: no end of a reply within {PATIENCE:g} s") from None
        self.first.append(first)
        self.whole.append(whole)

    async def _connected(self) -> _Connection:
        place = urlsplit(self.url)
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self._free), place.hostname or "", place.port or 0
        )
        self._all.append(connection)
        return connection

    async def _ended(self, began: float, under_way: Iterable[Awaitable[None]]) -> Loaded:
        """What was seen, once all is over; the first failure is raised. No connection is left open."""
        try:
            await asyncio.gather(*under_way)
        finally:
            for connection in self._all:
                connection.close()
        rate = len(self.whole) / (time.monotonic() - began)
        return Loaded(np.frombuffer(self.lag), np.frombuffer(self.first), np.frombuffer(self.whole), rate)


class _Connection(asyncio.Protocol):
    """A connection that is kept, one request at a time. When it can take one it is among the `free`."""

    def __init__(self, free: list[_Connection]) -> None:
        self._free = free
        self._reply: asyncio.Future[tuple[float, float]] = asyncio.get_running_loop().create_future()
        self._sent = self._first = 0.0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self._transport = cast(asyncio.Transport, transport)

    def close(self) -> None:
        """Be done with it."""
        self._transport.abort()

    def sent(self, data: bytes) -> asyncio.Future[tuple[float, float]]:
        """Put a request on it; in the end the seconds until the first byte and until [DONE]."""
        self._reply = asyncio.get_running_loop().create_future()
        self._first, self._tail = 0.0, b""
        self._sent = time.monotonic()
        self._transport.write(data)
        return self._reply

    def data_received(self, data: bytes) -> None:
        """Stamp what comes."""
        now = time.monotonic()
        if not self._first:
            self._first = now
            if not data.startswith(_WELL):
                self._fail(" ".join(data.decode(errors="replace").split()))
        self._tail = (self._tail + data)[-_TAIL:]
        if not self._reply.done() and _DONE in self._tail:
            self._reply.set_result((self._first - self._sent, now - self._sent))
        if self._tail.endswith(_LAST):
            self._free.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        """It was closed: a reply that was under way is cut."""
        if self in self._free:
            self._free.remove(self)
        self._fail("the reply was cut")

    def _fail(self, said: str) -> None:
        if not self._reply.done():
            self._reply.set_exception(BadInput(f"{self._transport.get_extra_info('peername')}: {said[:200]}"))
