"""Traces of the VTC artifact (Ying1123/VTC-artifact, OSDI '24): arrivals, clients and lengths, no prefixes.

Two files of it are read: its real trace as CSV (`arrival_s,client,input_tokens,output_tokens`), and the
per-request results of its runs (`all_results_*.jsonl`), which say what was asked as well as how it went. The
artifact's prompts are one repeated word; no prefix was cached or shared, so each prompt here is a segment of
its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from suite.errors import BadInput
from suite.trace import Request, Segment
from suite.validation import first_problem
from workloads.parts.part import Count
from workloads.reading.recorded import NOTHING_SHARED, RecordedRows
from workloads.reading.rows import Tokens, csv_rows

COLUMNS = ("arrival_s", "client", "input_tokens", "output_tokens")
ABORTED = -1.0
"""What the artifact writes as the latency of a request that it aborted."""

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Latency = Annotated[float, Field(ge=ABORTED, allow_inf_nan=False)]


class VTCTrace(RecordedRows):
    """A trace of the artifact, replayed open loop; a client of it is a client here."""

    SOURCE: ClassVar[str] = "Ying1123/VTC-artifact, fair_bench"
    LICENCE: ClassVar[str] = "Apache-2.0"

    def choices(self) -> dict[str, Any]:
        """The parameters, the digest of the file, and that prompts share nothing."""
        return super().choices() | {"prefix_rule": NOTHING_SHARED}

    def requests(self, seed: int) -> Iterator[Request]:
        """The rows as requests, in file order, the same under every `seed`."""
        for number, row in enumerate(self._rows()):
            prompt = Segment(f"prompt:{number}", row.input_tokens)
            arrival = round(row.arrival_s, 6)
            yield Request(f"row-{number:06}", row.client, arrival, (prompt,), row.output_tokens)

    def _rows(self) -> Iterator[_Row]:
        if self.path.suffix == ".csv":
            return csv_rows(self.path, _row, [COLUMNS], self.limit)
        return islice(_asked(self.path), self.limit)


@dataclass(frozen=True, slots=True)
class Response:
    """One request of a published run. Times in seconds, latencies from its arrival."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    adapter_dir: Annotated[str, Field(pattern="[^-]$", max_length=512)]
    prompt_len: Count
    output_len: Count
    request_latency: _Latency
    first_token_latency: _Latency
    req_time: _Seconds

    @property
    def client(self) -> str:
        """The number that ends the name of its adapter; the artifact has one adapter for each client."""
        return self.adapter_dir.rpartition("-")[2]

    @property
    def served(self) -> bool:
        """False if it was aborted."""
        return self.first_token_latency != ABORTED


class Published(NamedTuple):
    """A run that the artifact holds the results of."""

    duration: float
    """Seconds in which requests arrived."""
    total_time: float
    """Seconds that it took."""
    responses: tuple[Response, ...]


def published(path: Path) -> Published:
    """Read a result file of the artifact. Raises `BadInput` naming the file and the field."""
    try:
        found = _file.validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadInput(f"{path}: {first_problem(error)}") from None
    return Published(found.config.duration, found.result.total_time, found.result.responses)


@dataclass(frozen=True, slots=True)
class _Config:
    duration: Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class _Result:
    total_time: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class _File:
    config: _Config
    result: _Result


@dataclass(frozen=True, slots=True)
class _Row:
    arrival_s: _Seconds
    client: Annotated[str, Field(min_length=1, max_length=512)]
    input_tokens: Tokens
    output_tokens: Tokens


_file = TypeAdapter(_File)
_row = TypeAdapter(_Row)


def _asked(path: Path) -> Iterator[_Row]:
    """What the requests of a published run asked for."""
    for one in published(path).responses:
        yield _Row(one.req_time, one.client, one.prompt_len, one.output_len)
