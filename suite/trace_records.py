"""What a trace is made of, and the bytes that stand for each part in files and in digests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from suite.errors import BadInput
from suite.validation import first_problem

SCHEMA = 1
REPLY = "reply:"

MOST_TOKENS = 10_000_000
"""Tokens that a segment or an output has at most."""
MOST_SECONDS = 1e9
"""The latest arrival, and the longest think time."""
LIGHTEST, HEAVIEST = 1e-6, 1e6
"""The bounds of a client's weight."""
MOST_LETTERS = 512
"""The length of an id or a name."""

Name = Annotated[str, Field(min_length=1, max_length=MOST_LETTERS)]
TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
_Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS, strict=True)]
_Seconds = Annotated[float, Field(ge=0, le=MOST_SECONDS, allow_inf_nan=False)]


class Segment(NamedTuple):
    """The first `tokens` tokens of the endless token stream named `id`.

    Two segments of one id and different lengths therefore share a prefix. An id `reply:<request id>` stands
    for the output of that earlier request.
    """

    id: Name
    tokens: _Tokens


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace.

    It is sent at `arrival` (seconds from the start of the trace) or, if that is later, `think` seconds after
    the last of the requests named in `after` has finished. It asks for exactly `output_tokens` tokens.
    `weight` is its client's share; all requests of a client carry the same one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: Name
    client: Name
    arrival: _Seconds
    prompt: Annotated[tuple[Segment, ...], Field(min_length=1)]
    output_tokens: _Tokens
    session: Name | None = None
    after: tuple[Name, ...] = ()
    think: _Seconds = 0.0
    weight: Annotated[float, Field(ge=LIGHTEST, le=HEAVIEST, allow_inf_nan=False)] = 1.0
    priority: Annotated[int, Field(ge=-(2**31), le=2**31, strict=True)] = 0

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in tokens, replies included."""
        return sum(segment.tokens for segment in self.prompt)


class Spelled(NamedTuple):
    """The real token ids of a segment, shape (n,): its longest use in the trace takes n of them or fewer."""

    segment: str
    tokens: NDArray[np.int32]


Row: TypeAlias = Request | Spelled
"""What follows the header: first all that is spelled, by segment id, then the requests."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a trace says of itself.

    `choices` records every synthetic decision (how clients were assigned, how quantised arrivals were
    spread, ...), so that a reader can tell measured facts from made ones. `misbehaving` names the clients
    whose latency is reported apart.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: Name
    seed: int
    generator: Name
    choices: dict[str, Any] = field(default_factory=dict)
    misbehaving: tuple[Name, ...] = ()


# -- canonical bytes: keys in alphabetical order, defaults left out, no spaces, one line -------------------

_encoded = msgspec.json.Encoder().encode
_header = TypeAdapter(Header)


def header_line(header: Header, **more: str | int) -> bytes:
    """The header as one line of JSON, with `more` beside its fields."""
    record = asdict(header) | more
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def row_line(row: Row) -> bytes:
    """A row as one line of JSON."""
    return _encoded(_record(row) if isinstance(row, Request) else _spelled(row)) + b"\n"


def _record(request: Request) -> dict[str, Any]:
    record: dict[str, Any] = {"after": request.after} if request.after else {}
    record["arrival"] = float(request.arrival)
    record["client"] = request.client
    record["id"] = request.id
    record["output_tokens"] = request.output_tokens
    if request.priority:
        record["priority"] = request.priority
    record["prompt"] = request.prompt
    if request.session is not None:
        record["session"] = request.session
    if request.think:
        record["think"] = float(request.think)
    if request.weight != 1.0:
        record["weight"] = float(request.weight)
    return record


def _spelled(row: Spelled) -> dict[str, Any]:
    return {"segment": row.segment, "tokens": row.tokens.tolist()}


def header_of(text: str | bytes, place: str, spot: str) -> tuple[Header, str | None]:
    """The header that a file's text holds, and the digest that stands in it.

    Raises `BadInput` beginning with `place`; `spot` says where in a file the header has to be.
    """
    try:
        record = from_json(text)
    except ValueError as error:
        raise BadInput(f"{place}: the header is not JSON: {error}") from None
    if not isinstance(record, Mapping) or "suite_trace" not in record:
        raise BadInput(
            f'{place}: not a trace of this suite: {spot} must be a header with "suite_trace": '
            f"{SCHEMA} (for a public trace use `suite workload import`)"
        )
    fields = dict(record)
    if fields.pop("suite_trace") != SCHEMA:
        raise BadInput(f"{place}: trace schema is not {SCHEMA}, the one this version of the suite reads")
    digest = fields.pop("digest", None)
    try:
        return _header.validate_python(fields), digest
    except ValidationError as error:
        raise BadInput(f"{place}: {first_problem(error)}") from None
