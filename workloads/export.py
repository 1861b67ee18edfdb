"""Traces of the suite in the formats of others: a line of JSON a request, prompts as hash ids of blocks.

`mooncake`: `timestamp` (whole ms), `input_length`, `output_length` and `hash_ids` of 512-token blocks, as in
Mooncake's FAST'25 release and AIPerf's `mooncake_trace`. `timed-trace`: `timestamp` in seconds and 16-token
blocks, the defaults of vLLM's `timed_trace`, and each request linked to the one it comes after as in
Qwen-Bailian's traces (`chat_id`, `parent_chat_id`, `turn`); vLLM passes over these.

Equal hash ids stand for equal tokens after equal beginnings; they are numbered in order of first use. The
last block of a prompt may be partial: its id is met again only where a whole prompt is. The `session_id` of
AIPerf is not written: AIPerf adds the turns of a session up, and here each row is a whole prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from suite.errors import BadInput, did_you_mean
from suite.files import write_atomically
from suite.trace import REPLY, Request, Segment, Trace
from workloads.programs import earliest

ROOT = -1
"""The parent of a request that comes after none."""


class Placed(NamedTuple):
    """A request as a row: when it is sent (s) if replies take no time, its number, its parent's, its turn."""

    request: Request
    time: float
    number: int
    parent: int
    turn: int


class Format(NamedTuple):
    """A format: how many tokens a hash id stands for, and the fields of a row before its hash ids."""

    block: int
    fields: Callable[[Placed], dict[str, Any]]


def _lengths(request: Request) -> dict[str, Any]:
    return {"input_length": request.prompt_tokens, "output_length": request.output_tokens}


def _mooncake(row: Placed) -> dict[str, Any]:
    return {"timestamp": round(row.time * 1000), **_lengths(row.request)}


def _timed_trace(row: Placed) -> dict[str, Any]:
    links = {"chat_id": row.number, "parent_chat_id": row.parent}
    return links | {"timestamp": round(row.time, 6), **_lengths(row.request), "turn": row.turn}


FORMATS: Mapping[str, Format] = MappingProxyType(
    {"mooncake": Format(512, _mooncake), "timed-trace": Format(16, _timed_trace)}
)
"""The formats by name."""


def named(name: str) -> Format:
    """The format of that name. Raises `BadInput` naming the nearest."""
    if name not in FORMATS:
        raise BadInput(f"no format {name!r}; {did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def write(trace: Trace, path: Path, format: Format, block: int) -> int:
    """Write the trace with hash ids of `block` tokens each, atomically; how many different ids there are."""
    ids = HashIds(block)
    lines = (
        orjson.dumps(format.fields(row) | {"hash_ids": ids.of(row.request.prompt)}) + b"\n"
        for row in _placed(trace.requests)
    )

    def fill(draft: Path) -> None:
        with draft.open("wb") as file:
            file.writelines(lines)

    write_atomically(path, fill)
    return len(ids)


def lost(trace: Trace) -> list[str]:
    """What the trace has that no format holds, in words."""
    requests = trace.requests
    grouped = sum(request.session is not None for request in requests)
    waiting = sum(bool(request.after) for request in requests)
    replies = sum(any(id.startswith(REPLY) for id, _ in request.prompt) for request in requests)
    there: dict[str, object] = {
        f"the names of {len(trace.clients)} clients": len(trace.clients) > 1,
        "weights": any(request.weight != 1 for request in requests),
        "priorities": any(request.priority for request in requests),
        f"the sessions of {grouped} of {len(requests)}": grouped,
        f"how {waiting} of {len(requests)} wait for replies (they stand at their earliest times)": waiting,
        f"that {replies} of {len(requests)} prompts hold replies (as tokens like any others)": replies,
        "real token ids": trace.tokens,
    }
    return [what for what, holds in there.items() if holds]


def _placed(requests: Sequence[Request]) -> Iterator[Placed]:
    """The requests in order of time; of several parents, the last in that order is named."""
    times = earliest(requests)
    numbers: dict[str, int] = {}
    turns: dict[str, int] = {}
    for place in sorted(range(len(requests)), key=times.__getitem__):
        request = requests[place]
        parent = max(request.after, key=numbers.__getitem__, default=None)
        numbers[request.id] = len(numbers)
        turns[request.id] = 1 + (turns[parent] if parent else 0)
        above = numbers[parent] if parent else ROOT
        yield Placed(request, times[place], numbers[request.id], above, turns[request.id])


# -- hash ids ----------------------------------------------------------------------------------------------

_Pieces = tuple[tuple[str, int, int], ...]
"""What an unfinished block is made of: segments, and where their tokens in it begin and end."""


class HashIds:
    """Numbers for the blocks of prompts: equal where prompts are equal up to the end of the block."""

    def __init__(self, block: int) -> None:
        self._block = block
        self._runs: defaultdict[tuple[int, _Pieces, str], list[int]] = defaultdict(list)
        self._partial: dict[tuple[int, _Pieces], int] = {}
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def of(self, prompt: Sequence[Segment]) -> list[int]:
        """The numbers of a prompt's blocks, in order."""
        numbers: list[int] = []
        begun: _Pieces = ()
        room = self._block
        for id, tokens in prompt:
            whole = (tokens - room) // self._block + 1
            numbers += self._run((_last(numbers), begun, id), whole)
            done = room + (whole - 1) * self._block if whole else 0
            rest = ((id, done, tokens),) if tokens > done else ()
            begun = rest if whole else begun + rest
            room = (self._block if whole else room) - (tokens - done)
        if begun:
            numbers.append(self._end((_last(numbers), begun)))
        return numbers

    def _run(self, start: tuple[int, _Pieces, str], blocks: int) -> list[int]:
        """The first blocks that are finished by a segment, after a block and the beginning of the next."""
        run = self._runs[start]
        run.extend(self._new() for _ in range(len(run), blocks))
        return run[:blocks]

    def _end(self, end: tuple[int, _Pieces]) -> int:
        """The partial block that ends a prompt."""
        if end not in self._partial:
            self._partial[end] = self._new()
        return self._partial[end]

    def _new(self) -> int:
        self._used += 1
        return self._used - 1


def _last(numbers: Sequence[int]) -> int:
    return numbers[-1] if numbers else -1
