"""How many tokens a reply has brought, counted while it passes."""

from __future__ import annotations

import re
from collections import deque

_EVENT_END = b"\n\n"
"""Ends an event. A line break inside JSON is escaped, so no text of a reply can hold these bytes."""
_DONE = b"data: [DONE]\n\n"
_KEPT = 4
"""Last chunks of a reply that are kept to be read at its end."""
_TOLD = re.compile(rb'(?<!\\)"completion_tokens" ?: ?(\d{1,9})')
"""The engine's own count; text of a reply that looks like it has its quotes escaped."""
_BY_REPLY = b'"meta_info"'
"""SGLang's own route has it in each event: there the count is that of one reply, if there are several too."""


class Tokens:
    """Of one reply: the engine's count where it tells one near the end, else an event counts as a token."""

    __slots__ = ("_last", "events")

    def __init__(self) -> None:
        self.events = 0
        self._last: deque[bytes] = deque(maxlen=_KEPT)

    def feed(self, chunk: bytes) -> None:
        """Take in the next bytes of the reply."""
        self.events += chunk.count(_EVENT_END)
        self._last.append(chunk)

    def count(self) -> int:
        """Output tokens so far."""
        end = b"".join(self._last)
        events = self.events - end.endswith(_DONE)
        told = [int(number) for number in _TOLD.findall(end)]
        if not told:
            return events
        if not self.events:
            return sum(told)
        return max(told[-1], events) if _BY_REPLY in end else told[-1]
