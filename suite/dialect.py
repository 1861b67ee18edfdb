"""How a request is put to a server: whom to ask, in which dialect, and what it answers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import orjson

from suite.content import Content, Tokens, spelled
from suite.errors import BadInput
from suite.stream import complaint
from suite.trace import Request

Dialect: TypeAlias = Literal["vllm", "sglang", "openai"]
Route: TypeAlias = Literal["completions", "chat", "generate"]
Prompts: TypeAlias = Literal["tokens", "words", "text"]

CLIENT = "X-Client-Id"
"""The header by which the suite's front is told who sends a request."""
API_KEY = "SUITE_API_KEY"
"""The environment variable that holds the key, if the server wants one. It is never stored nor logged."""

_NEVER_FITS = re.compile(
    r"context.length|model.length|longer than|too (long|large)|min_tokens must be|maximum allowed length",
    re.IGNORECASE,
)
"""What servers say. vLLM cuts `max_tokens` to what is left beside the prompt and then misses `min_tokens`."""
_LONGEST_MESSAGE = 500
_PATHS: Mapping[Route, str] = {
    "completions": "completions",
    "chat": "chat/completions",
    "generate": "generate",
}


@dataclass(frozen=True)
class Target:
    """A server. `url` is its root, with or without /v1; `model` the name it serves.

    Dialects `vllm` and `sglang` ask for exactly the trace's output tokens and say which client sends;
    `openai` keeps to standard fields, so a reply may be shorter. Prompts go out as token ids, as the words
    that the suite's own models have for them, or as text; a chat is text, and SGLang's own route, `generate`,
    takes token ids. With `by_priority` vLLM is told each request's priority: of two, the one with the smaller
    number goes first. `peer` says that another project's router stands before the engine: those drop all
    that SGLang could be told of a request but its id.
    """

    url: str
    model: str
    dialect: Dialect
    route: Route
    prompts: Prompts
    by_priority: bool = False
    peer: bool = False

    @property
    def root(self) -> str:
        """The URL up to and with /v1, or that of SGLang's own API."""
        bare = self.url.rstrip("/").removesuffix("/v1")
        return bare if self.route == "generate" else f"{bare}/v1"

    @property
    def endpoint(self) -> str:
        """Where requests are posted to."""
        return f"{self.root}/{_PATHS[self.route]}"


@dataclass(frozen=True)
class Replies:
    """Replies so far that later prompts need, by request id."""

    tokens: dict[str, Tokens] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def body(request: Request, target: Target, content: Content, replies: Replies, *, wanted: bool) -> bytes:
    """The JSON to post. `wanted` is true if the reply goes into a later prompt."""
    if target.route == "generate":
        return orjson.dumps(_generate(request, target, content, replies))
    fields: dict[str, Any] = {
        "model": target.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": request.output_tokens,
        **_prompt(request, target, content, replies),
        **(_vllm(request, target) if target.dialect == "vllm" else {"user": request.client}),
    }
    if wanted and target.prompts != "text":
        fields["return_token_ids"] = True
    return orjson.dumps(fields)


def _prompt(request: Request, target: Target, content: Content, replies: Replies) -> Mapping[str, Any]:
    if target.route == "chat":
        return {"messages": content.messages(request, replies.texts)}
    if target.prompts == "text":
        return {"prompt": content.prompt_text(request, replies.texts)}
    ids = content.prompt(request, replies.tokens)
    return {"prompt": spelled(ids) if target.prompts == "words" else ids}


def _generate(request: Request, target: Target, content: Content, replies: Replies) -> dict[str, Any]:
    """Without an id of SGLang's if possible: one that begins another would be aborted with it.

    Behind another project's router the id says everything, as `suite.backends.sglang_queue` reads it.
    """
    asked: dict[str, Any] = {"temperature": 0, "max_new_tokens": request.output_tokens, "ignore_eos": True}
    fields = {"input_ids": content.prompt(request, replies.tokens), "stream": True}
    if target.peer:
        return {**fields, "rid": orjson.dumps(_said(request)).decode(), "sampling_params": asked}
    asked["custom_params"] = _said(request)
    return {**fields, "routing_key": request.client, "sampling_params": asked}


def _vllm(request: Request, target: Target) -> dict[str, Any]:
    return {
        "min_tokens": request.output_tokens,
        "ignore_eos": True,
        **({"priority": request.priority} if target.by_priority else {}),
        "vllm_xargs": _said(request),
    }


def _said(request: Request) -> dict[str, Any]:
    """What an engine is told of a request."""
    return {
        "client_id": request.client,
        "request_id": request.id,
        "weight": request.weight,
        "priority": request.priority,
    }


def client_headers(request: Request, target: Target) -> dict[str, str]:
    """The headers that say who sends a request, if a header can; a server of standard fields is not told."""
    told = target.dialect != "openai" and fits_header(request.client)
    return {CLIENT: request.client} if told else {}


def fits_header(client: str) -> bool:
    """Whether a header can name this client."""
    return client.isprintable() and client == client.strip()


def headers() -> dict[str, str]:
    """The headers of every request; the key is taken from the environment.

    Raises `BadInput` if that cannot be one.
    """
    key = os.environ.get(API_KEY, "").strip()
    if not key.isprintable():
        raise BadInput(f"{API_KEY}: holds a control character, which no key does; set it again")
    plain = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    return {**plain, "Authorization": f"Bearer {key}"} if key else plain


def message(answer: bytes) -> str:
    """What an error's body says, short."""
    try:
        said = complaint(orjson.loads(answer))
    except orjson.JSONDecodeError:
        said = complaint(answer.decode(errors="replace"))
    return shown(said)


def shown(said: str) -> str:
    """A server's words as they may be stored: short, and without the key, should it be in them."""
    key = os.environ.get(API_KEY, "").strip()
    return (said.replace(key, "***") if key else said)[:_LONGEST_MESSAGE]


def never_fits(status: int, said: str) -> bool:
    """True if a server refused a request for its length."""
    return status in (400, 413) and _NEVER_FITS.search(said) is not None
