"""Traces as Parquet: the header in the schema's metadata, one row for each row of the trace.

A file with real token ids has two columns more, `segment` and `tokens`; a row fills either these two or the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from suite.errors import BadInput, did_you_mean
from suite.trace_records import (
    MOST_LETTERS,
    Header,
    Request,
    Row,
    Segment,
    Spelled,
    header_of,
)
from suite.validation import first_problem

FIRST = 1
"""The number of the first row."""

_METADATA = b"suite"
_GROUP = 1 << 17
"""Segments of prompts in a row group, about; token ids are 64 times as many."""
_BATCH = 4096
"""Rows that are read at once."""

_REQUEST = pa.schema(
    [
        ("id", pa.string()),
        ("client", pa.string()),
        ("arrival", pa.float64()),
        ("prompt", pa.list_(pa.struct([("id", pa.string()), ("tokens", pa.int64())]))),
        ("output_tokens", pa.int64()),
        ("session", pa.string()),
        ("after", pa.list_(pa.string())),
        ("think", pa.float64()),
        ("weight", pa.float64()),
        ("priority", pa.int64()),
    ]
)
_SPELLED = pa.schema([("segment", pa.string()), ("tokens", pa.list_(pa.int32()))])
_SPELLED_NAMES = frozenset(_SPELLED.names)
_ALL = pa.unify_schemas([_REQUEST, _SPELLED])
_NEEDED = ("id", "client", "arrival", "prompt", "output_tokens")

_requests = TypeAdapter(Request)
_T = TypeVar("_T")


# -- writing -----------------------------------------------------------------------------------------------


def write(path: Path, header: bytes, spelled: Sequence[Spelled], requests: Sequence[Request]) -> None:
    """Write the line of the header and the rows, in groups of bounded size."""
    schema = (_ALL if spelled else _REQUEST).with_metadata({_METADATA: header})
    tables = chain(
        map(_spelled_columns, _runs(spelled, lambda row: len(row.tokens), 64 * _GROUP)),
        map(_request_columns, _runs(requests, lambda request: len(request.prompt), _GROUP)),
    )
    with pq.ParquetWriter(path, schema) as file:
        for columns in tables:
            length = len(next(iter(columns.values())))
            file.write_table(
                pa.table(
                    [columns.get(field.name, pa.nulls(length, field.type)) for field in schema], schema=schema
                )
            )


def _runs(items: Iterable[_T], size: Callable[[_T], int], most: int) -> Iterator[list[_T]]:
    """The items in runs of at least one, each ended when the sizes in it reach `most`."""
    run: list[_T] = []
    total = 0
    for item in items:
        run.append(item)
        total += size(item)
        if total >= most:
            yield run
            run, total = [], 0
    if run:
        yield run


def _spelled_columns(rows: Sequence[Spelled]) -> dict[str, pa.Array]:
    ids = np.concatenate([row.tokens for row in rows])
    return {
        "segment": pa.array([row.segment for row in rows], pa.string()),
        "tokens": pa.ListArray.from_arrays(_offsets(len(row.tokens) for row in rows), pa.array(ids)),
    }


def _request_columns(requests: Sequence[Request]) -> dict[str, pa.Array]:
    plain = {
        field.name: pa.array([getattr(request, field.name) for request in requests], field.type)
        for field in _REQUEST
        if field.name != "prompt"
    }
    return plain | {"prompt": _prompts_column([request.prompt for request in requests])}


def _prompts_column(prompts: Sequence[Sequence[Segment]]) -> pa.Array:
    segments = list(chain.from_iterable(prompts))
    fields = _REQUEST.field("prompt").type.value_type
    parts = [pa.array([segment[i] for segment in segments], fields[i].type) for i in range(len(fields))]
    return pa.ListArray.from_arrays(
        _offsets(map(len, prompts)), pa.StructArray.from_arrays(parts, fields=list(fields))
    )


def _offsets(lengths: Iterable[int]) -> pa.Array:
    return pa.array(np.cumsum([0, *lengths], dtype=np.int32))


# -- reading -----------------------------------------------------------------------------------------------


def head(path: Path) -> tuple[Header, str | None]:
    """The header and the digest that stands in it. Raises `BadInput` too if the columns are not a trace's."""
    schema = pq.read_schema(path)
    text = (schema.metadata or {}).get(_METADATA, b"null")
    header = header_of(text, f"{path} (header)", "the schema's metadata `suite`")
    _check_columns(schema, path)
    return header


