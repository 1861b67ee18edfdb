"""KV memory and prefix cache: blocks that are free, idle (cached, unused) or in use, in two flavours.

Every token computed takes memory. Cached content lives in the tree; the tail of a running request that is
not in the tree yet is private to it. A node owns the blocks whose last token lies in it, so a block belongs
to the content that determines it, and memory is counted without listing blocks:

    capacity = free + idle + blocks of held nodes + private blocks
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable

from suite.backends.simulator.tree import Content, Mark, Node, Tree, cut


class Pool(ABC):
    """Memory of `capacity` blocks of `block` tokens, and the cache in it.

    `moved` is called with every mark of the tree whose match has changed.
    """

    def __init__(self, capacity: int, block: int, moved: Callable[[Mark], None]) -> None:
        self.capacity = capacity
        self.block = block
        self.free = capacity
        self.idle = 0
        self.evicted = 0
        self.reports: list[tuple[Content, int]] | None = None
        """If a list: what was evicted, as the content up to a leaf's end and the tokens of it that stay."""
        self.tree = Tree(moved)

    @property
    def available(self) -> int:
        """Blocks that can be had: free ones, and idle ones by eviction."""
        return self.free + self.idle

    def blocks(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block)

    def take(self, blocks: int) -> None:
        """Turn available blocks into private ones, evicting idle content if need be."""
        assert blocks <= self.available, "more blocks taken than available"
        if blocks > self.free:
            self._evict(blocks - self.free)
        self.free -= blocks

    def give_back(self, blocks: int) -> None:
        """Free private blocks."""
        self.free += blocks

    def idle_blocks(self, node: Node, upto: int) -> int:
        """Blocks on the path to `node`, up to `upto` tokens, that nobody holds."""
        count = 0
        while not node.holds:
            parent = node.parent
            assert parent is not None
            count += max(0, min(node.end, upto) // self.block - node.start // self.block)
            node = parent
        return count

    def cut_at(self, node: Node, at: int) -> Node:
        """The node of this path that ends at `at` tokens, split off if there is none."""
        while node.parent is not None and at <= node.start:
            node = node.parent
        return node if at == node.end else self._split(node, at)

    def hold(self, node: Node) -> None:
        """Keep the content up to `node` from eviction."""
        while True:
            node.holds += 1
            if node.holds > 1:
                return
            self.idle -= self._owned(node)
            self._in_use(node)
            assert node.parent is not None
            node = node.parent

    def drop(self, node: Node) -> None:
        """Undo one `hold`. Content that nobody holds becomes idle, the deepest first."""
        while True:
            node.holds -= 1
            if node.holds:
                return
            self.idle += self._owned(node)
            self._unused(node)
            assert node.parent is not None
            node = node.parent

    def insert(self, tip: Node, beyond: Content, end: int, total: int) -> tuple[Node, Content]:
        """Put private content that follows the held node `tip`, up to `end` tokens, into the cache.

        `beyond` reaches to `total` tokens. The hold moves to the node that ends at `end`, which is returned
        with the content beyond it. What was cached already is shared, the caller's private copy of it freed.
        """
        new, rest = cut(beyond, end - tip.end, total - tip.end)
        node, at, left = self.tree.walk(tip, new)
        if at < node.end:
            node = self._split(node, at)
        self.free += at // self.block - tip.end // self.block
        self.hold(node)
        if left:
            child = self.tree.add(node, left, end - at)
            child.holds = 1
            node = child
        self.drop(tip)
        return node, rest

    def _split(self, node: Node, at: int) -> Node:
        return self.tree.split(node, at)

    def _owned(self, node: Node) -> int:
        return node.end // self.block - node.start // self.block

    def _remove(self, node: Node) -> int:
        """Evict an idle leaf; returns its blocks."""
        if self.reports is not None:
            self.reports.append((self.tree.path(node), node.start))
        blocks = self._owned(node)
        self.tree.remove(node)
        self._evicted(blocks)
        return blocks

    def _evicted(self, blocks: int) -> None:
        self.idle -= blocks
        self.free += blocks
        self.evicted += blocks

    @abstractmethod
    def _in_use(self, node: Node) -> None:
        """An idle node is held again."""

    @abstractmethod
    def _unused(self, node: Node) -> None:
        """A node has become idle."""

    @abstractmethod
    def _evict(self, blocks: int) -> None:
        """Free at least `blocks` idle blocks."""


class VLLMPool(Pool):
    """vLLM's block pool: one queue of free blocks, in which cached blocks wait to be reused.

    Blocks of a request are freed last block first, so content is evicted from its end, in the order in which
    it became idle, exactly as many blocks as are needed. Blocks without a hash are reused before any cached
    one (as in vLLM 0.32; older releases queue them behind).
    """

    def __init__(self, capacity: int, block: int, moved: Callable[[Mark], None]) -> None:
        super().__init__(capacity, block, moved)
        self._queue: OrderedDict[Node, None] = OrderedDict()

    def _in_use(self, node: Node) -> None:
        self._queue.pop(node, None)

    def _unused(self, node: Node) -> None:
        self._queue[node] = None

    def _evict(self, blocks: int) -> None:
        while blocks > 0:
            node = next(iter(self._queue))
            last = node.end // self.block
            if last - node.start // self.block > blocks:
                kept = (last - blocks) * self.block
                if self.reports is not None:
                    self.reports.append((self.tree.path(node), kept))
                self.tree.shorten(node, kept)
                self._evicted(blocks)
                return
            del self._queue[node]
            blocks -= self._remove(node)


class SGLangPool(Pool):
    """SGLang's radix cache: least recently used first, whole leaves, so usually more than was asked for.

    A node is touched when a request that is tried matches it, if only in part, and when content is inserted
    below it.
    """

    def __init__(self, capacity: int, block: int, moved: Callable[[Mark], None]) -> None:
        super().__init__(capacity, block, moved)
        self._clock = 0
        self._leaves: list[tuple[int, int, Node]] = []
        self._pushes = 0

    def make_free(self, blocks: int) -> None:
        """Evict until so many blocks are free or nothing is idle."""
        if blocks > self.free:
            self._evict(min(blocks - self.free, self.idle))

    def touch(self, node: Node) -> None:
        """Mark the path to `node` as used now."""
        self._clock += 1
        touched: Node | None = node
        while touched is not None:
            touched.stamp = self._clock
            touched = touched.parent
        if not node.holds:
            self._unused(node)

    def _split(self, node: Node, at: int) -> Node:
        """As `Pool._split`; the lower part, reached by the match and not matched, counts as used too."""
        upper = super()._split(node, at)
        self._clock += 1
        node.stamp = self._clock
        if not node.holds:
            self._unused(node)
        return upper

    def insert(self, tip: Node, beyond: Content, end: int, total: int) -> tuple[Node, Content]:
        """As `Pool.insert`; the path counts as used."""
        node, rest = super().insert(tip, beyond, end, total)
        self.touch(node)
        return node, rest

    def _in_use(self, node: Node) -> None:
        pass

    def _unused(self, node: Node) -> None:
        if not node.children:
            self._pushes += 1
            heapq.heappush(self._leaves, (node.stamp, self._pushes, node))

    def _evict(self, blocks: int) -> None:
        while blocks > 0:
            stamp, _, node = heapq.heappop(self._leaves)
            if node.holds or node.children or node.stamp != stamp or node.parent is None:
                continue
            parent = node.parent
            blocks -= self._remove(node)
            node.parent = None
            if not parent.holds:
                self._unused(parent)
