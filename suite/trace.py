"""The trace: the one record everything flows through.

A trace is a header and a list of requests. Prompts carry no text: a prompt is a list of *segments*, and two
prompts share a prefix exactly as far as their segments agree. A segment may be the reply to an earlier
request, so chats and programs replay closed-loop with the tokens that were really generated. Where the tokens
of a segment are known, as those of recorded text are, the trace carries their ids.

On disk a trace is JSON lines (header first; `.jsonl`, or `.jsonl.gz`) or Parquet (`.parquet`, header in the
schema's metadata). Both hold the same content and so the same digest.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from suite import trace_lines, trace_parquet
from suite.collector import collector_paused
from suite.errors import BadInput
from suite.files import write_atomically
from suite.trace_check import agreeing
from suite.trace_records import (
    HEAVIEST,
    LIGHTEST,
    MOST_LETTERS,
    MOST_SECONDS,
    MOST_TOKENS,
    REPLY,
    SCHEMA,
    Header,
    Request,
    Row,
    Segment,
    Spelled,
    header_line,
    row_line,
)

__all__ = [
    "HEAVIEST", "LIGHTEST", "MOST_LETTERS", "MOST_SECONDS", "MOST_TOKENS", "REPLY",
    "Header", "Request", "Segment", "Trace", "checked", "read", "stream", "write",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Trace:
    """A header and its requests, in file order. Ties in arrival are served in this order.

    `tokens` holds the real token ids of the segments that have them, each shape (n,) with n no less than the
    segment's longest use; all other segments are made up (see `suite.content`).
    """

    header: Header
    requests: tuple[Request, ...]
    tokens: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)

    @property
    def spelled(self) -> list[Spelled]:
        """The segments with real token ids, by id."""
        return [Spelled(id, self.tokens[id]) for id in sorted(self.tokens)]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical form of header and rows: equal digests, equal traces."""
        sha = hashlib.sha256(header_line(self.header))
        for row in self._rows():
            sha.update(row_line(row))
        return sha.hexdigest()

    def _rows(self) -> Iterator[Row]:
        yield from self.spelled
        yield from self.requests

    @property
    def clients(self) -> tuple[str, ...]:
        """Client names, sorted."""
        return tuple(sorted({request.client for request in self.requests}))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Trace)
            and (self.header, self.requests) == (other.header, other.requests)
            and self.tokens.keys() == other.tokens.keys()
            and all(np.array_equal(self.tokens[id], other.tokens[id]) for id in self.tokens)
        )


def checked(trace: Trace, where: Callable[[int], str] | None = None) -> Trace:
    """Return the trace if its rows agree with one another, else raise `BadInput`.

    What that means, `trace_check.agreeing` says. `where(i)` names the place of request i in a message, that
    of the header for i = -1.
    """
    place = where or (lambda i: "header" if i < 0 else f"request {i + 1}")
    spelled = ((-1, row) for row in trace.spelled)
    for _ in agreeing(trace.header, chain(spelled, enumerate(trace.requests)), place):
        pass
    return trace


# -- files -------------------------------------------------------------------------------------------------


def read(path: Path) -> Trace:
    """Read and check a trace. Raises `BadInput` naming the file and, for JSON lines, the line."""
    requests: list[Request] = []
    tokens: dict[str, NDArray[np.int32]] = {}
    with collector_paused():
        header, rows = _checked_rows(path)
        for row in rows:
            if isinstance(row, Request):
                requests.append(row)
            else:
                tokens[row.segment] = row.tokens
    return Trace(header, tuple(requests), tokens)


def stream(path: Path) -> tuple[Header, Iterator[Request]]:
    """The header of a trace and its requests one at a time, in little memory; token ids are passed over.

    Raises what `read` does: for a wrong request when its turn comes, for what only the whole file shows, such
    as a wrong digest, at the end.
    """
    header, rows = _checked_rows(path)
    return header, (row for row in rows if isinstance(row, Request))


def write(trace: Trace, path: Path) -> None:
    """Write a trace atomically as JSON lines (`.jsonl`, `.jsonl.gz`) or Parquet (`.parquet`)."""
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise BadInput(f"{path}: a trace file ends in .jsonl, .jsonl.gz or .parquet")
    format = trace_parquet if path.suffix == ".parquet" else trace_lines
    header = header_line(trace.header, suite_trace=SCHEMA, digest=trace.digest)
    write_atomically(path, lambda file: format.write(file, header, trace.spelled, trace.requests))


def _checked_rows(path: Path) -> tuple[Header, Iterator[Row]]:
    if not path.is_file():
        raise BadInput(f"{path}: no such trace file")
    format = trace_parquet if path.suffix == ".parquet" else trace_lines

    def place(i: int) -> str:
        return f"{path}:{format.FIRST + i}" if format.FIRST + i else f"{path} (header)"

    with _readable(path):
        header, digest = format.head(path)
    rows = agreeing(header, _readably(path, format.rows(path, place)), place)
    return header, _undamaged(path, header, digest, (row for _, row in rows))


def _undamaged(path: Path, header: Header, digest: str | None, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, if there is a digest and it is theirs."""
    sha = hashlib.sha256(header_line(header))
    for row in rows:
        if digest is not None:
            sha.update(row_line(row))
        yield row
    if digest is not None and digest != sha.hexdigest():
        raise BadInput(
            f"{path}: the content does not match the header's digest; the file was edited or damaged "
            f"(drop the header's `digest` if the edit was meant)"
        )


def _readably(path: Path, rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    with _readable(path):
        yield from rows


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, pa.ArrowException) as error:
        raise BadInput(f"{path}: cannot be read as a trace: {' '.join(str(error).split())}") from error
