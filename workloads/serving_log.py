"""Serving logs: tables with a row for each request, its time, its client and its lengths; no text.

The table is a data set on the hub or a local file (.csv, .parquet, .json, .jsonl, or a folder of one kind),
and the spec says which of its columns is what. The ready spec `chutes` reads that of Chutes
(harvardMadsys/chutes_metadata; Nixon et al., "A Year in LLM Serving", arXiv 2608.13573): a year of a public
provider with its real tenants, and with the tokens that its engines found in their prefix caches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from suite.errors import BadInput, did_you_mean
from suite.trace import MOST_TOKENS, Request, Segment
from suite.validation import at, first_problem
from workloads.parts.part import Name, Part
from workloads.reading.hub import HubRows
from workloads.reading.moments import Moment
from workloads.reading.recorded import NOTHING_SHARED
from workloads.reading.rows import none_left

Key = Name | Annotated[tuple[Name, ...], Field(min_length=1)]
"""A column, or several whose values together tell things apart."""


class Columns(Part):
    """What the columns of the table are called.

    `prefix_tokens` says how many tokens of a prompt had been seen before (as found in a cache, or known by a
    hash), and `prefix` of what they are the beginning; without `prefix`, of what the client has sent.
    """

    arrival: Name
    client: Key
    input_tokens: Name
    output_tokens: Name
    session: Key | None = None
    prefix: Key | None = None
    prefix_tokens: Name | None = None

    @model_validator(mode="after")
    def _prefixes_have_lengths(self) -> Self:
        if self.prefix is not None and self.prefix_tokens is None:
            raise ValueError("prefix: it says nothing without `prefix_tokens`; name that column too")
        return self

    @cached_property
    def named(self) -> dict[str, tuple[str, ...]]:
        """The columns that are named, by field."""
        return {field: (key,) if isinstance(key, str) else key for field, key in self if key is not None}


class ServingLog(HubRows):
    """A log, replayed at its recorded times.

    `data_set` is its name on the hub, `licence` that of the data. `time` is the unit of its times; dates need
    none. `only` keeps the rows with these values, such as those of one model. Rows without a token in or out
    are requests that failed; they are left out, as are those of more tokens than a trace can hold, and both
    are counted in the header.
    """

    COLUMNS: ClassVar[Any] = dict[str, Any]

    data_set: Name | None = None
    licence: Name = "its owner's"
    columns: Columns
    time: Literal["seconds", "milliseconds"] = "seconds"
    only: dict[Name, str | int | bool] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _comes_from_somewhere(self) -> Self:
        if self.file is None and self.data_set is None:
            raise ValueError("file: missing; name a local file, or a `data_set` on the hub")
        return self

    def repository(self) -> str:
        """The data set, also where a local copy of it is read."""
        return self.data_set or "serving log"

    def terms(self) -> str:
        """The licence that the spec names."""
        return self.licence

    def choices(self) -> dict[str, Any]:
        """The parameters, the rule for prefixes, in words, and how many rows were left out and why."""
        columns = self.columns
        of = "+".join(columns.named["client" if columns.prefix is None else "prefix"])
        beginning = f"a prompt begins with the first {columns.prefix_tokens} tokens of the stream of its {of}"
        return super().choices() | {
            "prefix_rule": beginning if columns.prefix_tokens else NOTHING_SHARED,
            "counts": dict(sorted(self._log.left_out.items())),
        }

    def requests(self, seed: int) -> Iterator[Request]:
        """The rows as requests, the same under every `seed`."""
        rows = self._log.rows
        start = min(row.arrival for row in rows.values())
        for number, row in rows.items():
            id, arrival = f"row-{number:06}", round(row.arrival - start, 6)
            yield Request(id, row.client, arrival, row.prompt(id), row.output_tokens, row.session)

    @cached_property
    def _log(self) -> _Log:
        log, place = _Log({}, Counter()), self.place()
        for number, record in enumerate(self.streamed(), start=1):
            with at(f"{place}, row {number}"):
                self._check_columns(record)
                if any(_spelled(record[name]) != str(value) for name, value in self.only.items()):
                    log.left_out["other_rows"] += 1
                    continue
                row = self._row(record)
            if not (row.input_tokens and row.output_tokens):
                log.left_out["rows_without_tokens"] += 1
            elif max(row.input_tokens, row.output_tokens) > MOST_TOKENS:
                log.left_out["rows_too_long"] += 1
            else:
                log.rows[number] = row
        if not log.rows:
            raise none_left(place, log.left_out)
        return log

    @cached_property
    def _wanted(self) -> dict[str, str]:
        """The columns that must be there, and the field that names each."""
        named = self.columns.named.items()
        return {name: f"only.{name}" for name in self.only} | {
            name: f"columns.{field}" for field, names in named for name in names
        }

    def _check_columns(self, record: Mapping[str, Any]) -> None:
        missing = self._wanted.keys() - record.keys()
        for name in sorted(missing):
            raise BadInput(
                f"no column {name!r}, which `{self._wanted[name]}` names; {did_you_mean(name, record)}"
            )

    def _row(self, record: Mapping[str, Any]) -> _Row:
        named = self.columns.named
        values = {field: _value(record, names) for field, names in named.items()}
        if self.time == "milliseconds":
            values["arrival"] = _seconds(values["arrival"])
        try:
            return _row.validate_python(values)
        except ValidationError as error:
            field, _, problem = first_problem(error).partition(": ")
            raise BadInput(f"{'+'.join(named[field])}: {problem}") from None


def _value(record: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """What stands in a column; what stands in several, joined, if it stands in all."""
    values = [record[name] for name in names]
    if len(values) == 1:
        return values[0]
    return None if None in values else "/".join(map(_spelled, values))


# -- a row -------------------------------------------------------------------------------------------------


def _nothing(value: Any) -> Any:
    """0 for an empty cell: None, or not a number."""
    return 0 if value is None or value != value else value


def _seconds(value: Any) -> Any:
    """Those of a number of milliseconds; a date as it is."""
    with suppress(TypeError, ValueError):
        return float(value) / 1000
    return value


def _spelled(value: Any) -> str:
    """A value as text; whole numbers alike, as a column of them with empty cells holds floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _text(value: Any) -> Any:
    return value if value is None else _spelled(value)


_Tokens = Annotated[int, Field(ge=0), BeforeValidator(_nothing)]
_Label = Annotated[str, Field(min_length=1, max_length=400), BeforeValidator(_text)]


@dataclass(frozen=True, slots=True)
class _Row:
    arrival: Moment
    client: _Label
    input_tokens: _Tokens
    output_tokens: _Tokens
    session: _Label | None = None
    prefix: _Label | None = None
    prefix_tokens: _Tokens = 0

    def prompt(self, id: str) -> tuple[Segment, ...]:
        """What had been seen before, and what had not; either may be all of it."""
        known = min(self.prefix_tokens, self.input_tokens)
        stream = self.client if self.prefix is None else self.prefix
        parts = Segment(f"prefix:{stream}", known), Segment(f"prompt:{id}", self.input_tokens - known)
        return tuple(part for part in parts if part.tokens)


_row = TypeAdapter(_Row)


class _Log(NamedTuple):
    rows: dict[int, _Row]
    """By number, from 1."""
    left_out: Counter[str]
