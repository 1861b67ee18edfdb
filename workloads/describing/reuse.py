"""How much of a trace's prompts a prefix cache of any size finds: LRU stack distances over prefixes.

The cache holds tokens, prompts and replies alike. Requests come in file order as if each reply took no time:
a request first looks its prompt up, then touches prompt and reply from the last token to the first, so that
of one request the deeper prefix is evicted first, as the engines do. A token then hits in every cache of at
least so many tokens as its stack distance: itself and the tokens touched since it was last touched, each
once (Mattson, Gecsei, Slutz and Traiger, 1970). One pass so gives the hits of all sizes.

Tokens are never looked at one by one. Prompts are paths in a trie. Along a path the time of the last touch
never rises, so that a path falls into few *runs* last touched by one and the same request; within a run the
distance grows by one a token. Time and memory are in proportion to the segments of all requests.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workloads.describing.columns import Columns

Ints = NDArray[np.int64]
Rows = NDArray[np.int32]
"""Numbers of requests or streams, and tokens: in half the memory, there are many."""

NEVER = -1
"""The last touch of what was not touched before."""
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class Curve:
    """Hits of an LRU prefix cache over its size.

    Run i is `tokens[i]` prompt tokens with the stack distances `closer[i]` + 1, `closer[i]` + 2, ...
    """

    closer: Ints
    tokens: Ints
    prompt_tokens: int

    def ratio(self, sizes: ArrayLike) -> NDArray[np.float64]:
        """The share of all prompt tokens that hits, at cache sizes in tokens. Exact."""
        at = np.asarray(sizes)
        return (_above(self._begins, at) - _above(self._ends, at)) / self.prompt_tokens

    @property
    def limit(self) -> float:
        """The ratio of an infinite cache."""
        return float(self.tokens.sum() / self.prompt_tokens)

    @cached_property
    def enough(self) -> int:
        """The smallest cache, in tokens, that is as good as an infinite one."""
        return int((self.closer + self.tokens).max(initial=0))

    @cached_property
    def _begins(self) -> Ints:
        return np.sort(self.closer)

    @cached_property
    def _ends(self) -> Ints:
        return np.sort(self.closer + self.tokens)


def _above(points: Ints, at: NDArray[np.number]) -> NDArray[np.float64]:
    """The sum over all sorted `points` below `at` of how far they are below it."""
    below = np.searchsorted(points, at)
    return np.asarray(below * at - np.concatenate([[0], np.cumsum(points)])[below], float)


@dataclass(frozen=True, eq=False)
class Hits:
    """What hits in an infinite cache: the request (its row), the client that computed it first, tokens.

    In order of requests; one that hits what several clients computed stands here several times.
    """

    request: Rows
    owner: Rows
    tokens: Ints


def reuse(trace: Columns) -> tuple[Hits, Curve]:
    """Hits in an infinite cache, and the curve over cache size."""
    uses = _uses(trace)
    last, first = _histories(trace, uses)
    return _hits(uses, first), _curve(trace, uses, last)


# -- paths -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Uses:
    """What requests send with their segments: the first `tokens` of a `stream`, which is a segment at one
    place of the trie. Streams that one request alone uses are left out.
    """

    request: Rows
    stream: Rows
    tokens: Rows
    ragged: NDArray[np.bool_]
    """Whether the stream is used with several lengths."""


def _uses(trace: Columns) -> _Uses:
    """The uses, request by request and from the root down."""
    levels = list(_levels(trace))
    order = np.argsort(np.concatenate([uses.request for uses in levels]), kind="stable")
    columns = ("request", "stream", "tokens", "ragged")
    return _Uses(*(np.concatenate([getattr(uses, name) for uses in levels])[order] for name in columns))


def _levels(trace: Columns) -> Iterator[_Uses]:
    """Down the trie, one segment of every request at a time; who is alone at a place stays behind."""
    begins = np.cumsum(trace.path_lengths) - trace.path_lengths
    rows = np.arange(len(begins), dtype=np.int32)
    place = np.zeros(len(begins), np.int32)
    streams = level = 0
    while len(rows):
        at = begins[rows] + level
        stream, users = _numbered(place[rows], trace.segments[at])
        shared = users[stream] > 1
        rows, at, stream = rows[shared], at[shared], stream[shared]
        tokens = trace.tokens[at]
        ends, place[rows] = np.unique(stream << 32 | tokens, return_inverse=True)
        lengths = np.bincount(ends >> 32)
        yield _Uses(rows, (stream + streams).astype(np.int32), tokens, lengths[stream] > 1)
        streams, level = streams + len(users), level + 1
        rows = rows[trace.path_lengths[rows] > level]


def _numbered(place: Rows, segment: Ints) -> tuple[Ints, Ints]:
    """Number the distinct pairs (streams): of each pair its stream; how many use a stream.

    Segments are hashes already: so is a pair's sum, with the places an odd step apart.
    """
    pairs = place.astype(np.uint64) * _ODD + segment.astype(np.uint64)
    _, number, users = np.unique(pairs, return_inverse=True, return_counts=True)
    return number, users


# -- histories ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Uses in pieces of one history each, from the root down.

    `use` is which one a piece is of; `by` is who touched it: the request that did so the last time before, or
    the client that did so first.
    """

    use: Ints
    by: Rows
    tokens: Rows


