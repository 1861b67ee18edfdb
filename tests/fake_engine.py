"""What the stand-ins for real engines share: a step loop with a policy and the real host's logs, no model.

A step takes 5 ms and gives each running request a token. The cache holds prompts and never evicts. What a
stand-in gets wrong is said by the variables FAKE_*.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from typing import Any

from aiohttp import web

from baselines.scheduler import Request
from suite.backends.host import Host, Served

STEP = 0.005


class NoMatches:
    """The policy is told of no prefix."""

    def follow(self, request: Request) -> int:
        return 0

    def unfollow(self, request: Request) -> None:
        pass

    def refresh(self, changed: Callable[[Request, int], object]) -> None:
        pass


class Reply:
    """What one HTTP request waits for."""

    def __init__(self, prompt: list[int], output_tokens: int) -> None:
        self.prompt = prompt
        self.left = self.asked = output_tokens
        self.cached = 0
        self.tokens: asyncio.Queue[int | None] = asyncio.Queue()

    @property
    def told_cached(self) -> int:
        """The cached tokens that the client is told of."""
        return self.cached + int(os.environ.get("FAKE_CACHED_TOKENS", 0))


class Engine:
    """Slots and a prefix cache of blocks. `word` is what it says of itself, given what is cached at first.

    Under a scheduler "stock" it serves in order of arrival, and says that it is `FAKE_ACTIVE` that does so.
    """

    def __init__(
        self, configuration: dict[str, Any], slots: int, block: int, word: Callable[[int], dict[str, Any]]
    ) -> None:
        self.cache: set[tuple[int, ...]] = set()
        self.running: list[Served] = []
        self.left_behind = 0
        self.runs = 0
        self.slots, self.block, self.word = slots, block, word
        self.stock = configuration["scheduler"].get("stock")
        self.host = Host(configuration, NoMatches(), time.monotonic)
        self.begin()

    def begin(self) -> None:
        word = self.word(self.left_behind)
        if "FAKE_SOURCE" in os.environ:
            word["source"] = os.environ["FAKE_SOURCE"]
        self.host.begin(word)
        self.runs += 1

    def reset(self) -> None:
        if "FAKE_WARM" in os.environ and self.runs > 1:
            self.left_behind = len(self.cache)
        else:
            self.cache.clear()
        self.begin()

    def add(self, reply: Reply, id: str | None, client: str | None) -> Reply:
        self.host.arrived(reply, id or f"{id_of(reply)}", client or "anonymous", len(reply.prompt), 1.0, 0)
        return reply

    async def steps(self) -> None:
        """For ever; what goes wrong ends the process, as it does in an engine."""
        try:
            while True:
                await asyncio.sleep(STEP)
                self.admit()
                self.decode()
        except Exception:
            traceback.print_exc()
            os._exit(1)

    def admit(self) -> None:
        if not self.host.waiting:
            return
        if self.stock:
            self.host.passed(os.environ.get("FAKE_ACTIVE", self.stock), len(self.host.waiting))
            for served in list(self.host.waiting.by_arrival())[: self.slots - len(self.running)]:
                assert isinstance(served, Served)
                self.start(served)
            return
        with closing(self.host.candidates()) as offers, suppress(StopIteration):
            answer = None
            while len(self.running) < self.slots:
                self.start(offers.send(answer))
                answer = True

    def start(self, served: Served) -> None:
        served.engine.cached = self.match(served.engine.prompt)
        self.host.started(served, served.engine.cached)
        self.running.append(served)

    def match(self, prompt: list[int]) -> int:
        """Tokens of the prompt that are cached; its blocks are from now on."""
        ends = range(self.block, len(prompt), self.block)
        hit = max((end for end in ends if tuple(prompt[:end]) in self.cache), default=0)
        self.cache |= {tuple(prompt[:end]) for end in ends}
        return hit

    def decode(self) -> None:
        if self.running:
            self.host.generated(dict.fromkeys(self.running, 1))
        for served in list(self.running):
            served.engine.left -= 1
            served.engine.tokens.put_nowait(7)
            if not served.engine.left:
                self.running.remove(served)
                self.host.finished(served, "stop", served.prompt_tokens)
                served.engine.tokens.put_nowait(None)


def id_of(reply: Reply) -> str:
    return f"{id(reply):x}"


def begin_or_fail() -> None:
    """What goes wrong before the engine is up."""
    if "FAKE_START" in os.environ:
        raise ValueError(os.environ["FAKE_START"])
    if "FAKE_SLOW" in os.environ:
        time.sleep(600)


def event(content: dict[str, Any]) -> bytes:
    """An event of a streamed reply."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"


async def streamed(request: web.Request, events: AsyncIterator[bytes]) -> web.StreamResponse:
    """The events as they come."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    async for chunk in events:
        await response.write(chunk)
    return response


def serve(engine: Engine, routes: web.RouteTableDef, host: str, port: int) -> None:
    """Serve for ever."""
    if "FAKE_DISK" in os.environ:
        most = int(os.environ["FAKE_DISK"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    async def stepping(app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(engine.steps())
        yield
        task.cancel()

    app = web.Application(client_max_size=2**26)
    app.add_routes(routes)
    app.cleanup_ctx.append(stepping)
    web.run_app(app, host=host, port=port, print=None, shutdown_timeout=0.1)
