"""The trace: the one record everything flows through.

A trace is a header and a list of requests. Prompts carry no text: a prompt is a list of *segments*, and two
prompts share a prefix exactly as far as their segments agree. A segment may be the reply to an earlier
request, so chats and programs replay closed-loop with the tokens that were really generated.

On disk a trace is JSON lines (header first; `.jsonl`, or `.jsonl.gz`) or Parquet (`.parquet`, header in the
schema's metadata). Both hold the same bytes of content and so the same digest.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from suite.errors import BadInput, did_you_mean
from suite.files import write_atomically

SCHEMA = 1
REPLY = "reply:"

_Name = Annotated[str, Field(min_length=1, max_length=512)]
MOST_TOKENS = 10_000_000
"""Tokens that a segment or an output has at most."""
MOST_SECONDS = 1e9
"""The latest arrival, and the longest think time."""
LIGHTEST, HEAVIEST = 1e-6, 1e6
"""The bounds of a client's weight."""

_Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS, strict=True)]
_Seconds = Annotated[float, Field(ge=0, le=MOST_SECONDS, allow_inf_nan=False)]


class Segment(NamedTuple):
    """The first `tokens` tokens of the endless token stream named `id`.

    Two segments of one id and different lengths therefore share a prefix. An id `reply:<request id>` stands
    for the output of that earlier request.
    """

    id: _Name
    tokens: _Tokens


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace.

    It is sent at `arrival` (seconds from the start of the trace) or, if that is later, `think` seconds after
    the last of the requests named in `after` has finished. It asks for exactly `output_tokens` tokens.
    `weight` is its client's share; all requests of a client carry the same one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: _Name
    client: _Name
    arrival: _Seconds
    prompt: Annotated[tuple[Segment, ...], Field(min_length=1)]
    output_tokens: _Tokens
    session: _Name | None = None
    after: tuple[_Name, ...] = ()
    think: _Seconds = 0.0
    weight: Annotated[float, Field(ge=LIGHTEST, le=HEAVIEST, allow_inf_nan=False)] = 1.0
    priority: Annotated[int, Field(ge=-(2**31), le=2**31, strict=True)] = 0

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in tokens, replies included."""
        return sum(segment.tokens for segment in self.prompt)


@dataclass(frozen=True, slots=True)
class Header:
    """What a trace says of itself.

    `choices` records every synthetic decision (how clients were assigned, how quantised arrivals were
    spread, ...), so that a reader can tell measured facts from made ones. `misbehaving` names the clients
    whose latency is reported apart.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: _Name
    seed: int
    generator: _Name
    choices: dict[str, Any] = field(default_factory=dict)
    misbehaving: tuple[_Name, ...] = ()


