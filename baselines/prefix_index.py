"""Which worker holds which prefix, as far as a router can know: a radix tree over blocks, bounded in
memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from typing import TypeAlias

from baselines.router import Request, Worker

UNKNOWN_POOL = 65_536
"""Blocks that a worker is taken to hold where the size of its KV pool is not known: a million tokens in
blocks of 16."""

Blocks: TypeAlias = tuple[Hashable, ...]


class Node:
    """A run of blocks that is held as one: what leads to it, what follows it, and who holds it.

    `holders` gives for each worker that holds all of the run when it was last sent something that passes
    through here. Who holds a node holds its parent, and was sent that no earlier. The root has no run and is
    its own parent.
    """

    __slots__ = ("children", "hits", "holders", "parent", "run")

    def __init__(self, run: Blocks, parent: Node | None = None) -> None:
        self.run = run
        self.parent = parent or self
        self.children: dict[Hashable, Node] = {}
        self.holders: dict[Worker, int] = {}
        self.hits: dict[Worker, int] = {}
        """For a router that counts what it sent through here, by worker; the index only copies it on a
        split."""

    def common(self, blocks: Blocks, start: int) -> int:
        """How many blocks of the run are those of `blocks` from `start` on."""
        part = blocks[start : start + len(self.run)]
        return len(part) if part == self.run else sum(takewhile(bool, map(eq, part, self.run)))

    def lineage(self) -> Iterator[Node]:
        """This node and what leads to it, without the root."""
        node = self
        while node.run:
            yield node
            node = node.parent

    def split(self, at: int) -> Node:
        """Put the first `at` blocks of the run into a node of their own, before this one, and return that."""
        before = Node(self.run[:at], self.parent)
        before.children[self.run[at]] = self
        before.holders, before.hits = dict(self.holders), dict(self.hits)
        self.parent.children[self.run[0]] = before
        self.parent, self.run = before, self.run[at:]
        return before


@dataclass(frozen=True, slots=True)
class Match:
    """How much of a prompt's beginning is held, and by whom."""

    held: dict[Worker, int]
    """Blocks by worker; who holds none is left out."""
    end: Node
    """Where the longest match ends, whoever holds it: the root if nobody holds anything."""

    def longest(self, workers: Sequence[Worker]) -> tuple[int, list[Worker]]:
        """The longest match that any of these workers holds, in blocks, and which of them hold it: none of
        them if it is 0."""
        longest = max((self.held.get(worker, 0) for worker in workers), default=0)
        return longest, [worker for worker in workers if self.held.get(worker) == longest]


class _Shelf:
    """What one worker holds: how many blocks, and for each use of them the node at which it ends.

    A use is a path from the root. Those of its nodes that were not used again are a chain, of which `tips`
    names the deepest, in order of time: so the first tip is the least recently used leaf of this worker.
    """

    __slots__ = ("held", "tips")

    def __init__(self) -> None:
        self.held = 0
        self.tips: OrderedDict[int, Node] = OrderedDict()


