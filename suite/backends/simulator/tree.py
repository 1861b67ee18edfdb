"""A radix tree over prompt content, in which waiting requests mark how far their prompts are cached.

Content is a tuple of pieces. A piece is a run of consecutive addresses `(address, tokens)` in one endless
space of tokens in which every segment id owns a stretch (see `Addresses`), so equal addresses are equal
tokens and content is compared without any token being made. Edges hold several pieces and are compared as
tuples, at C speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

Piece: TypeAlias = tuple[int, int]
Content: TypeAlias = tuple[Piece, ...]

NOTHING_MORE = -1
"""Key of a mark whose content ends where its match ends."""


class Addresses:
    """Where each segment id's endless token stream begins in the space of all tokens."""

    STREAM = 1 << 24
    """Longer than any segment, so that no two streams touch."""

    def __init__(self) -> None:
        self._streams: dict[str, int] = {}

    def of(self, id: str) -> int:
        """Address of the first token of the stream named `id`."""
        return self._streams.setdefault(id, len(self._streams) * self.STREAM)


class Mark(Protocol):
    """Some content of `target` tokens and the place in the tree up to which it is cached.

    That is `at` tokens, within or at the end of `node`; `rest` is the content beyond.
    """

    content: Content
    target: int
    node: Node
    at: int
    rest: Content


class Node:
    """The cached tokens from `start` to `end` on one path from the root.

    `holds` counts who needs the node: running requests whose path ends here, and children that are held.
    `label` is cut back to `end` only when somebody looks at it: eviction shortens a node many times.
    """

    __slots__ = (
        "children", "end", "holds", "inside", "label", "label_end", "parent", "stamp", "start", "waiting",
    )  # fmt: skip

    def __init__(self, parent: Node | None, label: Content, start: int, end: int) -> None:
        self.parent = parent
        self.label = label
        self.start = start
        self.end = self.label_end = end
        self.children: dict[int, Node] = {}
        self.holds = 0
        self.stamp = 0
        self.waiting: dict[int, dict[Mark, None]] = {}
        """Marks at the end of this node, by their next address: who gains when a child is added."""
        self.inside: dict[Mark, None] = {}
        """Marks before the end of this node."""


