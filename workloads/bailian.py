"""Qwen-Bailian traces (alibaba-edu/qwen-bailian-usagetraces-anon): chats, with the prefixes they shared.

A row holds `chat_id`, `parent_chat_id` (the turn before; -1 for none), `timestamp` (s), `input_length`,
`output_length`, `type`, `turn` and `hash_ids`, one for each block of 16 prompt tokens. Source: Wang et al.,
"KVCache Cache in the Wild", ATC '25.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter

from suite.trace import Request
from workloads.reading.blocks import Blocks
from workloads.reading.recorded import ANONYMOUS, RecordedRows
from workloads.reading.rows import FewTokens, Number, dropped, json_rows, succeeded

BLOCK = 16
"""Tokens a hash id stands for."""
ROOT = -1
"""What the first turn of a chat has for a parent."""


class Bailian(RecordedRows):
    """A Qwen-Bailian trace. Rows without tokens are dropped and counted; the trace names no clients.

    A session is the turns that go back to one root. A turn is sent at its recorded time or, if the reply to
    the turn before is not whole by then, when it is: how long replies took was not recorded.
    """

    SOURCE: ClassVar[str] = "alibaba-edu/qwen-bailian-usagetraces-anon"
    LICENCE: ClassVar[str] = "Apache-2.0"

    def choices(self) -> dict[str, Any]:
        """What every recorded workload says, how many rows were dropped, and the rules, in words."""
        return super().choices() | {
            "session_rule": "turns of one root; each at its recorded time, not before its parent's reply",
            "prefix_rule": "blocks of equal hash ids; a reply is shared as far as later prompts hash alike",
            "counts": dropped(self._rows),
        }

    def requests(self, seed: int) -> Iterator[Request]:
        """The rows as requests, in order of time, the same under every `seed`."""
        blocks = Blocks(BLOCK)
        roots: dict[int, int] = {}
        sent: set[int] = set()
        for row in self._rows:
            parent = row.parent_chat_id
            root = row.chat_id if parent == ROOT else roots.get(parent, parent)
            roots[row.chat_id] = root
            if succeeded(row):
                sent.add(row.chat_id)
                yield Request(
                    f"chat-{row.chat_id}",
                    ANONYMOUS,
                    round(row.timestamp, 6),
                    blocks.prompt(row.hash_ids, row.input_tokens),
                    row.output_tokens,
                    session=f"session-{root}",
                    after=(f"chat-{parent}",) if parent in sent else (),
                )

    @cached_property
    def _rows(self) -> list[_Row]:
        blocks = Blocks(BLOCK)
        rows = json_rows(
            self.path, _row, self.limit, lambda row: blocks.problem(row.hash_ids, row.input_tokens)
        )
        return sorted(rows, key=lambda row: (row.timestamp, row.turn))


@dataclass(frozen=True, slots=True)
class _Row:
    chat_id: Number
    parent_chat_id: Number
    timestamp: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    input_tokens: Annotated[FewTokens, Field(validation_alias="input_length")]
    output_tokens: Annotated[FewTokens, Field(validation_alias="output_length")]
    turn: int
    hash_ids: list[Number]


_row = TypeAdapter(_Row)
