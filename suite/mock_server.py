"""A paced server of completions that proves it was not late itself: every stream gets a token each 20 ms.

    python -m suite.mock_server [SECONDS]

prints its port on loopback and serves until its standard input ends. Tokens come SECONDS apart; 0 has each
reply written at once. Any model, any prompt: a reply has the `max_tokens` asked for, then usage and [DONE].
GET /report gives what it measured since that was last asked for.
"""

from __future__ import annotations

import asyncio
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
SLOT = 0.001
"""Seconds between two looks at what is due."""

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_PROBE = re.compile(rb"GET /(health|v1/models|(get_)?(server|model)_info)\b")
"""What routers ask their workers."""
_NOTHING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_BEGIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _found(content: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(content) + content


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
    """All streams on one timer: a stream stays in its slot of the interval, so that emissions are spread.

    `late` holds how many seconds after its due time each token was written or, where replies are written at
    once, each look was taken: then that is how long a request may have waited to be seen.
    """

    def __init__(self, interval: float) -> None:
        self.late = array("d")
        self._tokens = 0
        self._paced = interval > 0
        self._slots: list[list[Connection]] = [[] for _ in range(max(1, round(interval / SLOT)))]
        self._turn = 0
        self._began = time.monotonic()
        self._busy = (nan, nan)

    def join(self, stream: Connection) -> None:
        """Give a stream its tokens, the first an interval from now."""
        if isnan(self._busy[0]):
            self._busy = time.monotonic(), time.process_time()
        if self._paced:
            self._slots[(self._turn - 1) % len(self._slots)].append(stream)
            return
        self._tokens += stream.left
        while stream.emit():
            pass

    def report(self) -> dict[str, float]:
        """Tokens written, lateness in seconds, CPU time as a share of one core since the first stream.

        All begins anew.
        """
        late = np.frombuffer(self.late) if self.late else np.zeros(1)
        since, used = self._busy
        found = {
            "tokens": self._tokens,
            "late_p99_s": float(np.percentile(late, 99)),
            "late_max_s": float(late.max()),
            "cpu_share": (time.process_time() - used) / (time.monotonic() - since),
        }
        self.late, self._tokens, self._busy = array("d"), 0, (nan, nan)
        return found

    async def turn(self) -> None:
        """Emit what is due, for ever."""
        while True:
            due = self._began + self._turn * SLOT
            if (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
                continue
            slot = self._turn % len(self._slots)
            self._turn += 1
            if not self._paced:
                self.late.append(time.monotonic() - due)
            elif self._slots[slot]:
                self._slots[slot] = [stream for stream in self._slots[slot] if self._emit(stream, due)]

    def _emit(self, stream: Connection, due: float) -> bool:
        goes_on = stream.emit()
        self._tokens += 1
        self.late.append(time.monotonic() - due)
        return goes_on


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, kept alive, one request at a time."""

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel
        self._received = b""
        self.left = 0
        """Tokens that the reply lacks."""
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
            elif head.startswith(b"GET /report "):
                self._transport.write(_found(orjson.dumps(self._wheel.report())))
            else:
                self._transport.write(_found(b"{}") if _PROBE.match(head) else _NOTHING)

    def connection_lost(self, error: Exception | None) -> None:
        """The client has gone: its stream ends."""
        self.left = 0

    def emit(self) -> bool:
        """Write the next token; with the last one the end of the reply. Returns whether more are to come."""
        self.left -= 1
        if self.left > 0:
            self._transport.write(_TOKEN)
        elif self.left == 0:
            self._transport.write(_TOKEN + self._ending)
        return self.left > 0

    def _serve(self, request: dict[str, Any]) -> None:
        prompt, self.left = len(request["prompt"]), int(request["max_tokens"])
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": self.left,
            "total_tokens": prompt + self.left,
        }
        events = [orjson.dumps({"choices": [], "usage": usage}), b"[DONE]"]
        self._ending = b"".join(map(_chunk, events)) + b"0\r\n\r\n"
        self._transport.write(_BEGIN)
        self._wheel.join(self)


async def serve(interval: float) -> None:
    """Serve until standard input ends."""
    loop, wheel, closed = asyncio.get_running_loop(), Wheel(interval), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), closed.set)
    server = await loop.create_server(lambda: Connection(wheel), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    turning = asyncio.create_task(wheel.turn())
    await closed.wait()
    turning.cancel()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(float(sys.argv[1]) if len(sys.argv) > 1 else INTERVAL))
