"""A scripted server of the OpenAI API on loopback: it does as told and notes what it was asked."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web


@dataclass(frozen=True)
class Reply:
    """What a request is answered: `tokens`, by default as many as it asks for, `together` an event."""

    status: int = 200
    message: str = ""
    reason: str | None = None
    """Said in the status line, without a body, in place of the message."""
    tokens: int | None = None
    together: int = 1
    cached: int | None = 0
    pause: float = 0.0
    end: str = "done"
    """done, nothing (no usage, no [DONE]), uncounted ([DONE] alone), error (an event), reset, hang, endless
    (a line that never ends)"""


@dataclass(frozen=True)
class Asked:
    """A request as it came in; `client` and `id` as it named them."""

    time: float
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.body.get("vllm_xargs", {}).get("request_id", self.body.get("user")))


@dataclass
class MockServer:
    """Serves while it is open. `script` gives replies by the request's id, or by its user."""

    script: Mapping[str, Reply] = field(default_factory=dict)
    models: tuple[str, ...] | bytes = ("mock",)
    """Or what it answers when it is asked for them."""
    key: str | None = None
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def by_id(self) -> dict[str, Asked]:
        return {asked.id: asked for asked in self.asked}

    def reply_ids(self, id: str, tokens: int) -> list[int]:
        """The token ids that this server answers the request with."""
        return [50 + (sum(id.encode()) + 7 * i) % 100 for i in range(tokens)]

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        up = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(up)))
        self._thread.start()
        assert up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self, up: threading.Event) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/{route:.*}", self._complete)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        up.set()
        await self._over.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "Incorrect API key provided"}}, status=401)
        if isinstance(self.models, bytes):
            return web.Response(body=self.models)
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(time.monotonic(), request.path, dict(request.headers), await request.json())
        self.asked.append(asked)
        reply = self.script.get(asked.id, Reply())
        if reply.reason is not None:
            return web.Response(status=reply.status, reason=reply.reason)
        if reply.status != 200:
            return web.json_response({"error": {"message": reply.message}}, status=reply.status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        total = asked.body["max_tokens"] if reply.tokens is None else reply.tokens
        for event in self._events(asked, reply, total):
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
            await asyncio.sleep(reply.pause)
        await self._end(asked, reply, total, response, request)
        return response

    def _events(self, asked: Asked, reply: Reply, total: int) -> list[dict[str, Any]]:
        chat = asked.path.endswith("chat/completions")
        events = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}] if chat else []
        ids = self.reply_ids(asked.id, total)
        for i in range(0, total, reply.together):
            some = ids[i : i + reply.together]
            text = "".join(f" t{id}" for id in some)
            choice: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
            if asked.body.get("return_token_ids"):
                choice["token_ids"] = some
            events.append({"choices": [choice]})
        return events

    async def _end(
        self, asked: Asked, reply: Reply, total: int, response: web.StreamResponse, request: web.Request
    ) -> None:
        while reply.end == "endless":
            await response.write(b"x" * 2**20)
        if reply.end == "hang":
            await asyncio.sleep(60)
        if reply.end == "reset":
            assert request.transport is not None
            request.transport.abort()
            return
        if reply.end == "error":
            await response.write(b'data: {"error": {"message": "engine dead", "code": 500}}\n\n')
        if reply.end == "done":
            prompt = asked.body.get("prompt", "")
            usage: dict[str, Any] = {
                "prompt_tokens": len(prompt if isinstance(prompt, list) else prompt.split()),
                "completion_tokens": total,
            }
            if reply.cached is not None:
                usage["prompt_tokens_details"] = {"cached_tokens": reply.cached}
            await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
        if reply.end in ("done", "uncounted"):
            await response.write(b"data: [DONE]\n\n")
