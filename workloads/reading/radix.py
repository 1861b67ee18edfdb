"""Sequences cut where they part from one another: the edges of a radix tree."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from suite.trace import Segment

if TYPE_CHECKING:
    from hashlib import _Hash

TEXT = "text:"
"""How the ids of segments of real text begin."""
MARK = 2**31
"""Stands, plus the place of an exchange, for each token of the reply to it: no token id is as high."""


def key_of(ids: NDArray[Any]) -> bytes:
    """Sorts as the ids do, and begins with the key of what they begin with."""
    return ids.astype(">u4").tobytes()


class _Node(NamedTuple):
    """A place where prompts part or end: how deep, the segments from the beginning, and their digest."""

    depth: int
    segments: tuple[Segment, ...]
    sha: _Hash


class Tree:
    """The radix tree of sequences, walked from left to right; `replies` are the segments marks stand for."""

    def __init__(self, replies: Sequence[str]) -> None:
        self.replies = replies
        self.tokens: dict[str, NDArray[np.int32]] = {}

    def cut(self, sequences: Sequence[NDArray[np.uint32]]) -> list[tuple[Segment, ...]]:
        """The segments of each sequence."""
        order = sorted(range(len(sequences)), key=lambda i: key_of(sequences[i]))
        shared = [0, *(_common(sequences[a], sequences[b]) for a, b in pairwise(order)), 0]
        lower = _next_lower(shared)
        found: list[tuple[Segment, ...]] = [()] * len(sequences)
        path = [_Node(0, (), sha256())]
        for place, index in enumerate(order):
            while path[-1].depth > shared[place]:
                path.pop()
            for depth in (*_partings(shared, lower, place + 1, path[-1].depth), len(sequences[index])):
                if depth > path[-1].depth:
                    path.append(self._grown(path[-1], sequences[index][path[-1].depth : depth]))
            found[index] = path[-1].segments
        return found

    def _grown(self, node: _Node, edge: NDArray[np.uint32]) -> _Node:
        sha, segments = node.sha.copy(), [*node.segments]
        changes = np.flatnonzero(np.diff(np.where(edge < MARK, 0, edge))) + 1
        for run in np.split(edge, changes):
            segments.append(Segment(self._named(run, sha), len(run)))
        return _Node(node.depth + len(edge), tuple(segments), sha)

    def _named(self, run: NDArray[np.uint32], sha: _Hash) -> str:
        """The id of a text or of a whole reply, which goes into the digest."""
        if run[0] >= MARK:
            reply = self.replies[int(run[0]) - MARK]
            sha.update(reply.encode())
            return reply
        sha.update(run.astype("<u4").tobytes())
        bounded = sha.copy()
        bounded.update(len(run).to_bytes(4, "little"))
        text = f"{TEXT}{bounded.hexdigest()[:16]}"
        self.tokens[text] = run.astype(np.int32)
        return text


def _common(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> int:
    """How many ids both begin with."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length


def _next_lower(numbers: Sequence[int]) -> list[int]:
    """For each number the place of the next lower one; the last place where there is none."""
    found = [len(numbers) - 1] * len(numbers)
    waiting: list[int] = []
    for place, number in enumerate(numbers):
        while waiting and numbers[waiting[-1]] > number:
            found[waiting.pop()] = place
        waiting.append(place)
    return found


def _partings(shared: Sequence[int], lower: Sequence[int], place: int, above: int) -> list[int]:
    """The depths beyond `above` at which the sequence before `place` parts from later ones, ascending."""
    depths = []
    while shared[place] > above:
        depths.append(shared[place])
        place = lower[place]
    return depths[::-1]