def rows(path: Path, place: Callable[[int], str]) -> Iterator[tuple[int, Row]]:
    """The rows, numbered from 0, read some thousand at a time. Raises `BadInput` naming a wrong one."""
    with pq.ParquetFile(path) as file:
        records = chain.from_iterable(map(_records, file.iter_batches(_BATCH)))
        for i, record in enumerate(records):
            try:
                row = (
                    _spelled(record) if record.keys() & _SPELLED_NAMES else _requests.validate_python(record)
                )
            except ValidationError as error:
                raise BadInput(f"{place(i)}: {first_problem(error)}") from None
            except ValueError as error:
                raise BadInput(f"{place(i)}: {error}") from None
            yield i, row


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows of a batch without their nulls."""
    columns = [_values(name, batch.column(name)) for name in batch.schema.names]
    for row in zip(*columns, strict=True):
        yield {name: value for name, value in zip(batch.schema.names, row, strict=True) if value is not None}


def _values(name: str, column: pa.Array) -> Sequence[Any]:
    if name == "prompt":
        return _prompts(column.cast(_REQUEST.field("prompt").type))
    if name == "tokens" and not pa.types.is_null(column.type):
        return [ids.values for ids in column]
    values: list[Any] = column.to_pylist()
    return values


def _prompts(column: pa.Array) -> list[list[tuple[Any, Any]] | None]:
    ids, tokens = (part.to_pylist() for part in column.values.flatten())
    segments = list(zip(ids, tokens, strict=True))
    return [segments[begin:end] or None for begin, end in pairwise(column.offsets.to_pylist())]


def _spelled(record: Mapping[str, Any]) -> Spelled:
    """A row of token ids. Raises `ValueError`."""
    for name in record:
        if name not in _SPELLED_NAMES:
            raise ValueError(f"{name}: stands in a row of token ids; fill `segment` and `tokens` alone")
    id, ids = record.get("segment", ""), record.get("tokens", ())
    if not 1 <= len(id) <= MOST_LETTERS:
        raise ValueError(f"segment: a name has from 1 to {MOST_LETTERS} characters, this one {len(id)}")
    if not len(ids) or ids.null_count:
        raise ValueError("tokens: missing; a segment that is named needs its token ids")
    found = ids.to_numpy()
    wrong = found[(found < 0) | (found >= 2**31)]
    if len(wrong):
        raise ValueError(f"tokens: {wrong[0]} is no token id; they are whole numbers from 0 below 2**31")
    return Spelled(id, found.astype(np.int32))


def _check_columns(schema: pa.Schema, path: Path) -> None:
    for name in schema.names:
        if name not in _ALL.names:
            raise BadInput(f"{path}: column {name!r}: unknown; {did_you_mean(name, _ALL.names)}")
        wanted = _ALL.field(name).type
        if schema.names.count(name) > 1 or not _fits(schema.field(name).type, wanted):
            found = ", ".join(str(one.type) for one in schema if one.name == name)
            raise BadInput(f"{path}: column {name!r}: is {found}; it must be {wanted}")
    for name in _NEEDED:
        if name not in schema.names:
            raise BadInput(f"{path}: column {name!r}: missing; it must be {_ALL.field(name).type}")


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of one type can be read as the other: same kind, any width. All null fits any."""
    of = pa.types
    if of.is_null(found):
        return True
    if of.is_list(wanted):
        return (of.is_list(found) or of.is_large_list(found)) and _fits(found.value_type, wanted.value_type)
    if of.is_struct(wanted):
        return (
            of.is_struct(found)
            and sorted(f.name for f in found) == sorted(f.name for f in wanted)
            and all(_fits(found.field(field.name).type, field.type) for field in wanted)
        )
    if of.is_string(wanted):
        return bool(of.is_string(found) or of.is_large_string(found))
    return bool(of.is_integer(found) or (of.is_floating(wanted) and of.is_floating(found)))
