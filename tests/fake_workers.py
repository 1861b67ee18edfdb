"""Stand-ins for replicas behind a front: they do as told, and note what they were asked.

    python tests/fake_workers.py PORT

serves one in a process of its own, to be killed, and prints its port, a free one for 0.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

STREAM = {"Content-Type": "text/event-stream"}


@dataclass(frozen=True)
class Asked:
    """A request as a worker saw it."""

    path: str
    headers: dict[str, str]
    raw: bytes
    body: dict[str, Any]


@dataclass
class FakeWorker:
    """Streams as many tokens as a request wants, every `pause` seconds, unless `mode` is another than "well".

    Modes: "500" and "400" refuse; "early" breaks off before the first byte, "late" after two tokens; "mute"
    holds the reply back until `go` is set, and "gated" all after the first token. While it is `deaf`, /health
    has no answer.
    """

    mode: str = "well"
    pause: float = 0.0
    health: int = 200
    deaf: bool = False
    asked: list[Asked] = field(default_factory=list)
    left: int = 0
    """Replies that ended because whoever asked was gone."""
    running: int = 0
    written: int = 0
    """Bytes of replies."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.go = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        up = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._until_over(up)))
        self._thread.start()
        assert up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    async def _until_over(self, up: threading.Event) -> None:
        async with self.serving(0):
            up.set()
            await self._over.wait()

    @asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[None]:
        """Serve on a port of loopback, or a free one."""
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/{route:.*}", self._reply)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        yield
        await runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        while self.deaf:
            await asyncio.sleep(0.01)
        return web.Response(status=self.health)

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fake"}]})

    async def _reply(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        asked = Asked(request.path, dict(request.headers), raw, json.loads(raw))
        self.asked.append(asked)
        self.running += 1
        try:
            return await self._answer(request, asked.body)
        except (asyncio.CancelledError, ConnectionError):
            self.left += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.mode in ("400", "500"):
            return web.json_response({"error": {"message": "no, thanks"}}, status=int(self.mode))
        if self.mode == "early":
            return self._break_off(request)
        while self.mode == "mute" and not self.go.is_set():
            await asyncio.sleep(0.01)
        if not body.get("stream"):
            usage = {"prompt_tokens": 1, "completion_tokens": body["max_tokens"]}
            return web.json_response({"choices": [{"text": "..."}], "usage": usage})
        return await self._streamed(request, body)

    async def _streamed(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers=STREAM)
        await response.prepare(request)
        for token in range(body["max_tokens"]):
            await self._event(response, {"choices": [{"text": body.get("pad", "") + f" t{token}"}]})
            if self.mode == "late" and token == 1:
                return self._break_off(request)
            while self.mode == "gated" and not self.go.is_set():
                await asyncio.sleep(0.005)
            await asyncio.sleep(self.pause)
        if body.get("stream_options"):
            await self._event(response, {"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _event(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        data = f"data: {json.dumps(event)}\n\n".encode()
        await response.write(data)
        self.written += len(data)

    def _break_off(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


async def _serve_for_ever(port: int) -> None:
    worker = FakeWorker(pause=0.01)
    async with worker.serving(port):
        print(worker.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve_for_ever(int(sys.argv[1])))