def _histories(trace: Columns, uses: _Uses) -> tuple[_Pieces, _Pieces]:
    """The last touches (NEVER where there was none), and the first touches of what was touched before."""
    order = np.argsort(uses.stream, kind="stable")
    ragged = uses.ragged[order]
    even = _of_even(trace, uses, order[~ragged])
    odd = _of_ragged(trace, uses, order[ragged])
    last, first = (_together(*pieces) for pieces in zip(even, odd, strict=True))
    return last, first


def _together(one: _Pieces, other: _Pieces) -> _Pieces:
    """The pieces of both, in order of uses."""
    use = np.concatenate([one.use, other.use])
    order = np.argsort(use, kind="stable")
    by, tokens = np.concatenate([one.by, other.by]), np.concatenate([one.tokens, other.tokens])
    return _Pieces(use[order], by[order], tokens[order])


def _of_even(trace: Columns, uses: _Uses, order: Ints) -> tuple[_Pieces, _Pieces]:
    """Last and first touches of uses that are as long as all of their stream, listed stream by stream."""
    request, tokens = uses.request[order], uses.tokens[order]
    begins = np.diff(uses.stream[order], prepend=NEVER) > 0
    last = np.where(begins, np.int32(NEVER), np.roll(request, 1))
    first = request[begins][np.cumsum(begins) - 1]
    again = ~begins
    return _Pieces(order, last, tokens), _Pieces(order[again], trace.client[first[again]], tokens[again])


def _of_ragged(trace: Columns, uses: _Uses, order: Ints) -> tuple[_Pieces, _Pieces]:
    """Last and first touches of uses of other lengths than their stream's others, listed stream by stream."""
    lasts, firsts = array("i"), array("i")
    request = uses.request[order]
    columns = (uses.stream[order], order, request, trace.client[request], uses.tokens[order])
    stream, history = NEVER, _Stream()
    for number, use, sender, client, tokens in zip(*(column.tolist() for column in columns), strict=True):
        if number != stream:
            stream, history = number, _Stream()
        for owner, size in history.owners(tokens):
            firsts.extend((use, owner, size))
        for last, size in history.touched(sender, client, tokens):
            lasts.extend((use, last, size))
    return _unfolded(lasts), _unfolded(firsts)


def _unfolded(rows: array[int]) -> _Pieces:
    return _Pieces(*np.asarray(rows, np.int32).reshape(-1, 3).T)


