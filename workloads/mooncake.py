"""Mooncake traces (kvcache-ai/Mooncake, FAST'25 release): real arrivals, lengths and prefix structure.

A row holds `timestamp` (ms), `input_length`, `output_length` and `hash_ids`, one for each block of 512 prompt
tokens. Each hash id becomes a segment, so prompts share exactly the prefixes they share in the trace. The
traces name no clients and their arrivals are quantised (ticks of about 3 s); the rules that fill these gaps
are parameters here and are recorded in the header.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from suite.errors import BadInput
from suite.trace import Request, Segment
from workloads.clients import numbered, zipf
from workloads.part import Clientele, Count, NonNegative, Positive
from workloads.recorded import Recorded
from workloads.streams import stream

BLOCK = 512
"""Tokens a hash id stands for."""


@dataclass(frozen=True, slots=True)
class _Row:
    timestamp: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    input_length: Count
    output_length: Count
    hash_ids: list[int]


class Mooncake(Recorded):
    """A Mooncake trace, replayed open loop.

    `file` is looked up from the current folder, then in the folder of traces. `stretch` multiplies every
    time: 8 is 8 times slower. A session is the requests that agree in the first block that not all requests
    share; each session is given to one of `clients` clients by a seeded draw in which client ranks are Zipf
    with exponent `skew`. `spread` says where in the gap to the next tick a request arrives: anywhere
    (`uniform`, seeded) or at its beginning (`none`). `limit` keeps the first rows only.
    """

    stretch: Positive = 1.0
    clients: Clientele = 8
    skew: NonNegative = 1.0
    spread: Literal["uniform", "none"] = "uniform"
    limit: Count | None = None

    def choices(self) -> dict[str, Any]:
        """The parameters, the digest of the file, and the rules by which gaps were filled, in words."""
        return super().choices() | {
            "session_rule": "requests that agree in the first block that not all requests share",
            "client_rule": "sessions, in order of their first request, drawn by Zipf over client ranks",
            "arrival_rule": "each request alone, anywhere before the next distinct timestamp"
            if self.spread == "uniform"
            else "as in the file",
        }

    def requests(self, seed: int) -> Iterator[Request]:
        """The rows as requests, in file order."""
        rows = list(_rows(self.path, self.limit))
        arrivals = self._arrivals(rows, seed)
        sessions = _sessions(rows)
        clients = self._clients(sessions, seed)
        segments = _Segments()
        for number, (row, arrival, session) in enumerate(zip(rows, arrivals, sessions, strict=True)):
            prompt = segments.prompt(row)
            client = clients[session]
            yield Request(f"row-{number:06}", client, arrival, prompt, row.output_length, session)

    def _arrivals(self, rows: Sequence[_Row], seed: int) -> list[float]:
        """Seconds, in row order."""
        stamps = np.array([row.timestamp for row in rows])
        if self.spread == "uniform":
            ticks = np.unique(stamps)
            gaps = np.diff(ticks, append=ticks[-1] + np.median(np.diff(ticks))) if len(ticks) > 1 else [0.0]
            share = stream(seed, "mooncake", "arrivals").random(len(rows))
            stamps = stamps + share * np.asarray(gaps)[np.searchsorted(ticks, stamps)]
        seconds: list[float] = np.round(stamps / 1000 * self.stretch, 6).tolist()
        return seconds

    def _clients(self, sessions: Sequence[str], seed: int) -> dict[str, str]:
        """The client of each session."""
        distinct = list(dict.fromkeys(sessions))
        chances = zipf(self.clients, self.skew)
        ranks = stream(seed, "mooncake", "clients").choice(self.clients, size=len(distinct), p=chances)
        names = numbered(self.clients)
        return {session: names[rank] for session, rank in zip(distinct, ranks, strict=True)}


_row = TypeAdapter(_Row)


def _rows(path: Path, limit: int | None) -> Iterator[_Row]:
    with path.open("rb") as file:
        for number, line in enumerate(islice(file, limit), start=1):
            try:
                row = _row.validate_json(line)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                field = ".".join(str(part) for part in first["loc"]) or "row"
                raise BadInput(f"{path}:{number}: {field}: {first['msg'].lower()}") from None
            blocks = -(-row.input_length // BLOCK)
            if len(row.hash_ids) != blocks:
                raise BadInput(
                    f"{path}:{number}: hash_ids: {len(row.hash_ids)} ids, but input_length "
                    f"{row.input_length} makes {blocks} blocks of {BLOCK}"
                )
            yield row


def _sessions(rows: Sequence[_Row]) -> list[str]:
    """The session of each row; a row of common blocks alone is a session of its own."""
    common = _common_blocks([row.hash_ids for row in rows])
    return [
        f"session-{row.hash_ids[common]}" if len(row.hash_ids) > common else f"session-row-{number}"
        for number, row in enumerate(rows)
    ]


def _common_blocks(prompts: list[list[int]]) -> int:
    """How many blocks begin every prompt: those that the first and the last in sorted order share."""
    pairs = zip(min(prompts, default=[]), max(prompts, default=[]), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class _Segments(dict[int, Segment]):
    """Whole blocks by hash id, each made once."""

    def __missing__(self, id: int) -> Segment:
        self[id] = Segment(f"block:{id}", BLOCK)
        return self[id]

    def prompt(self, row: _Row) -> tuple[Segment, ...]:
        """The row's blocks; the last one may be partial."""
        *whole, last = row.hash_ids
        rest = row.input_length - BLOCK * len(whole)
        return (*(self[id] for id in whole), Segment(f"block:{last}", rest))
