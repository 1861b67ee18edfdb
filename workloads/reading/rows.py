"""The rows of public traces, as JSON lines or CSV: each one checked, a wrong one told by line and field."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from suite.errors import BadInput
from suite.trace import MOST_TOKENS
from suite.validation import first_problem
from workloads.parts.part import MOST_REQUESTS

Row = TypeVar("Row")
Line = TypeVar("Line")
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
"""Tokens of a recorded request."""
FewTokens = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
"""The same, none if it failed."""
Number = Annotated[int, Field(ge=-(2**63), lt=2**64)]
"""What something is known by: a hash, or a count."""


class Exchange(Protocol):
    """A row that says how long a prompt and its reply were."""

    @property
    def input_tokens(self) -> int:
        """Tokens of the prompt."""

    @property
    def output_tokens(self) -> int:
        """Tokens of the reply."""


def succeeded(row: Exchange) -> bool:
    """Whether a row has a prompt and a reply; the others failed, are dropped, and are counted."""
    return row.input_tokens > 0 and row.output_tokens > 0


def dropped(rows: Sequence[Exchange]) -> dict[str, int]:
    """How many rows did not succeed, for the counts of a header."""
    return {"rows_without_tokens": sum(not succeeded(row) for row in rows)}


def none_left(place: str, counts: Mapping[str, int]) -> BadInput:
    """The error when none of the rows is to be replayed; `counts` says what they are."""
    rows = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in sorted(counts.items()))
    return BadInput(f"{place}: no row is left to replay ({rows or 'it is empty'}); give other rows, or more")


def json_rows(
    path: Path,
    adapter: TypeAdapter[Row],
    limit: int | None = None,
    problem: Callable[[Row], str | None] = lambda row: None,
) -> Iterator[Row]:
    """The rows of a file of JSON lines, the first `limit` of them.

    `problem` says what is wrong with a row whose fields are right one by one. Raises `BadInput` naming file,
    line and field.
    """
    with path.open("rb") as file:
        for number, line in enumerate(_first(file, limit, path), start=1):
            try:
                row = adapter.validate_json(line)
            except ValidationError as error:
                raise BadInput(f"{path}:{number}: {first_problem(error)}") from None
            wrong = problem(row)
            if wrong:
                raise BadInput(f"{path}:{number}: {wrong}")
            yield row


def csv_rows(
    path: Path, adapter: TypeAdapter[Row], headers: Sequence[Sequence[str]], limit: int | None = None
) -> Iterator[Row]:
    """The rows of a CSV file whose first line is one of `headers`, the first `limit` of them.

    Raises `BadInput` naming file, line and column.
    """
    with _csv(path) as lines:
        names = next(lines, (1, []))[1]
        if names not in [list(header) for header in headers]:
            wanted = " or ".join(repr(",".join(header)) for header in headers)
            raise BadInput(f"{path}:1: the columns are {','.join(names)!r}; they must be {wanted}")
        for number, values in _first(lines, limit, path):
            yield _checked(adapter, names, values, f"{path}:{number}")


def untitled_csv_rows(path: Path, adapter: TypeAdapter[Row], names: Sequence[str]) -> Iterator[Row]:
    """The rows of a CSV file without a header, whose columns are `names`. Raises as `csv_rows` does."""
    with _csv(path) as lines:
        for number, values in lines:
            yield _checked(adapter, names, values, f"{path}:{number}")


@contextmanager
def _csv(path: Path) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """The lines of a file, numbered and cut at commas."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        try:
            yield ((rows.line_num, values) for values in rows)
        except (UnicodeDecodeError, csv.Error) as error:
            raise BadInput(f"{path}: cannot be read as CSV: {error}") from None


def _first(lines: Iterable[Line], limit: int | None, path: Path) -> Iterator[Line]:
    """The first `limit` lines. Raises `BadInput` if they are more than a trace may have."""
    for number, line in enumerate(islice(lines, limit)):
        if number == MOST_REQUESTS:
            raise BadInput(f"{path}: has more than {MOST_REQUESTS:,} rows; keep the first ones with `limit`")
        yield line


def _checked(adapter: TypeAdapter[Row], names: Sequence[str], values: Sequence[str], place: str) -> Row:
    if len(values) != len(names):
        raise BadInput(f"{place}: {len(values)} values for {len(names)} columns")
    record: dict[str, Any] = dict(zip(names, values, strict=True))
    try:
        return adapter.validate_python(record)
    except ValidationError as error:
        raise BadInput(f"{place}: {first_problem(error)}") from None
