"""Whether the rows of a trace agree with one another, looked at one by one and in little memory."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict

import numpy as np
from pydantic import TypeAdapter, ValidationError

from suite.errors import BadInput, did_you_mean
from suite.trace_records import (
    HEAVIEST,
    LIGHTEST,
    MOST_LETTERS,
    MOST_SECONDS,
    MOST_TOKENS,
    REPLY,
    Header,
    Request,
    Row,
    Spelled,
)
from suite.validation import first_problem

_requests = TypeAdapter(Request)


def agreeing(
    header: Header, rows: Iterable[tuple[int, Row]], place: Callable[[int], str]
) -> Iterator[tuple[int, Row]]:
    """The numbered rows as they come, each once it is seen to agree with those before it.

    Names and numbers are within the bounds of a file that can be read again, ids are unique, `after` names
    earlier requests, a reply segment belongs to an ancestor and has the length of its output, a client has
    one weight, `misbehaving` names clients of the trace, and a segment with real token ids stands in a prompt
    and has enough of them. Raises `BadInput` naming the place of row i by `place(i)`, that of the header by
    `place(-1)`.
    """
    ledger = _Ledger()
    i = -1
    for i, row in rows:
        problem = ledger.take(row)
        if problem:
            raise BadInput(f"{place(i)}: {problem}")
        yield i, row
    if not ledger.weights:
        raise BadInput(f"{place(i + 1)}: the trace holds no requests; a trace needs at least one")
    for problem in ledger.left_open(header):
        raise BadInput(f"{place(-1)}: {problem}")


class _Ledger:
    """What has to be remembered of the rows: about 250 bytes a request, which are numbered in file order."""

    def __init__(self) -> None:
        self.weights: dict[str, float] = {}
        self._numbers: dict[str, int] = {}
        self._outputs = array("q")
        self._parents: list[tuple[int, ...]] = []
        self._spelled: dict[str, int] = {}
        self._unused: set[str] = set()

    def take(self, row: Row) -> str | None:
        """Note a row, unless it disagrees: then say how."""
        return self._take_request(row) if isinstance(row, Request) else self._take_spelled(row)

    def left_open(self, header: Header) -> Iterator[str]:
        """What can only be seen at the end."""
        for name in header.misbehaving:
            if name not in self.weights:
                yield f"misbehaving: {name!r} is no client; {did_you_mean(name, self.weights)}"
        for id in sorted(self._unused):
            yield f"segment {id!r} has token ids, but stands in no prompt; leave it out"

    def _take_spelled(self, row: Spelled) -> str | None:
        if self._numbers:
            return f"segment {row.segment!r} stands after a request; list all token ids before the requests"
        last = next(reversed(self._spelled), "")
        if row.segment <= last:
            return f"segment {row.segment!r} stands after {last!r}; list them by id, each once"
        if row.segment.startswith(REPLY):
            return f"segment {row.segment!r} is a reply, whose tokens the engine makes; leave it out"
        if row.tokens.dtype != np.int32 or row.tokens.ndim != 1 or (row.tokens < 0).any():
            return f"segment {row.segment!r}: token ids are whole numbers from 0 below 2**31 in one row"
        if len(row.tokens) > MOST_TOKENS:
            return f"segment {row.segment!r}: {len(row.tokens)} token ids are more than {MOST_TOKENS}"
        self._spelled[row.segment] = len(row.tokens)
        self._unused.add(row.segment)
        return None

    def _take_request(self, request: Request) -> str | None:
        problem = (
            _excessive(request)
            or self._unfit(request)
            or self._misquoted(request)
            or self._unspelled(request)
        )
        if problem is None:
            self._numbers[request.id] = len(self._numbers)
            self._outputs.append(request.output_tokens)
            self._parents.append(tuple(self._numbers[parent] for parent in request.after))
        return problem

    def _unfit(self, request: Request) -> str | None:
        if request.id in self._numbers:
            return f"id {request.id!r} stands twice; ids must be unique"
        for parent in request.after:
            if parent not in self._numbers:
                return f"`after` names {parent!r}, which is not an earlier request; list it before this one"
        weight = self.weights.setdefault(request.client, request.weight)
        if weight != request.weight:
            return (
                f"client {request.client!r} has weight {request.weight:g} here and {weight:g} before; "
                f"a client has one weight"
            )
        return None

    def _misquoted(self, request: Request) -> str | None:
        """What is wrong with the replies that stand in the prompt."""
        replies = [(id, tokens) for id, tokens in request.prompt if id.startswith(REPLY)]
        if not replies:
            return None
        sources = [self._numbers.get(id.removeprefix(REPLY), -1) for id, _ in replies]
        missing = self._not_before(request, set(sources))
        for (id, tokens), source in zip(replies, sources, strict=True):
            if source in missing:
                return f"segment {id!r} is the reply to a request that this one does not come after"
            if self._outputs[source] != tokens:
                return f"segment {id!r} has {tokens} tokens, but that reply has {self._outputs[source]}"
        return None

    def _not_before(self, request: Request, wanted: set[int]) -> set[int]:
        """Those of the wanted requests that this one does not come after; nearest ancestors come first."""
        todo = deque(self._numbers[parent] for parent in request.after)
        seen: set[int] = set()
        while todo and wanted:
            ancestor = todo.popleft()
            if ancestor not in seen:
                seen.add(ancestor)
                wanted.discard(ancestor)
                todo.extend(self._parents[ancestor])
        return wanted

    def _unspelled(self, request: Request) -> str | None:
        """What is wrong with the real token ids of the prompt's segments."""
        for id, tokens in request.prompt if self._spelled else ():
            known = self._spelled.get(id, tokens)
            if known < tokens:
                return f"segment {id!r} has {tokens} tokens here, but only {known} token ids"
            self._unused.discard(id)
        return None


def _excessive(request: Request) -> str | None:
    """What a reader of the file would refuse, in its words."""
    if _within_bounds(request):
        return None
    try:
        _requests.validate_python(asdict(request) | {"prompt": [*map(tuple, request.prompt)]})
    except ValidationError as error:
        return first_problem(error)
    return None


def _within_bounds(request: Request) -> bool:
    """What the reader's types say of a request, looked at in a fraction of the time."""
    for id, tokens in request.prompt:
        if not (0 < len(id) <= MOST_LETTERS and 0 < tokens <= MOST_TOKENS):
            return False
    return (
        bool(request.prompt)
        and 0 < len(request.id) <= MOST_LETTERS
        and 0 < len(request.client) <= MOST_LETTERS
        and (request.session is None or 0 < len(request.session) <= MOST_LETTERS)
        and 0 < request.output_tokens <= MOST_TOKENS
        and 0 <= request.arrival <= MOST_SECONDS
        and 0 <= request.think <= MOST_SECONDS
        and LIGHTEST <= request.weight <= HEAVIEST
        and -(2**31) <= request.priority <= 2**31
    )
