"""A stand-in for vLLM's command line: the same HTTP, the same logs by the real host, no model.

Started as the Python of an environment: `fake_vllm.py -m vllm.entrypoints.cli.main serve MODEL --flag ...`. A
step takes 5 ms and gives each running request a token. Its cache holds prompts, never evicts, and is reset
by /reset_prefix_cache. What it gets wrong is said by the variables FAKE_*.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import tempfile
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

    def __init__(self, body: dict[str, Any]) -> None:
        self.prompt: list[int] = body["prompt"]
        self.left: int = body["max_tokens"]
        self.cached = 0
        self.tokens: asyncio.Queue[int | None] = asyncio.Queue()


class Engine:
    """A step loop with a policy, slots and a prefix cache."""

    def __init__(self, flags: argparse.Namespace) -> None:
        given = json.loads(flags.additional_config)["suite"] if flags.additional_config else None
        stock = {"scheduler": {"target": "baselines.fcfs:FCFS", "parameters": {}}, "logs": tempfile.mkdtemp()}
        self.flags = flags
        self.cache: set[tuple[int, ...]] = set()
        self.running: list[Served] = []
        self.left_behind = 0
        self.runs = 0
        self.host = Host(given or stock, NoMatches(), time.monotonic)
        self.begin()

    def begin(self) -> None:
        blocks = self.flags.num_gpu_blocks_override - 1
        word = {"version": version(), "blocks": blocks, "cached_blocks": self.left_behind}
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

    def add(self, body: dict[str, Any]) -> Reply:
        reply, words = Reply(body), body.get("vllm_xargs", {})
        client, id = words.get("client_id", "anonymous"), words.get("request_id", f"cmpl-{id_of(reply)}")
        self.host.arrived(reply, id, client, len(reply.prompt), 1.0, 0)
        return reply

    async def steps(self) -> None:
        """For ever; what goes wrong ends the process, as it does in vLLM."""
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
        with closing(self.host.candidates()) as offers, suppress(StopIteration):
            answer = None
            while len(self.running) < self.flags.max_num_seqs:
                served = offers.send(answer)
                served.engine.cached = self.match(served.engine.prompt)
                self.host.started(served, served.engine.cached)
                self.running.append(served)
                answer = True

    def match(self, prompt: list[int]) -> int:
        """Tokens of the prompt that are cached; its blocks are from now on."""
        ends = range(self.flags.block_size, len(prompt), self.flags.block_size)
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


def version() -> str:
    return os.environ.get("FAKE_VERSION", "0.32.0+fake")


def usage(reply: Reply, tokens: int) -> dict[str, Any]:
    details = {"cached_tokens": reply.cached + int(os.environ.get("FAKE_CACHED_TOKENS", 0))}
    return {
        "prompt_tokens": len(reply.prompt),
        "completion_tokens": tokens,
        "prompt_tokens_details": details,
    }


async def events(reply: Reply) -> AsyncIterator[bytes]:
    tokens = 0
    while (token := await reply.tokens.get()) is not None:
        tokens += 1
        yield event({"choices": [{"text": " w7", "token_ids": [token]}]})
    yield event({"choices": [], "usage": usage(reply, tokens)})
    yield b"data: [DONE]\n\n"


def event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def application(engine: Engine) -> web.Application:
    routes = web.RouteTableDef()

    @routes.get("/health")
    async def health(request: web.Request) -> web.Response:
        return web.Response()

    @routes.get("/version")
    async def tell_version(request: web.Request) -> web.Response:
        return web.json_response({"version": version()})

    @routes.post("/reset_prefix_cache")
    async def reset(request: web.Request) -> web.Response:
        engine.reset()
        return web.json_response({"success": True})

    @routes.post("/v1/completions")
    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if len(body["prompt"]) + body["max_tokens"] > engine.flags.max_model_len:
            said = "the prompt is longer than the model's maximum context length"
            return web.json_response({"error": {"message": said}}, status=400)
        reply = engine.add(body)
        if not body.get("stream"):
            tokens = len([token async for token in events(reply)]) - 2
            return web.json_response({"choices": [{"text": ""}], "usage": usage(reply, tokens)})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async for chunk in events(reply):
            await response.write(chunk)
        return response

    async def stepping(app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(engine.steps())
        yield
        task.cancel()

    app = web.Application(client_max_size=2**26)
    app.add_routes(routes)
    app.cleanup_ctx.append(stepping)
    return app


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The flags this stand-in understands; vLLM's others are let pass."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--host", required=True)
    for flag in ("port", "max-num-seqs", "max-model-len", "block-size", "num-gpu-blocks-override"):
        parser.add_argument(f"--{flag}", type=int, required=True)
    parser.add_argument("--additional-config")
    return parser.parse_known_args(arguments)[0]


def main() -> None:
    assert sys.argv[1:4] == ["-m", "vllm.entrypoints.cli.main", "serve"]
    flags = parsed(sys.argv[5:])
    print(json.dumps({"arguments": sys.argv[4:], "path": os.environ["PYTHONPATH"]}), flush=True)
    if "FAKE_START" in os.environ:
        raise ValueError(os.environ["FAKE_START"])
    if "FAKE_SLOW" in os.environ:
        time.sleep(600)
    engine = Engine(flags)
    if "FAKE_DISK" in os.environ:
        most = int(os.environ["FAKE_DISK"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    web.run_app(application(engine), host=flags.host, port=flags.port, print=None, shutdown_timeout=0.1)


if __name__ == "__main__":
    main()
