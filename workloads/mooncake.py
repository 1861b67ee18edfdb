"""Mooncake traces (kvcache-ai/Mooncake, FAST'25 release): real arrivals, lengths and prefix structure.

A row holds `timestamp` (ms), `input_length`, `output_length` and `hash_ids`, one for each block of 512 prompt
tokens. The traces name no clients and their arrivals are quantised (ticks of about 3 s); the rules that fill
these gaps are recorded in the header.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter

from suite.trace import Request
from workloads.parts.part import Count
from workloads.parts.streams import stream
from workloads.reading.blocks import Blocks
from workloads.reading.recorded import ANONYMOUS, QuantisedRows
from workloads.reading.rows import Number, json_rows

BLOCK = 512
"""Tokens a hash id stands for."""


class Mooncake(QuantisedRows):
    """A Mooncake trace, replayed open loop.

    A session is the requests that agree in the first block that not all requests share.
    """

    SOURCE: ClassVar[str] = "kvcache-ai/Mooncake, FAST25-release/traces"
    LICENCE: ClassVar[str] = "Apache-2.0"

    def choices(self) -> dict[str, Any]:
        """What every quantised trace says, and what makes a session, in words."""
        return super().choices() | {
            "session_rule": "requests that agree in the first block that not all requests share"
        }

    def requests(self, seed: int) -> Iterator[Request]:
        """The rows as requests, in file order."""
        blocks = Blocks(BLOCK)
        rows = list(
            json_rows(self.path, _row, self.limit, lambda row: blocks.problem(row.hash_ids, row.input_length))
        )
        seconds = [row.timestamp / 1000 for row in rows]
        arrivals = self.spread_out(seconds, stream(seed, "mooncake", "arrivals"))
        for number, (row, arrival, session) in enumerate(zip(rows, arrivals, _sessions(rows), strict=True)):
            prompt = blocks.prompt(row.hash_ids, row.input_length)
            yield Request(f"row-{number:06}", ANONYMOUS, arrival, prompt, row.output_length, session)


@dataclass(frozen=True, slots=True)
class _Row:
    timestamp: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    input_length: Count
    output_length: Count
    hash_ids: list[Number]


_row = TypeAdapter(_Row)


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