class Tree:
    """The cached content as a radix tree. `moved` is called with every mark whose match has changed."""

    def __init__(self, moved: Callable[[Mark], None]) -> None:
        self.root = Node(None, (), 0, 0)
        self.root.holds = 1
        self._moved = moved

    # -- content -------------------------------------------------------------------------------------------

    def walk(self, node: Node, rest: Content) -> tuple[Node, int, Content]:
        """Follow `rest` down from the end of `node`: deepest node reached, tokens matched, what is left."""
        while rest:
            child = node.children.get(rest[0][0])
            if child is None:
                break
            label = self.label(child)
            size = len(label)
            if rest[:size] == label:
                node, rest = child, rest[size:]
                continue
            common, rest = _common(label, rest)
            if child.start + common < child.end:
                return child, child.start + common, rest
            node = child
        return node, node.end, rest

    def split(self, node: Node, at: int) -> Node:
        """Cut `node` in two at `at` tokens; return the new upper part. The lower keeps its identity."""
        parent = node.parent
        assert parent is not None
        assert node.start < at < node.end
        head, tail = cut(self.label(node), at - node.start, node.end - node.start)
        upper = Node(parent, head, node.start, at)
        upper.holds = 1 if node.holds else 0
        upper.stamp = node.stamp
        upper.children[tail[0][0]] = node
        parent.children[head[0][0]] = upper
        node.parent, node.label, node.start = upper, tail, at
        for mark in [mark for mark in node.inside if mark.at <= at]:
            del node.inside[mark]
            self._place(mark, upper)
        return upper

    def add(self, parent: Node, label: Content, tokens: int) -> Node:
        """Add a child of `tokens` tokens. Marks that waited for its first address move on into it."""
        child = Node(parent, label, parent.end, parent.end + tokens)
        address = label[0][0]
        parent.children[address] = child
        for mark in parent.waiting.pop(address, ()):
            node, mark.at, mark.rest = self.walk(parent, mark.rest)
            self._place(mark, node)
            self._moved(mark)
        return child

    def shorten(self, node: Node, end: int) -> None:
        """Drop the tokens of a leaf beyond `end`. Marks beyond it fall back to it."""
        marks = [mark for marks in node.waiting.values() for mark in marks]
        marks += [mark for mark in node.inside if mark.at >= end]
        node.waiting.clear()
        node.end = end
        for mark in marks:
            node.inside.pop(mark, None)
            self._fall_back(mark, node)

    def remove(self, node: Node) -> None:
        """Drop a leaf. Its marks fall back to its parent."""
        parent = node.parent
        assert parent is not None
        assert not node.children
        del parent.children[node.label[0][0]]
        marks = [mark for marks in node.waiting.values() for mark in marks]
        for mark in [*marks, *node.inside]:
            self._fall_back(mark, parent)

    def label(self, node: Node) -> Content:
        """The content of the node."""
        if node.label_end != node.end:
            node.label = cut(node.label, node.end - node.start, node.label_end - node.start)[0]
            node.label_end = node.end
        return node.label

    def path(self, node: Node) -> Content:
        """All content from the root to the end of the node."""
        labels = []
        while node.parent is not None:
            labels.append(self.label(node))
            node = node.parent
        return joined(piece for label in reversed(labels) for piece in label)

    # -- marks ---------------------------------------------------------------------------------------------

    def mark(self, mark: Mark) -> None:
        """Put the mark where its content stops being cached; from now on it moves with the cache."""
        node, mark.at, mark.rest = self.walk(self.root, mark.content)
        self._place(mark, node)

    def unmark(self, mark: Mark) -> None:
        """Take the mark out of the tree."""
        node = mark.node
        if mark.at < node.end:
            del node.inside[mark]
            return
        address = _next_address(mark)
        same = node.waiting[address]
        del same[mark]
        if not same:
            del node.waiting[address]

    def _place(self, mark: Mark, node: Node) -> None:
        mark.node = node
        if mark.at < node.end:
            node.inside[mark] = None
        else:
            node.waiting.setdefault(_next_address(mark), {})[mark] = None

    def _fall_back(self, mark: Mark, node: Node) -> None:
        changed = mark.at != node.end
        mark.at, mark.rest = node.end, cut(mark.content, node.end, mark.target)[1]
        self._place(mark, node)
        if changed:
            self._moved(mark)


def _next_address(mark: Mark) -> int:
    """The first address of the mark's content that is not cached."""
    return mark.rest[0][0] if mark.rest else NOTHING_MORE


def joined(pieces: Iterable[Piece]) -> Content:
    """The content of these pieces, in which none goes on where the one before it ends."""
    whole: list[Piece] = []
    for address, tokens in pieces:
        if whole and sum(whole[-1]) == address:
            whole[-1] = (whole[-1][0], whole[-1][1] + tokens)
        else:
            whole.append((address, tokens))
    return tuple(whole)


def cut(content: Content, tokens: int, total: int) -> tuple[Content, Content]:
    """The first `tokens` tokens of content that is `total` tokens long, and the others."""
    if 2 * tokens > total:
        return _cut_behind(content, total - tokens)
    for i, (_, length) in enumerate(content):
        if tokens < length:
            return _cut_piece(content, i, tokens) if tokens else (content[:i], content[i:])
        tokens -= length
    return content, ()


def _cut_behind(content: Content, tokens: int) -> tuple[Content, Content]:
    """All but the last `tokens` tokens, and those."""
    for i in range(len(content) - 1, -1, -1):
        if not tokens:
            return content[: i + 1], content[i + 1 :]
        length = content[i][1]
        if tokens < length:
            return _cut_piece(content, i, length - tokens)
        tokens -= length
    return (), content


def _cut_piece(content: Content, i: int, tokens: int) -> tuple[Content, Content]:
    address, length = content[i]
    head, tail = (address, tokens), (address + tokens, length - tokens)
    return (*content[:i], head), (tail, *content[i + 1 :])


def _common(label: Content, rest: Content) -> tuple[int, Content]:
    """Tokens that two unequal contents share, and what is left of `rest` after them."""
    shared = 0
    for i, ((address, length), piece) in enumerate(zip(label, rest, strict=False)):
        if piece[0] != address:
            return shared, rest[i:]
        if piece[1] != length:
            common = min(length, piece[1])
            left = ((address + common, piece[1] - common),) if piece[1] > common else ()
            return shared + common, left + rest[i + 1 :]
        shared += length
    return shared, rest[min(len(label), len(rest)) :]