class _Stream:
    """Who touched the tokens of a stream: first, by client, and last, by request.

    The deeper, the longer ago: the last touches are a stack of ends, the deepest at the bottom. A use takes
    off those up to its own length and puts one on, so that all uses together take time in their number.
    """

    def __init__(self) -> None:
        self._last: list[tuple[int, int]] = []
        self._first: list[tuple[int, int]] = []

    def owners(self, tokens: int) -> Iterator[tuple[int, int]]:
        """The clients that touched the first `tokens` first, each with how many; what is new is nobody's."""
        begin = 0
        for end, client in self._first:
            if begin >= tokens:
                return
            yield client, min(end, tokens) - begin
            begin = end

    def touched(self, request: int, client: int, tokens: int) -> Iterator[tuple[int, int]]:
        """Touch the first `tokens`: the requests that did so the last time before, each with how many."""
        begin, stack = 0, self._last
        while stack and stack[-1][0] <= tokens:
            end, last = stack.pop()
            yield last, end - begin
            begin = end
        if begin < tokens:
            yield stack[-1][1] if stack else NEVER, tokens - begin
        stack.append((tokens, request))
        self._extend(client, tokens)

    def _extend(self, client: int, tokens: int) -> None:
        known, owner = self._first[-1] if self._first else (0, NEVER)
        if tokens > known:
            if client == owner:
                self._first.pop()
            self._first.append((tokens, client))


# -- distances ---------------------------------------------------------------------------------------------


def _hits(uses: _Uses, first: _Pieces) -> Hits:
    request = uses.request[first.use]
    begins = _changes(request, first.by)
    return Hits(request[begins], first.by[begins], _sums(first.tokens, begins))


def _curve(trace: Columns, uses: _Uses, touches: _Pieces) -> Curve:
    """Closer than a run are the tokens touched by requests after its last touch, each counted where such a
    request touched it first: all runs before this one whose own last touch is not later than this one's,
    less all touches up to that request.
    """
    last, tokens = _runs(trace, uses, touches)
    again = last != NEVER
    touched = np.cumsum(trace.input_tokens + trace.output_tokens)
    closer = _before_and_not_above(last, tokens)[again] - touched[last[again]]
    return Curve(closer, tokens[again], int(trace.input_tokens.sum()))


def _runs(trace: Columns, uses: _Uses, touches: _Pieces) -> tuple[Rows, Ints]:
    """All that requests touch, request by request from the root down, in pieces last touched by one request:
    that request, and the tokens. What nobody else touches ends a request's path.
    """
    requests, request = len(trace.client), uses.request[touches.use]
    shared = np.bincount(request, touches.tokens, requests).astype(int)
    alone = trace.input_tokens + trace.output_tokens - shared
    begins = _changes(request, touches.by)
    tokens = np.concatenate([_sums(touches.tokens, begins), alone])
    order = np.argsort(np.concatenate([request[begins], np.arange(requests)]), kind="stable")
    return np.concatenate([touches.by[begins], np.full(requests, NEVER, np.int32)])[order], tokens[order]


def _changes(x: Rows, y: Rows) -> Ints:
    """Where (x, y) is another pair than at the place before."""
    return np.flatnonzero((np.diff(x, prepend=NEVER - 1) != 0) | (np.diff(y, prepend=NEVER - 1) != 0))


def _sums(values: Rows, begins: Ints) -> Ints:
    """The sums of the parts that begin there; the first begins at 0."""
    return np.add.reduceat(values, begins, dtype=int) if len(begins) else np.empty(0, int)


def _before_and_not_above(keys: Rows, weights: Ints) -> Ints:
    """For each i, the sum of weights[j] over all j < i with keys[j] <= keys[i].

    Divide and conquer over the bits of the keys' ranks: what differs first in a bit meets there.
    """
    size = len(keys)
    ranks = np.empty(size, int)
    ranks[np.argsort(keys, kind="stable")] = np.arange(size)
    original, sums = ranks.copy(), np.zeros(size, int)
    for bit in reversed(range(size.bit_length())):
        high = ranks >> bit & 1 > 0
        begins = ranks >> bit + 1 << bit + 1
        lows = np.concatenate([[0], np.cumsum(np.where(high, 0, weights))])
        sums[ranks[high]] += (lows[:-1] - lows[begins])[high]
        highs = np.concatenate([[0], np.cumsum(high)])
        highs_before = highs[:-1] - highs[begins]
        target = np.where(high, begins + (1 << bit) + highs_before, np.arange(size) - highs_before)
        ranks[target], weights = ranks.copy(), _moved(weights, target)
    return sums[original]


def _moved(values: Ints, target: Ints) -> Ints:
    moved = np.empty_like(values)
    moved[target] = values
    return moved
