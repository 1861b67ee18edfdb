"""How much of a trace's prompts a prefix cache of any size finds: LRU stack distances over prefixes.

The cache holds tokens, prompts and replies alike. Requests come in file order as if each reply took no time:
a request first looks its prompt up, then touches prompt and reply from the last token to the first, so that
of one request the deeper prefix is evicted first, as the engines do. A token then hits in every cache of at
least so many tokens as its stack distance: itself and the tokens touched since it was last touched, each
once (Mattson, Gecsei, Slutz and Traiger, 1970). One pass so gives the hits of all sizes.

Tokens are never looked at one by one. Prompts are paths in a trie whose nodes are cut where any request
ends its use of a segment. Along a path the time of the last touch never rises, so that a path falls into few
*runs* last touched by one and the same request; within a run the distance grows by one a token. Time and
memory are in proportion to the segments of all requests, as long as few lengths of one segment are in use: a
use of it is as many touches as there are lengths up to its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workloads.columns import Columns

Ints = NDArray[np.int64]
Rows = NDArray[np.int32]
"""Numbers of requests or nodes, and sizes of nodes: in half the memory, there are many."""

NEVER = -1
"""The last touch of what was not touched before."""
_LOW = (1 << 32) - 1
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
    touches = _touches(trace)
    last, first = _history(touches)
    return _hits(trace, touches, last, first), _curve(trace, touches, last)


# -- paths -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Touches:
    """Touches of nodes that more than one request may touch: request by request, from the root down."""

    request: Rows
    node: Rows
    tokens: Rows
    """The size of the node."""


@dataclass(frozen=True, eq=False)
class _Level:
    """What requests touch with their n-th segment: of `request[i]` the nodes `first[i]` to `node[i]`, which
    are the cuts of one segment at one place of the trie. `sizes` are the tokens of the level's nodes.
    """

    request: Rows
    first: Rows
    node: Rows
    sizes: Rows


def _touches(trace: Columns) -> _Touches:
    levels = list(_levels(trace))
    request, first, node, sizes = (
        np.concatenate([np.empty(0, np.int32), *(getattr(level, name) for level in levels)])
        for name in ("request", "first", "node", "sizes")
    )
    order = np.argsort(request, kind="stable")
    request, first, node = request[order], first[order], node[order]
    nodes = _ranges(first, node + 1)
    return _Touches(np.repeat(request, node + 1 - first), nodes, sizes[nodes])


def _levels(trace: Columns) -> Iterator[_Level]:
    """Down the trie, one segment of every request at a time; who is alone at a place stays behind."""
    begins = np.cumsum(trace.path_lengths) - trace.path_lengths
    rows = np.arange(len(begins), dtype=np.int32)
    place = np.zeros(len(begins), np.int32)
    nodes = level = 0
    while len(rows):
        at = begins[rows] + level
        stream, users = _numbered(place[rows], trace.segments[at])
        shared = users[stream] > 1
        rows, at, stream = rows[shared], at[shared], stream[shared]
        last, first, sizes = _cut(stream, trace.tokens[at])
        place[rows] = last + nodes
        yield _Level(rows, first + np.int32(nodes), place[rows], sizes)
        nodes, level = nodes + len(sizes), level + 1
        rows = rows[trace.path_lengths[rows] > level]


def _numbered(place: Rows, segment: Ints) -> tuple[Ints, Ints]:
    """Number the distinct pairs (streams): of each pair its stream; how many use a stream.

    Segments are hashes already: so is a pair's sum, with the places an odd step apart.
    """
    pairs = place.astype(np.uint64) * _ODD + segment.astype(np.uint64)
    _, number, users = np.unique(pairs, return_inverse=True, return_counts=True)
    return number, users


def _cut(stream: Ints, tokens: Rows) -> tuple[Rows, Rows, Rows]:
    """Cut each stream at all lengths it is used with; pieces are numbered by stream, then by length.

    Of each use its last piece and its first one; of each piece its tokens.
    """
    ends, last = np.unique(stream << 32 | tokens, return_inverse=True)
    begins_stream = np.diff(ends >> 32, prepend=NEVER) > 0
    sizes = np.where(begins_stream, ends & _LOW, np.diff(ends, prepend=0))
    first = np.maximum.accumulate(np.where(begins_stream, np.arange(len(ends)), 0))
    return last.astype(np.int32), first[last].astype(np.int32), sizes.astype(np.int32)


def _ranges(first: Rows, end: Rows) -> Rows:
    """first[0], ..., end[0] - 1, first[1], ..., end[1] - 1, ..."""
    counts = end - first
    begins = np.cumsum(counts) - counts
    ranges: Rows = np.arange(counts.sum(), dtype=np.int32)
    ranges += np.repeat((first - begins).astype(np.int32), counts)
    return ranges


# -- distances ---------------------------------------------------------------------------------------------


def _history(touches: _Touches) -> tuple[Rows, Rows]:
    """Of each touch, the requests that touched the same node the last time before (or NEVER) and first."""
    order = np.argsort(touches.node, kind="stable")
    request = touches.request[order]
    begins = np.diff(touches.node[order], prepend=NEVER) > 0
    last, first = np.empty_like(request), np.empty_like(request)
    last[order] = np.where(begins, np.int32(NEVER), np.roll(request, 1))
    first[order] = request[begins][np.cumsum(begins) - 1]
    return last, first


def _hits(trace: Columns, touches: _Touches, last: Rows, first: Rows) -> Hits:
    again = last != NEVER
    request, owner = touches.request[again], trace.client[first[again]]
    begins = _changes(request, owner)
    return Hits(request[begins], owner[begins], _sums(touches.tokens[again], begins))


def _curve(trace: Columns, touches: _Touches, last: Rows) -> Curve:
    """Closer than a run are the tokens touched by requests after its last touch, each counted where such a
    request touched it first: all runs before this one whose own last touch is not later than this one's,
    less all touches up to that request.
    """
    last, tokens = _runs(trace, touches, last)
    again = last != NEVER
    touched = np.cumsum(trace.input_tokens + trace.output_tokens)
    closer = _before_and_not_above(last, tokens)[again] - touched[last[again]]
    return Curve(closer, tokens[again], int(trace.input_tokens.sum()))


def _runs(trace: Columns, touches: _Touches, last: Rows) -> tuple[Rows, Ints]:
    """All that requests touch, request by request from the root down, in pieces last touched by one request:
    that request, and the tokens. What nobody else touches ends a request's path.
    """
    requests = len(trace.client)
    shared = np.bincount(touches.request, touches.tokens, requests).astype(int)
    alone = trace.input_tokens + trace.output_tokens - shared
    begins = _changes(touches.request, last)
    tokens = np.concatenate([_sums(touches.tokens, begins), alone])
    order = np.argsort(np.concatenate([touches.request[begins], np.arange(requests)]), kind="stable")
    return np.concatenate([last[begins], np.full(requests, NEVER, np.int32)])[order], tokens[order]


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
