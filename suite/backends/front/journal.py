"""The log of a front: one JSON line for each dispatch, each end of one, and each worker that comes or goes.

    {"event": "sent", "t": s, "id": ..., "client": ..., "worker": ..., "retry": 0, "prompt_tokens": n}
    {"event": "ended", "t": s, "id": ..., "client": ..., "worker": ..., "end": "stop", "tokens": n}
    {"event": "joined" | "lost", "t": s, "worker": ...}

`t` is on the monotonic clock of the machine, `retry` how many workers have had the request before.
"""

from __future__ import annotations

import time
from io import FileIO
from pathlib import Path
from typing import Any

import orjson

from baselines.router import End, Request
from suite.files import writing

_BATCH = 512
"""Lines that are written at once."""


class Journal:
    """Writes to a file, or nowhere. Lines are kept until there are many, or `flush` is called.

    Raises `BadInput` if the file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._file: FileIO | None = None
        self._lines: list[bytes] = []
        if path is not None:
            with writing(path):
                self._file = path.open("wb", buffering=0)

    def sent(self, request: Request, worker: str, retry: int, now: float) -> None:
        """The request was routed to a worker."""
        self._write(
            {
                "event": "sent", "t": now, "id": request.id, "client": request.client, "worker": worker,
                "retry": retry, "prompt_tokens": request.prompt_tokens,
            }
        )  # fmt: skip

    def ended(self, request: Request, worker: str, end: End, tokens: int, now: float) -> None:
        """The request has left the worker."""
        self._write(
            {
                "event": "ended", "t": now, "id": request.id, "client": request.client, "worker": worker,
                "end": end, "tokens": tokens,
            }
        )  # fmt: skip

    def worker(self, name: str, event: str) -> None:
        """A worker has joined, or was lost."""
        self._write({"event": event, "t": time.monotonic(), "worker": name})

    def flush(self) -> None:
        """Write out what is kept."""
        if self._file and self._lines:
            self._file.write(b"".join(self._lines))
            self._lines.clear()

    def close(self) -> None:
        """Write out what is kept, and no more."""
        self.flush()
        if self._file:
            self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self._file:
            self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            if len(self._lines) >= _BATCH:
                self.flush()
