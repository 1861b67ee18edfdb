"""What a request says of itself, and what the front makes of that before an engine reads it.

A client is named to an engine by the front alone, as client_id: to vLLM in `vllm_xargs` of the body; to
SGLang in `custom_params`, and besides as its routing key, which SGLang drops where a request has several
prompts or replies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import orjson

from suite.backends.front.config import Engine
from suite.backends.front.identity import Caller, Refused

ROUTING_KEY = "X-SMG-Routing-Key"
"""The header in which SGLang is told a client."""

Body: TypeAlias = dict[str, Any]

_CLAIMS = ("request_id", "weight", "priority")
"""What the suite's plugin in an engine believes a request of itself."""
_GENERATE = "/generate"


class Letter(NamedTuple):
    """What is sent to a worker: the body, and headers besides the usual."""

    body: bytes
    headers: Mapping[str, str]


def parsed(raw: bytes) -> Body:
    """The body of a request. Raises `Refused` if it is no JSON object."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object")
    return body


def claims(engine: Engine, path: str, body: Body) -> Body:
    """What the request says of itself to the suite's plugin: client_id, request_id, weight, priority.

    Raises `Refused` if that is no JSON object.
    """
    if engine != "sglang":
        return _mapping(body, "vllm_xargs")
    return _mapping(_mapping(body, "sampling_params") if path == _GENERATE else body, "custom_params")


def stamped(engine: Engine, path: str, raw: bytes, body: Body, caller: Caller) -> Letter:
    """The request with its client in it; the bytes stay as they came where they say the right thing already.

    Of a caller that may say no more of itself, claims are dropped and the weight is written. An id for SGLang
    is dropped of everyone: it can pass for a health check, which no policy sees, and what begins another's
    would abort that. Raises `Refused` for what an engine serves without its client's name.
    """
    if engine == "openai":
        return Letter(raw, {})
    wanted = dict(body)
    about = _wanted(claims(engine, path, body), caller)
    if caller.weight is not None:
        wanted.pop("priority", None)
    if engine == "vllm":
        _refuse_beams(body)
        wanted["vllm_xargs"] = about
        return Letter(_written(raw, body, wanted), {})
    wanted.pop("rid", None)
    if path == _GENERATE:
        wanted["routing_key"] = caller.client
        wanted["sampling_params"] = {**_mapping(body, "sampling_params"), "custom_params": about}
    else:
        wanted["custom_params"] = about
    return Letter(_written(raw, body, wanted), _routing_key(caller))


def _refuse_beams(body: Body) -> None:
    """vLLM makes a request of each step of a beam, and tells its scheduler nothing of the client."""
    if body.get("use_beam_search") not in (None, False):
        raise Refused(400, "use_beam_search: vLLM does not schedule beams by client; drop it")


def _routing_key(caller: Caller) -> dict[str, str]:
    """The header, unless it would change the name: SGLang reads nothing but ASCII there as it was meant."""
    name = caller.client
    told = name.isascii() and name.isprintable() and name == name.strip()
    return {ROUTING_KEY: name} if told else {}


def _wanted(about: Body, caller: Caller) -> Body:
    """The claims as they shall be."""
    if caller.weight is None:
        return {**about, "client_id": caller.client}
    kept = {key: value for key, value in about.items() if key not in _CLAIMS}
    return {**kept, "client_id": caller.client, "weight": caller.weight}


def _written(raw: bytes, body: Body, wanted: Body) -> bytes:
    """The wanted body as JSON, without writing a long prompt anew if that can be helped."""
    if wanted == body:
        return raw
    added = {key: value for key, value in wanted.items() if key not in body}
    if body and wanted.keys() >= body.keys() and all(wanted[key] is value for key, value in body.items()):
        return orjson.dumps(added)[:-1] + b"," + raw.lstrip()[1:]
    return orjson.dumps(wanted)


def _mapping(body: Body, key: str) -> Body:
    """What stands there; nothing if it is left out."""
    found = body.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Refused(400, f"{key} must be one JSON object")
    return found
