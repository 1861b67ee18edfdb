"""A stand-in for vLLM's command line: the same HTTP, the same logs by the real host, no model.

Started as the Python of an environment: `fake_vllm.py -m vllm.entrypoints.cli.main serve MODEL --flag ...`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from fake_engine import Engine, Reply, begin_or_fail, event, serve, streamed


def engine_for(flags: argparse.Namespace) -> Engine:
    stock = {"scheduler": {"target": "baselines.fcfs:FCFS", "parameters": {}}, "logs": tempfile.mkdtemp()}
    given = json.loads(flags.additional_config)["suite"] if flags.additional_config else stock

    def word(cached: int) -> dict[str, Any]:
        return {
            "version": version(),
            "blocks": flags.num_gpu_blocks_override - 1,
            "block_size": flags.block_size,
            "max_num_seqs": flags.max_num_seqs,
            "max_num_batched_tokens": flags.max_num_batched_tokens,
            "cached_blocks": cached,
        }

    return Engine(given, flags.max_num_seqs, flags.block_size, word)


def version() -> str:
    return os.environ.get("FAKE_VERSION", "0.32.0+fake")


def usage(reply: Reply, tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": len(reply.prompt),
        "completion_tokens": tokens,
        "prompt_tokens_details": {"cached_tokens": reply.told_cached},
    }


async def events(reply: Reply) -> AsyncIterator[bytes]:
    tokens = 0
    while (token := await reply.tokens.get()) is not None:
        tokens += 1
        yield event({"choices": [{"text": " w7", "token_ids": [token]}]})
    yield event({"choices": [], "usage": usage(reply, tokens)})
    yield b"data: [DONE]\n\n"


def routes_of(engine: Engine, flags: argparse.Namespace) -> web.RouteTableDef:
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
        if "priority" in body:
            print(f"priority {body['priority']}", flush=True)
        if len(body["prompt"]) + body["max_tokens"] > flags.max_model_len:
            said = "the prompt is longer than the model's maximum context length"
            return web.json_response({"error": {"message": said}}, status=400)
        words = body.get("vllm_xargs", {})
        reply = Reply(body["prompt"], body["max_tokens"])
        engine.add(reply, words.get("request_id"), words.get("client_id"))
        if body.get("stream"):
            return await streamed(request, events(reply))
        tokens = len([token async for token in events(reply)]) - 2
        return web.json_response({"choices": [{"text": ""}], "usage": usage(reply, tokens)})

    return routes


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The flags this stand-in understands; vLLM's others are let pass."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--host", required=True)
    sizes = (
        "max-num-seqs",
        "max-num-batched-tokens",
        "max-model-len",
        "block-size",
        "num-gpu-blocks-override",
    )
    for flag in ("port", *sizes):
        parser.add_argument(f"--{flag}", type=int, required=True)
    parser.add_argument("--additional-config")
    parser.add_argument("--scheduling-policy")
    return parser.parse_known_args(arguments)[0]


def main() -> None:
    assert sys.argv[1:4] == ["-m", "vllm.entrypoints.cli.main", "serve"]
    flags = parsed(sys.argv[5:])
    print(json.dumps({"arguments": sys.argv[4:], "path": os.environ["PYTHONPATH"]}), flush=True)
    policy = os.environ.get("FAKE_POLICY", flags.scheduling_policy)
    print("non-default args:", {} if policy == "fcfs" else {"scheduling_policy": policy}, flush=True)
    begin_or_fail()
    engine = engine_for(flags)
    serve(engine, routes_of(engine, flags), flags.host, flags.port)


if __name__ == "__main__":
    main()