class PrefixIndex:
    """What each worker was sent and, by what is known, still has in its prefix cache.

    Fed by dispatches (`insert`) and by eviction reports (`evict`), so it is an approximation: it takes for
    held what was sent and is not computed yet, and a report that comes after the same prefix was sent anew
    takes away what is there. It forgets as the worker's cache would: of what goes beyond the KV pool (or
    `unknown_pool` blocks, where its size is not known) the least recently sent goes first, and ends before
    beginnings.

    Memory is bounded by the sum of these capacities: a node has at least one block and one worker that holds
    it. `insert` and `match` take time in the nodes of one path, plus comparisons of tuples.
    """

    def __init__(self, unknown_pool: int = UNKNOWN_POOL) -> None:
        self.unknown_pool = unknown_pool
        self._root = Node(())
        self._shelves: dict[Worker, _Shelf] = {}
        self._clock = 0

    def held(self, worker: Worker) -> int:
        """How many blocks the worker holds."""
        return self._shelves[worker].held if worker in self._shelves else 0

    def match(self, request: Request) -> Match:
        """What is held of the request's prompt."""
        blocks, node, depth = request.blocks, self._root, 0
        held: dict[Worker, int] = {}
        whole = True
        while whole and depth < len(blocks) and (child := node.children.get(blocks[depth])):
            same = child.common(blocks, depth)
            node, depth, whole = child, depth + same, same == len(child.run)
            held.update(dict.fromkeys(node.holders, depth))
        return Match(held, node)

    def insert(self, request: Request, worker: Worker) -> Node:
        """The worker was sent this prompt: it holds all of its full blocks, and has just used them.

        Returns the node at which they end.
        """
        if not request.blocks:
            return self._root
        shelf = self._shelves.setdefault(worker, _Shelf())
        self._clock += 1
        for node in self._path(request.blocks):
            self._use(node, worker, shelf)
        shelf.tips[self._clock] = node
        self._shrink(worker, shelf, self._capacity(worker, request.block_tokens))
        return node

    def victims(self, worker: Worker, blocks: int, block_tokens: int) -> Iterator[Node]:
        """The nodes that the worker would lose, first to last, to make room for so many more blocks."""
        shelf = self._shelves.get(worker) or _Shelf()
        excess = shelf.held + blocks - self._capacity(worker, block_tokens)
        for used, node in shelf.tips.items():
            while node.holders.get(worker) == used and excess > 0:
                yield node
                excess -= len(node.run)
                node = node.parent

    def evict(self, worker: Worker, blocks: Sequence[Hashable], kept: int) -> None:
        """The worker holds of these blocks only the first `kept`, hence nothing that goes on from the next
        one.

        A report on what the index has forgotten, or never knew, changes nothing.
        """
        if kept < len(blocks) and (found := self._holding(worker, tuple(blocks[: kept + 1]))):
            node, start = found
            if kept > start:
                node.split(kept - start)
            self._release_below(node, worker, self._shelves[worker])

    def drop(self, worker: Worker) -> None:
        """The worker is gone, or its cache is empty."""
        if worker in self._shelves:
            self._shrink(worker, self._shelves[worker], 0)
            del self._shelves[worker]

    def _path(self, blocks: Blocks) -> Iterator[Node]:
        """The nodes that make up these blocks, split and added as needed."""
        node, depth = self._root, 0
        while depth < len(blocks):
            child = node.children.get(blocks[depth])
            if child is None:
                child = node.children[blocks[depth]] = Node(blocks[depth:], node)
            elif (same := child.common(blocks, depth)) < len(child.run):
                child = child.split(same)
            yield child
            node, depth = child, depth + len(child.run)

    def _holding(self, worker: Worker, blocks: Blocks) -> tuple[Node, int] | None:
        """The node of the worker that has the last of these blocks, and how many blocks lead to that node."""
        node, start, depth = self._root, 0, 0
        while depth < len(blocks):
            child = node.children.get(blocks[depth])
            if child is None or worker not in child.holders:
                return None
            node, start, depth = child, depth, depth + len(child.run)
            if blocks[start:depth] != child.run[: len(blocks) - start]:
                return None
        return node, start

    def _use(self, node: Node, worker: Worker, shelf: _Shelf) -> None:
        last = node.holders.get(worker)
        if last is None:
            shelf.held += len(node.run)
        elif shelf.tips.get(last) is node:
            del shelf.tips[last]
        node.holders[worker] = self._clock

    def _release(self, node: Node, worker: Worker, shelf: _Shelf) -> None:
        """The worker no longer holds the node; its parent ends the same use now, unless it was used again."""
        used = node.holders.pop(worker)
        shelf.held -= len(node.run)
        if shelf.tips.get(used) is node:
            if node.parent.holders.get(worker) == used:
                shelf.tips[used] = node.parent
            else:
                del shelf.tips[used]
        if not node.holders:
            del node.parent.children[node.run[0]]

    def _release_below(self, node: Node, worker: Worker, shelf: _Shelf) -> None:
        """Release the node and all that goes on from it, children before parents."""
        nodes = [node]
        for node in nodes:
            nodes.extend(child for child in node.children.values() if worker in child.holders)
        for node in reversed(nodes):
            self._release(node, worker, shelf)

    def _shrink(self, worker: Worker, shelf: _Shelf, capacity: int) -> None:
        """Release the least recently used blocks beyond the capacity."""
        while (excess := shelf.held - capacity) > 0:
            node = next(iter(shelf.tips.values()))
            if excess < len(node.run):
                node.split(len(node.run) - excess)
            self._release(node, worker, shelf)

    def _capacity(self, worker: Worker, block_tokens: int) -> int:
        return self.unknown_pool if worker.kv_tokens is None else worker.kv_tokens // block_tokens
