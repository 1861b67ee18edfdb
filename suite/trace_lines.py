"""Traces as JSON lines: the header, then the rows; `.jsonl`, or `.jsonl.gz`."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, cast

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from suite.errors import BadInput
from suite.trace_records import (
    MOST_TOKENS,
    Header,
    Name,
    Request,
    Row,
    Spelled,
    TokenId,
    header_of,
    row_line,
)
from suite.validation import first_problem

FIRST = 2
"""The line of the first row."""


def head(path: Path) -> tuple[Header, str | None]:
    """The header and the digest that stands in it."""
    with _open(path) as file:
        return header_of(file.readline(), f"{path}:1", "the first line")


def rows(path: Path, place: Callable[[int], str]) -> Iterator[tuple[int, Row]]:
    """The rows, numbered from 0, one at a time. Raises `BadInput` naming the place of a wrong one."""
    with _open(path) as file:
        file.readline()
        for i, line in enumerate(file):
            try:
                row = _row(line)
            except ValidationError as error:
                raise BadInput(f"{place(i)}: {first_problem(error)}") from None
            yield i, row


def write(path: Path, header: bytes, spelled: Iterable[Spelled], requests: Iterable[Request]) -> None:
    """Write the line of the header and a line for each row."""
    with path.open("wb") as plain, _compressing(plain, path) as file:
        file.write(header)
        file.writelines(map(row_line, spelled))
        file.writelines(map(row_line, requests))


@contextmanager
def _compressing(file: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """The file itself, or a compressor into it that notes neither name nor time."""
    if path.suffix != ".gz":
        yield file
    else:
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0, compresslevel=6) as compressor:
            yield cast("IO[bytes]", compressor)


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


# -- rows --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Spelled:
    __pydantic_config__ = ConfigDict(extra="forbid")

    segment: Name
    tokens: Annotated[list[TokenId], Field(min_length=1, max_length=MOST_TOKENS)]


_requests = TypeAdapter(Request)
_spellings = TypeAdapter(_Spelled)


def _row(line: bytes) -> Row:
    try:
        return _requests.validate_json(line)
    except ValidationError:
        if not _is_spelled(line):
            raise
    row = _spellings.validate_json(line)
    return Spelled(row.segment, np.array(row.tokens, np.int32))


def _is_spelled(line: bytes) -> bool:
    try:
        record: Any = from_json(line)
    except ValueError:
        return False
    return isinstance(record, dict) and "segment" in record
