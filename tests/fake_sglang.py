"""A stand-in for SGLang's command line: the same HTTP, the same logs by the real host, no model.

Started as the Python of an environment: `fake_sglang.py -m sglang.launch_server --flag ...`. It takes in the
suite as SGLang does, by an entry point on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from importlib.metadata import entry_points
from typing import Any

from aiohttp import web
from fake_engine import Engine, Reply, begin_or_fail, event, serve, streamed

FCFS = {"target": "baselines.fcfs:FCFS", "parameters": {}}


def configuration() -> dict[str, Any]:
    """What the plugin is told, if it is found; else nobody writes logs that the suite would find."""
    wanted = os.environ["SGLANG_PLUGINS"]
    found = [entry.value for entry in entry_points(group="sglang.srt.plugins") if entry.name == wanted]
    if found != ["suite.backends.sglang_plugin:register"] or "FAKE_PLUGIN" in os.environ:
        return {"scheduler": FCFS, "logs": tempfile.mkdtemp()}
    told: dict[str, Any] = json.loads(os.environ["SUITE_SGLANG"])
    return told


def engine_for(flags: argparse.Namespace) -> Engine:
    def word(cached: int) -> dict[str, Any]:
        return {
            "engine": "sglang",
            "version": version(),
            "tokens": flags.max_total_tokens,
            "page_size": flags.page_size,
            "max_running_requests": flags.max_running_requests,
            "chunked_prefill_size": flags.chunked_prefill_size,
            "cached_tokens": cached,
        }

    return Engine(configuration(), flags.max_running_requests, flags.page_size, word)


def version() -> str:
    return os.environ.get("FAKE_VERSION", "0.5.23")


def meta(reply: Reply, tokens: int, reason: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "prompt_tokens": len(reply.prompt),
        "completion_tokens": tokens,
        "cached_tokens": reply.told_cached,
        "finish_reason": reason,
    }


async def events(reply: Reply) -> AsyncIterator[bytes]:
    """Token ids one by one; the last comes with the reason of the end."""
    tokens = 0
    while (token := await reply.tokens.get()) is not None:
        tokens += 1
        reason = {"type": "length", "length": tokens} if tokens == reply.asked else None
        yield event({"text": " w7", "output_ids": [token], "meta_info": meta(reply, tokens, reason)})
    yield b"data: [DONE]\n\n"


async def too_long(tokens: int, most: int) -> AsyncIterator[bytes]:
    """SGLang has begun to answer 200 when it finds that out."""
    said = f"The input ({tokens} tokens) is longer than the model's context length ({most} tokens)."
    yield event({"error": {"message": said, "type": "invalid_request_error", "code": 400}})
    yield b"data: [DONE]\n\n"


def routes_of(engine: Engine, flags: argparse.Namespace) -> web.RouteTableDef:
    routes = web.RouteTableDef()

    @routes.get("/health")
    async def health(request: web.Request) -> web.Response:
        return web.Response()

    @routes.get("/server_info")
    async def tell_version(request: web.Request) -> web.Response:
        return web.json_response({"version": version()})

    @routes.post("/flush_cache")
    async def flush(request: web.Request) -> web.Response:
        if engine.running:
            return web.Response(status=400, text="Flush cache failed.")
        engine.reset()
        return web.Response(text="Cache flushed.")

    @routes.post("/generate")
    async def generate(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        wishes = body["sampling_params"]
        if len(body["input_ids"]) + wishes["max_new_tokens"] > flags.context_length:
            return await streamed(request, too_long(len(body["input_ids"]), flags.context_length))
        words = wishes.get("custom_params", {})
        reply = Reply(body["input_ids"], wishes["max_new_tokens"])
        engine.add(reply, words.get("request_id"), body.get("routing_key"))
        if body.get("stream"):
            return await streamed(request, events(reply))
        tokens = len([token async for token in events(reply)]) - 1
        return web.json_response({"text": "", "meta_info": meta(reply, tokens, {"type": "length"})})

    @routes.post("/v1/completions")
    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        reply = Reply(body["prompt"], body["max_tokens"])
        engine.add(reply, None, request.headers.get("X-SMG-Routing-Key"))
        tokens = len([token async for token in events(reply)]) - 1
        return web.json_response({"usage": {"completion_tokens": tokens}})

    return routes


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The flags this stand-in understands; SGLang's others are let pass."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--host", required=True)
    sizes = (
        "max-running-requests",
        "chunked-prefill-size",
        "context-length",
        "page-size",
        "max-total-tokens",
    )
    for flag in ("port", *sizes):
        parser.add_argument(f"--{flag}", type=int, required=True)
    return parser.parse_known_args(arguments)[0]


def main() -> None:
    assert sys.argv[1:3] == ["-m", "sglang.launch_server"]
    flags = parsed(sys.argv[3:])
    print(json.dumps({"arguments": sys.argv[3:], "path": os.environ["PYTHONPATH"]}), flush=True)
    begin_or_fail()
    engine = engine_for(flags)
    serve(engine, routes_of(engine, flags), flags.host, flags.port)


if __name__ == "__main__":
    main()
