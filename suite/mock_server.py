"""A paced server of completions that proves it was not late itself: every stream gets a token each 20 ms.

    python -m suite.mock_server

prints its port on loopback, serves until its standard input ends, then prints what it measured as JSON. Any
model, any prompt: a reply has the `max_tokens` asked for, then usage and [DONE].
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from array import array
from math import isnan, nan
from typing import Any, cast

import numpy as np
import orjson
import uvloop

INTERVAL = 0.02
"""Seconds between two tokens of a stream."""
_SLOTS = 20
_SLOT = INTERVAL / _SLOTS

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_NOTHING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_BEGIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunk(event: bytes) -> bytes:
    """A server-sent event in HTTP's chunked framing."""
    data = b"data: " + event + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


_TOKEN = _chunk(
    b'{"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1700000000,'
    b'"model":"mock","choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null,'
    b'"stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null}],"usage":null}'
)


class Wheel:
    """All streams on one timer: a stream stays in its slot of the 20 ms, so that emissions are spread.

    `late` holds, for each token, how many seconds after its due time it was written.
    """

    def __init__(self) -> None:
        self.late = array("d")
        self._slots: list[list[Connection]] = [[] for _ in range(_SLOTS)]
        self._turn = 0
        self._began = time.monotonic()
        self._busy = (nan, nan)

    def join(self, stream: Connection) -> None:
        """Give a stream its first token about 20 ms from now."""
        if isnan(self._busy[0]):
            self._busy = time.monotonic(), time.process_time()
        self._slots[(self._turn - 1) % _SLOTS].append(stream)

    def report(self) -> dict[str, float]:
        """Tokens written, lateness in seconds, and CPU time as a share of one core since the first stream."""
        late = np.frombuffer(self.late) if self.late else np.zeros(1)
        since, used = self._busy
        return {
            "tokens": len(self.late),
            "late_p99_s": float(np.percentile(late, 99)),
            "late_max_s": float(late.max()),
            "cpu_share": (time.process_time() - used) / (time.monotonic() - since),
        }

    async def turn(self) -> None:
        """Emit what is due, for ever."""
        while True:
            due = self._began + self._turn * _SLOT
            if (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
                continue
            slot = self._turn % _SLOTS
            self._turn += 1
            if self._slots[slot]:
                self._slots[slot] = [stream for stream in self._slots[slot] if self._emit(stream, due)]

    def _emit(self, stream: Connection, due: float) -> bool:
        goes_on = stream.emit()
        self.late.append(time.monotonic() - due)
        return goes_on


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, kept alive, one request at a time."""

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel
        self._received = b""
        self._left = 0
        self._ending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Take in a request; answer it once it is whole."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and len(body) >= (int(length[1]) if length else 0):
            self._received = b""
            if head.startswith(b"POST /v1/completions "):
                self._serve(orjson.loads(body))
            else:
                self._transport.write(_NOTHING)

    def connection_lost(self, error: Exception | None) -> None:
        """The client has gone: its stream ends."""
        self._left = 0

    def emit(self) -> bool:
        """Write the next token; with the last one the end of the reply. Returns whether more are to come."""
        self._left -= 1
        if self._left > 0:
            self._transport.write(_TOKEN)
        elif self._left == 0:
            self._transport.write(_TOKEN + self._ending)
        return self._left > 0

    def _serve(self, request: dict[str, Any]) -> None:
        prompt, self._left = len(request["prompt"]), int(request["max_tokens"])
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": self._left,
            "total_tokens": prompt + self._left,
        }
        events = [orjson.dumps({"choices": [], "usage": usage}), b"[DONE]"]
        self._ending = b"".join(map(_chunk, events)) + b"0\r\n\r\n"
        self._transport.write(_BEGIN)
        self._wheel.join(self)


async def serve() -> dict[str, float]:
    """Serve until standard input ends; returns `Wheel.report`."""
    loop, wheel, closed = asyncio.get_running_loop(), Wheel(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), closed.set)
    server = await loop.create_server(lambda: Connection(wheel), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    turning = asyncio.create_task(wheel.turn())
    await closed.wait()
    turning.cancel()
    return wheel.report()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(serve())))
