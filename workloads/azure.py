"""Azure LLM inference traces of 2023 and 2024 (Azure/AzurePublicDataset): arrivals and lengths, nothing else.

Both years are CSV with `TIMESTAMP`, `ContextTokens` and `GeneratedTokens`. The times of 2023 have seven
decimals and no zone, those of 2024 six and an offset from UTC. Sources: Splitwise (ISCA '24) for 2023,
DynamoLLM (arXiv 2408.00741) for 2024.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter

from suite.trace import Request, Segment
from workloads.reading.recorded import ANONYMOUS, NOTHING_SHARED, RecordedRows
from workloads.reading.rows import FewTokens, csv_rows, dropped, succeeded

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class Azure(RecordedRows):
    """An Azure trace, replayed open loop from its first row on. Rows without tokens are dropped and counted.

    The trace names no clients and says nothing of prefixes.
    """

    SOURCE: ClassVar[str] = "Azure/AzurePublicDataset, LLM inference traces"
    LICENCE: ClassVar[str] = "CC-BY-4.0"

    def choices(self) -> dict[str, Any]:
        """What every recorded workload says, that prompts share nothing, and how many rows were dropped."""
        return super().choices() | {"prefix_rule": NOTHING_SHARED, "counts": dropped(self._rows)}

    def requests(self, seed: int) -> Iterator[Request]:
        """The rows as requests, in file order, the same under every `seed`."""
        start = min((row.time for row in self._rows), default=None)
        for number, row in enumerate(self._rows):
            if succeeded(row) and start is not None:
                arrival = (row.time - start).total_seconds()
                prompt = Segment(f"prompt:{number}", row.input_tokens)
                yield Request(f"row-{number:08}", ANONYMOUS, arrival, (prompt,), row.output_tokens)

    @cached_property
    def _rows(self) -> list[_Row]:
        return list(csv_rows(self.path, _row, [COLUMNS], self.limit))


@dataclass(frozen=True, slots=True)
class _Row:
    timestamp: Annotated[datetime, Field(validation_alias="TIMESTAMP")]
    input_tokens: Annotated[FewTokens, Field(validation_alias="ContextTokens")]
    output_tokens: Annotated[FewTokens, Field(validation_alias="GeneratedTokens")]

    @property
    def time(self) -> datetime:
        """The timestamp in UTC, which is what those without an offset are in."""
        return self.timestamp if self.timestamp.tzinfo else self.timestamp.replace(tzinfo=UTC)


_row = TypeAdapter(_Row)
