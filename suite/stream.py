"""A streamed reply (server-sent events) as it comes in: counted now, read at the end.

The events are those of the OpenAI API, or of SGLang's own with the new tokens alone in each.

While a reply runs, an event is nothing but a mark in raw bytes, so that one process can follow thousands of
tokens a second. How many tokens an event brought is worked out at the end from the server's own count.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]

_MARK = b"\ndata:"
"""Begins an event. A line break inside JSON is escaped, so no reply can hold these bytes."""
_TAIL = 4096
"""Last bytes of a reply that are kept: the events with usage and [DONE], or an error."""
_MOST = 10**9
"""Tokens above which a count is nonsense."""


@dataclass(frozen=True)
class Ending:
    """What the last events of a reply say. Counts are None where the server gives none.

    `status` is the HTTP status that goes with an error, 0 where none is told.
    """

    done: bool
    error: str | None
    status: int
    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    trailing: int
    """Events at the end that bring no token."""


class Stream:
    """One reply, of a chat or a completion. With `keep`, all of it is kept, to be read as ids or text."""

    def __init__(self, *, chat: bool, keep: bool) -> None:
        self._chat = chat
        self._keep = keep
        self.held = 0
        """Bytes that are kept."""
        self._edge = b"\n"
        self._begun = 0
        self._head: list[bytes] = []
        self._tail = b""
        self._times = array("d")
        self._events = array("q")

    def feed(self, chunk: bytes, now: float) -> None:
        """Take in bytes that came at `now`."""
        seen = self._edge + chunk
        events = seen.count(_MARK)
        self._edge = seen[1 - len(_MARK) :]
        if self._keep or (self._chat and self._begun < 2):
            self._head.append(chunk)
            self.held += len(chunk)
        self._tail = (self._tail + chunk)[-_TAIL:]
        if events:
            self._begun += events
            self._times.append(now)
            self._events.append(events)

    def ending(self) -> Ending:
        """Read the last events."""
        done, trailing = False, 0
        error, status = None, 0
        usage: dict[str, Any] = {}
        for data in reversed(list(_events(self._tail))):
            event = {} if data == b"[DONE]" else _parsed(data)
            done = done or data == b"[DONE]"
            if error is None and (trouble := _trouble(event)):
                error, status = complaint(trouble), _status(trouble)
            usage = usage or _usage(event)
            if event.get("choices") or event.get("output_ids"):
                break
            trailing += 1
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        cached = _count(usage.get("cached_tokens"))
        return Ending(done, error, status, _count(prompt), _count(output), cached, trailing)

    def _opening(self) -> int:
        """Events at the start that bring no token: chat's first one, if it only names the role."""
        if not self._chat:
            return 0
        for data in _events(b"".join(self._head)):
            delta = _mapping(_choice(data).get("delta"))
            return int("role" in delta and not any(v for key, v in delta.items() if key != "role"))
        return 0

    def rows(self, ending: Ending) -> tuple[Floats, Counts]:
        """When tokens came, and how many: one row for each chunk that brought some.

        The server's count is spread evenly over the events that can have brought tokens; without one, each
        brought one. Where the count is one less, the last event brought none: it tells why the reply ended.
        """
        opening = self._opening()
        events = np.frombuffer(self._events, np.int64)
        bearing = max(self._begun - opening - ending.trailing, 0)
        upto = np.clip(np.cumsum(events) - opening, 0, bearing)
        total = bearing if ending.output_tokens is None else ending.output_tokens
        counts = np.diff(-(-upto * total // max(bearing, 1)), prepend=0)
        some = counts > 0
        return np.frombuffer(self._times, np.float64)[some], counts[some]

    def ids(self) -> list[int]:
        """The token ids of a kept reply, where the server sent them."""
        return [id for data in _events(b"".join(self._head)) for id in _ids(_parsed(data))]

    def text(self) -> str:
        """The text of a kept reply, of a completion or a chat."""
        return "".join(_text(_choice(data)) for data in _events(b"".join(self._head)))


def complaint(body: Any) -> str:
    """What an error says, from its JSON in any of the usual shapes."""
    while isinstance(body, dict):
        body = next((body[key] for key in ("error", "message", "detail") if body.get(key)), str(body))
    return " ".join(str(body).split())


def _events(data: bytes) -> Iterator[bytes]:
    """The data of each event that begins in `data`."""
    for line in (b"\n" + data).split(_MARK)[1:]:
        yield line.partition(b"\n")[0].strip()


def _parsed(data: bytes) -> dict[str, Any]:
    """The event's JSON; nothing where it was cut."""
    try:
        return _mapping(orjson.loads(data))
    except orjson.JSONDecodeError:
        return {}


# What servers send is foreign: a value of another kind than it should be counts as not sent.


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST else None


def _usage(event: dict[str, Any]) -> dict[str, Any]:
    """The counts of an event, the cached tokens among them."""
    own = _mapping(event.get("meta_info"))
    told = _mapping(event.get("usage"))
    details = _mapping(told.get("prompt_tokens_details"))
    return {**told, "cached_tokens": details.get("cached_tokens")} if told else own


def _trouble(event: dict[str, Any]) -> dict[str, Any]:
    """What an event says of an error: it is one, or SGLang gave the request up. Empty if there is none."""
    if error := event.get("error"):
        return error if isinstance(error, dict) else {"message": error}
    reason = _mapping(_mapping(event.get("meta_info")).get("finish_reason"))
    return reason if reason.get("type") == "abort" else {}


def _status(trouble: dict[str, Any]) -> int:
    told = trouble.get("status_code") or trouble.get("code")
    return told if type(told) is int else 0


def _choice(data: bytes) -> dict[str, Any]:
    return _first(_parsed(data))


def _first(event: dict[str, Any]) -> dict[str, Any]:
    choices = event.get("choices")
    return _mapping(choices[0]) if isinstance(choices, list) and choices else {}


def _ids(event: dict[str, Any]) -> list[int]:
    ids = event.get("output_ids") or _first(event).get("token_ids")
    return [id for id in ids if type(id) is int and 0 <= id < 2**31] if isinstance(ids, list) else []


def _text(choice: dict[str, Any]) -> str:
    text = choice.get("text") or _mapping(choice.get("delta")).get("content")
    return text if isinstance(text, str) else ""
