"""From the body of a request to the blocks of its prompt."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

CHARACTERS = 4
"""Characters of text that are taken for a token: the front has no tokenizer."""

_ID = "I"
_WIDTH = array(_ID).itemsize


@dataclass(frozen=True)
class Prompt:
    """What a router is told of a prompt: its tokens (of text, an estimate), the keys of its full blocks."""

    tokens: int
    blocks: Sequence[Hashable]


def prompt(path: str, body: Mapping[str, Any], block_tokens: int) -> Prompt:
    """The prompt in the body of a request to `path`.

    A block of token ids is known by its bytes, one of text by its `CHARACTERS` * `block_tokens` characters.
    Of several prompts in a request the first says which blocks, all of them how many tokens. What is no
    prompt at all has neither: its error is the engine's to tell.
    """
    first, tokens = _first(_content(path, body))
    if isinstance(first, str):
        width = CHARACTERS * block_tokens
        return Prompt(tokens, [first[i : i + width] for i in range(0, len(first) - width + 1, width)])
    return Prompt(tokens, keys(first, block_tokens))


def keys(ids: Sequence[int], block_tokens: int) -> list[bytes]:
    """The keys of the full blocks of token ids; none where these cannot be ids."""
    try:
        data = array(_ID, ids).tobytes()
    except (TypeError, OverflowError):
        return []
    width = _WIDTH * block_tokens
    return [data[i : i + width] for i in range(0, len(data) - width + 1, width)]


def _content(path: str, body: Mapping[str, Any]) -> Any:
    if path.endswith("/chat/completions"):
        return _conversation(body.get("messages"))
    if path == "/generate":
        return body["input_ids"] if body.get("input_ids") is not None else body.get("text")
    return body.get("prompt")


def _conversation(messages: Any) -> str:
    """Messages as one text: that of one conversation goes on where that of its beginning ends."""
    if not isinstance(messages, list):
        return ""
    return "".join(
        f"{message.get('role')}\n{_words(message.get('content'))}\n"
        for message in messages
        if isinstance(message, dict)
    )


def _words(content: Any) -> str:
    return content if isinstance(content, str) else orjson.dumps(content).decode()


def _first(content: Any) -> tuple[str | list[int], int]:
    """The first of the prompts, and the tokens of all."""
    several = isinstance(content, list) and bool(content) and isinstance(content[0], str | list)
    prompts = content if several else [content]
    tokens = sum(map(_tokens, prompts))
    return prompts[0] if isinstance(prompts[0], str | list) else [], tokens


def _tokens(one: Any) -> int:
    if isinstance(one, str):
        return -(-len(one) // CHARACTERS)
    return len(one) if isinstance(one, list) else 0