@dataclass(frozen=True)
class Trace:
    """A header and its requests, in file order. Ties in arrival are served in this order."""

    header: Header
    requests: tuple[Request, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical form of header and requests: equal digests, equal traces."""
        sha = hashlib.sha256(_canonical(asdict(self.header)))
        for request in self.requests:
            sha.update(_canonical(_record(request)))
        return sha.hexdigest()

    @property
    def clients(self) -> tuple[str, ...]:
        """Client names, sorted."""
        return tuple(sorted({request.client for request in self.requests}))


def checked(trace: Trace, where: Callable[[int], str] | None = None) -> Trace:
    """Return the trace if its requests agree with one another, else raise `BadInput`.

    Ids are unique, `after` names earlier requests, a reply segment belongs to an ancestor and has the length
    of its output, a client has one weight, and `misbehaving` names clients of the trace. `where(i)` names the
    place of request i in a message, that of the header for i = -1.
    """
    place = where or (lambda i: "header" if i < 0 else f"request {i + 1}")
    seen: dict[str, Request] = {}
    weights: dict[str, float] = {}
    for i, request in enumerate(trace.requests):
        problem = _disagreement(request, seen, weights)
        if problem:
            raise BadInput(f"{place(i)}: {problem}")
        seen[request.id] = request
        weights[request.client] = request.weight
    if not seen:
        raise BadInput(f"{place(0)}: the trace holds no requests; a trace needs at least one")
    for name in trace.header.misbehaving:
        if name not in weights:
            raise BadInput(f"{place(-1)}: misbehaving: {name!r} is no client; {did_you_mean(name, weights)}")
    return trace


def _disagreement(request: Request, seen: dict[str, Request], weights: dict[str, float]) -> str | None:
    if request.id in seen:
        return f"id {request.id!r} stands twice; ids must be unique"
    for parent in request.after:
        if parent not in seen:
            return f"`after` names {parent!r}, which is not an earlier request; list it before this one"
    if weights.get(request.client, request.weight) != request.weight:
        return (
            f"client {request.client!r} has weight {request.weight:g} here and "
            f"{weights[request.client]:g} before; a client has one weight"
        )
    replies = [segment for segment in request.prompt if segment.id.startswith(REPLY)]
    if not replies:
        return None
    ancestors = _ancestors(request, seen)
    for id, tokens in replies:
        source = ancestors.get(id.removeprefix(REPLY))
        if source is None:
            return f"segment {id!r} is the reply to a request that this one does not come after"
        if source.output_tokens != tokens:
            return f"segment {id!r} has {tokens} tokens, but that reply has {source.output_tokens}"
    return None


def _ancestors(request: Request, seen: dict[str, Request]) -> dict[str, Request]:
    found: dict[str, Request] = {}
    todo = list(request.after)
    while todo:
        parent = todo.pop()
        if parent not in found:
            found[parent] = seen[parent]
            todo += seen[parent].after
    return found


# -- reading and writing ---------------------------------------------------------------------------------

_requests = TypeAdapter(Request)
_header = TypeAdapter(Header)


def read(path: Path) -> Trace:
    """Read and check a trace. Raises `BadInput` naming the file and, for JSON lines, the line."""
    if not path.is_file():
        raise BadInput(f"{path}: no such trace file")
    try:
        trace, digest, first = _read_parquet(path) if path.suffix == ".parquet" else _read_lines(path)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, pa.ArrowException) as error:
        raise BadInput(f"{path}: cannot be read as a trace: {' '.join(str(error).split())}") from error
    checked(trace, lambda i: f"{path}:{first + i}" if first + i else f"{path} (header)")
    if digest is not None and digest != trace.digest:
        raise BadInput(
            f"{path}: the content does not match the header's digest; the file was edited or damaged "
            f"(drop the header's `digest` if the edit was meant)"
        )
    return trace


def write(trace: Trace, path: Path) -> None:
    """Write a trace atomically as JSON lines (`.jsonl`, `.jsonl.gz`) or Parquet (`.parquet`)."""
    if path.suffix == ".parquet":
        write_atomically(path, lambda file: _write_parquet(trace, file))
    elif path.name.endswith(".jsonl.gz"):
        write_atomically(path, lambda file: file.write_bytes(gzip.compress(b"".join(_lines(trace)), mtime=0)))
    elif path.suffix == ".jsonl":
        write_atomically(path, lambda file: file.write_bytes(b"".join(_lines(trace))))
    else:
        raise BadInput(f"{path}: a trace file ends in .jsonl, .jsonl.gz or .parquet")


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def _record(request: Request) -> dict[str, Any]:
    """The request as it stands in a file: defaults are left out."""
    record: dict[str, Any] = {
        "id": request.id,
        "client": request.client,
        "arrival": float(request.arrival),
        "prompt": [[segment.id, segment.tokens] for segment in request.prompt],
        "output_tokens": request.output_tokens,
    }
    if request.session is not None:
        record["session"] = request.session
    if request.after:
        record["after"] = list(request.after)
    if request.think:
        record["think"] = float(request.think)
    if request.weight != 1.0:
        record["weight"] = float(request.weight)
    if request.priority:
        record["priority"] = request.priority
    return record


def _header_record(trace: Trace) -> dict[str, Any]:
    return {"suite_trace": SCHEMA, "digest": trace.digest, **asdict(trace.header)}


def _lines(trace: Trace) -> Iterator[bytes]:
    yield _canonical(_header_record(trace))
    for request in trace.requests:
        yield _canonical(_record(request))


def _parse_header(text: str | bytes, place: str, spot: str) -> tuple[Header, str | None]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{place}: the header is not JSON: {error}") from None
    if not isinstance(record, dict) or "suite_trace" not in record:
        raise BadInput(
            f'{place}: not a trace of this suite: {spot} must be a header with "suite_trace": '
            f"{SCHEMA} (for a public trace use `suite workload import`)"
        )
    if record.pop("suite_trace") != SCHEMA:
        raise BadInput(f"{place}: trace schema is not {SCHEMA}, the one this version of the suite reads")
    digest = record.pop("digest", None)
    return _validated(_header, record, place), digest


def _validated(adapter: TypeAdapter[Any], record: Any, place: str) -> Any:
    try:
        return adapter.validate_python(record)
    except ValidationError as error:
        raise BadInput(f"{place}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    spot = ".".join(str(part) for part in first["loc"]) or "record"
    return f"{spot}: {first['msg']} (got {str(first.get('input'))[:60]!r})"


def _read_lines(path: Path) -> tuple[Trace, str | None, int]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        header, digest = _parse_header(file.readline(), f"{path}:1", "the first line")
        requests = []
        for number, line in enumerate(file, start=2):
            try:
                requests.append(_requests.validate_json(line))
            except ValidationError as error:
                raise BadInput(f"{path}:{number}: {_first_problem(error)}") from None
    return Trace(header, tuple(requests)), digest, 2


_PARQUET = pa.schema(
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


def _write_parquet(trace: Trace, path: Path) -> None:
    rows = (
        asdict(replace(request, prompt=())) | {"prompt": [segment._asdict() for segment in request.prompt]}
        for request in trace.requests
    )
    schema = _PARQUET.with_metadata({"suite": _canonical(_header_record(trace))})
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


def _read_parquet(path: Path) -> tuple[Trace, str | None, int]:
    table = pq.read_table(path)
    text = (table.schema.metadata or {}).get(b"suite", b"null")
    header, digest = _parse_header(text, f"{path} (header)", "the schema's metadata `suite`")
    _check_columns(table.schema, path)
    requests = []
    for number, nullable in enumerate(table.to_pylist(), start=1):
        row = {name: value for name, value in nullable.items() if value is not None}
        row["prompt"] = [
            tuple(map((segment or {}).get, Segment._fields)) for segment in row.get("prompt", ())
        ]
        requests.append(_validated(_requests, row, f"{path}:{number}"))
    return Trace(header, tuple(requests)), digest, 1


def _check_columns(schema: pa.Schema, path: Path) -> None:
    for name in schema.names:
        if name not in _PARQUET.names:
            raise BadInput(f"{path}: column {name!r}: unknown; {did_you_mean(name, _PARQUET.names)}")
        wanted = _PARQUET.field(name).type
        if schema.names.count(name) > 1 or not _fits(schema.field(name).type, wanted):
            found = ", ".join(str(one.type) for one in schema if one.name == name)
            raise BadInput(f"{path}: column {name!r}: is {found}; it must be {wanted}")
    for name in ("id", "client", "arrival", "prompt", "output_tokens"):
        if name not in schema.names:
            raise BadInput(f"{path}: column {name!r}: missing; it must be {_PARQUET.field(name).type}")


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
