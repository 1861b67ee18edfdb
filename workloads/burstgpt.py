"""BurstGPT (HPMLL/BurstGPT): months of a campus's calls of ChatGPT and GPT-4: arrivals, lengths, sessions.

A row of the CSV has `Timestamp` (whole seconds), `Model`, `Request tokens`, `Response tokens`, `Total tokens`
and `Log Type`; the third release puts `Session ID` and `Elapsed time` (seconds from request to reply) after
the timestamp. A failed request has no response tokens. Source: Wang et al., arXiv 2401.17644.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, TypeAdapter

from suite.trace import Request, Segment
from workloads.parts.streams import stream
from workloads.reading.recorded import ANONYMOUS, NOTHING_SHARED, QuantisedRows
from workloads.reading.rows import FewTokens, csv_rows, dropped, succeeded

_CALL = ("Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")
HEADERS = (("Timestamp", *_CALL), ("Timestamp", "Session ID", "Elapsed time", *_CALL))
"""The columns of the first two releases, and of the third."""


class BurstGPT(QuantisedRows):
    """A BurstGPT trace, from its first row on. Rows without tokens, most of them failed, are dropped.

    The trace names no users, so all requests, of both models, are of one client. A turn of a session is sent
    at its recorded time or, if that is later, as long after the reply to the turn before as it was recorded.
    """

    SOURCE: ClassVar[str] = "HPMLL/BurstGPT"
    LICENCE: ClassVar[str] = "CC-BY-4.0"
    TICK: ClassVar[float | None] = 1.0

    def choices(self) -> dict[str, Any]:
        """What every quantised trace says, how many rows were dropped, and the rules, in words."""
        return super().choices() | {
            "prefix_rule": NOTHING_SHARED,
            "session_rule": "rows of one Session ID; think time is the recorded gap less the elapsed time",
            "counts": dropped(self._rows),
        }

    def requests(self, seed: int) -> Iterator[Request]:
        """The rows as requests, in file order."""
        start = min((row.timestamp for row in self._rows), default=0.0)
        seconds = [row.timestamp - start for row in self._rows]
        arrivals = self.spread_out(seconds, stream(seed, "burstgpt", "arrivals"))
        before: dict[str, tuple[_Row, Request]] = {}
        for number, (row, arrival) in enumerate(zip(self._rows, arrivals, strict=True)):
            if succeeded(row):
                request = _request(f"row-{number:08}", row, arrival, before.get(row.session or ""))
                if row.session:
                    before[row.session] = row, request
                yield request

    @cached_property
    def _rows(self) -> list[_Row]:
        rows = csv_rows(self.path, _row, HEADERS, self.limit)
        return sorted(rows, key=lambda row: row.timestamp)


def _request(id: str, row: _Row, arrival: float, before: tuple[_Row, Request] | None) -> Request:
    prompt = (Segment(f"prompt:{id}", row.input_tokens),)
    if before is None:
        return Request(id, ANONYMOUS, arrival, prompt, row.output_tokens, row.session)
    last, sent = before
    think = round(max(0.0, row.timestamp - last.timestamp - last.elapsed), 6)
    arrival = max(arrival, sent.arrival)
    return Request(id, ANONYMOUS, arrival, prompt, row.output_tokens, row.session, (sent.id,), think)


def _absent(value: Any) -> Any:
    return None if value == "" else value


@dataclass(frozen=True, slots=True)
class _Row:
    timestamp: Annotated[float, Field(ge=0, allow_inf_nan=False, validation_alias="Timestamp")]
    input_tokens: Annotated[FewTokens, Field(validation_alias="Request tokens")]
    output_tokens: Annotated[FewTokens, Field(validation_alias="Response tokens")]
    session: Annotated[
        Annotated[str, Field(max_length=512)] | None,
        BeforeValidator(_absent),
        Field(validation_alias="Session ID"),
    ] = None
    elapsed: Annotated[
        float,
        BeforeValidator(lambda value: value or 0),
        Field(ge=0, allow_inf_nan=False, validation_alias="Elapsed time"),
    ] = 0.0


_row = TypeAdapter(_Row)
